//! The two CSVs that `e2e calibrate` reads, distinguished by their headers: steps of an engine, and the requests that
//! multi-round-qa records. It does no I/O: callers pass the text and the file's name.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use load::multi_round_qa::records;
use load::rows::{Row, Rows};
use sim::calibrate::Step;

/// Header for steps that decode, compute prompt tokens, or do both.
pub const STEPS: &str = "decode_requests,decode_context,prefill_tokens,prefill_context,ms";
/// Optional column beside those of multi-round-qa.
pub const CACHED: &str = "cached_tokens";

/// Content of a file: each row with its line number.
#[derive(Debug, Clone, PartialEq)]
pub enum MeasuredRows {
    Steps(Vec<(usize, Step)>),
    Requests(Vec<(usize, RequestRow)>),
}

/// The used part of a request's record. Moments are in seconds since a common moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RequestRow {
    pub prompt_tokens: u32,
    pub generation_tokens: u32,
    pub ttft: Duration,
    pub generation_time: Duration,
    pub user_id: u32,
    pub launch_time: f64,
    pub finish_time: f64,
    /// Cached tokens as the server reported them.
    pub cached_tokens: Option<u32>,
}

/// One row, and its place for error messages.
struct Cells<'a> {
    file: &'a str,
    columns: &'a [&'a str],
    row: &'a Row,
}

/// Parses the text of a CSV.
///
/// # Errors
/// Unknown or missing columns, with the accepted headers; a value that is not a number, with its file, line and column.
pub fn parse(file: &str, text: &str) -> Result<MeasuredRows> {
    let Rows { columns, rows } = Rows::parse(text).with_context(|| format!("{file} is not CSV"))?;
    ensure!(!columns.is_empty(), "{file} is empty; {}", accepted());
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let is_steps = kind(file, &columns)? == Kind::Steps;
    let rows: Vec<Cells<'_>> = rows
        .iter()
        .map(|row| {
            let (seen, expected) = (row.n_cells(), columns.len());
            ensure!(seen == expected, "{file}, line {}: {seen} values in {expected} columns", row.line);
            Ok(Cells { file, columns: &columns, row })
        })
        .collect::<Result<_>>()?;
    ensure!(!rows.is_empty(), "{file} has a header, and no rows");
    Ok(match is_steps {
        true => MeasuredRows::Steps(
            rows.iter().map(|cells| Ok((cells.row.line, cells.step()?))).collect::<Result<_>>()?,
        ),
        false => MeasuredRows::Requests(
            rows.iter().map(|cells| Ok((cells.row.line, cells.request()?))).collect::<Result<_>>()?,
        ),
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Steps,
    Requests,
}

/// Returns the kind whose header has more of the columns. Missing and unknown columns are an error.
fn kind(file: &str, columns: &[&str]) -> Result<Kind> {
    let n_known = |header: &str| header.split(',').filter(|name| columns.contains(name)).count();
    let (kind, header, optional) = match n_known(STEPS) > n_known(records::HEADER) {
        true => (Kind::Steps, STEPS, None),
        false => (Kind::Requests, records::HEADER, Some(CACHED)),
    };
    let known = |name: &str| header.split(',').chain(optional).any(|known| known == name);
    let unknown: Vec<&str> = columns.iter().copied().filter(|name| !known(name)).collect();
    let missing: Vec<&str> = header.split(',').filter(|name| !columns.contains(name)).collect();
    let twice = columns.iter().enumerate().find(|(idx, name)| columns[..*idx].contains(name));
    let list = |what: &str, names: &[&str]| match names {
        [] => String::new(),
        names => format!("{what} {}; ", names.join(", ")),
    };
    if let Some((_, name)) = twice {
        bail!("{file} has the column {name} twice");
    }
    let problems = list("unknown columns", &unknown) + &list("missing columns", &missing);
    ensure!(problems.is_empty(), "{file}: {problems}{}", accepted());
    Ok(kind)
}

fn accepted() -> String {
    format!("accepted are\n  {STEPS}\n  {}  (of multi-round-qa; {CACHED} may be added)", records::HEADER)
}

impl Cells<'_> {
    fn step(&self) -> Result<Step> {
        let step = Step {
            decode_requests: self.count("decode_requests")?,
            decode_context: self.count("decode_context")?,
            prefill_tokens: self.count("prefill_tokens")?,
            prefill_context: self.count("prefill_context")?,
            time: self.time("ms", 1e-3)?,
        };
        let (file, line) = (self.file, self.row.line);
        ensure!(
            step.decode_requests > 0 || step.prefill_tokens > 0,
            "{file}, line {line}: decode_requests and prefill_tokens are both 0: a step has one of them at least"
        );
        ensure!(!step.time.is_zero(), "{file}, line {line}: ms is 0: no step is that fast");
        Ok(step)
    }

    fn request(&self) -> Result<RequestRow> {
        let is_told = self.columns.contains(&CACHED);
        let request = RequestRow {
            prompt_tokens: self.count("prompt_tokens")?,
            generation_tokens: self.count("generation_tokens")?,
            ttft: self.time("ttft", 1.0)?,
            generation_time: self.time("generation_time", 1.0)?,
            user_id: self.count("user_id")?,
            launch_time: self.number("launch_time")?,
            finish_time: self.number("finish_time")?,
            cached_tokens: is_told.then(|| self.count(CACHED)).transpose()?,
        };
        let (file, line) = (self.file, self.row.line);
        ensure!(request.prompt_tokens > 0, "{file}, line {line}: prompt_tokens is 0: no prompt is empty");
        ensure!(!request.ttft.is_zero(), "{file}, line {line}: ttft is 0: no token comes at once");
        Ok(request)
    }

    fn value(&self, column: &str) -> &str {
        let place = self.columns.iter().position(|name| *name == column);
        place.map_or("", |place| self.row.cell(place))
    }

    fn number(&self, column: &str) -> Result<f64> {
        match self.value(column).parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(number),
            Ok(_) | Err(_) => bail!("{}", self.wrong(column, "a number")),
        }
    }

    /// Reads a count; pandas writes the whole numbers of a column with gaps as `3.0`.
    fn count(&self, column: &str) -> Result<u32> {
        /// Largest count, far above any context. There must be one, because a step of the model has an entry for each
        /// request.
        const MOST: f64 = 1e7;
        let number = self.number(column)?;
        ensure!(
            (0.0..=MOST).contains(&number) && number.fract() == 0.0,
            "{}",
            self.wrong(column, "a count, 0 to 10 million")
        );
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it was just checked")]
        let count = number as u32;
        Ok(count)
    }

    fn time(&self, column: &str, unit: f64) -> Result<Duration> {
        let number = self.number(column)?;
        Duration::try_from_secs_f64(number * unit)
            .map_err(|_| anyhow::anyhow!(self.wrong(column, "a time, 0 or more")))
    }

    fn wrong(&self, column: &str, expected: &str) -> String {
        format!("{}, line {}: {column} is `{}`, not {expected}", self.file, self.row.line, self.value(column))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{MeasuredRows, STEPS, parse};
    use load::multi_round_qa::records;

    fn error(text: &str) -> String {
        format!("{:#}", parse("a.csv", text).unwrap_err())
    }

    #[test]
    fn columns_are_found_by_name_in_any_order() {
        let MeasuredRows::Steps(steps) = parse(
            "a.csv",
            "ms,prefill_tokens,prefill_context,decode_context,decode_requests\r\n39.2,0,0,1300,16\r\n",
        )
        .unwrap() else {
            panic!("steps")
        };
        assert_eq!((steps[0].0, steps[0].1.decode_requests, steps[0].1.decode_context), (2, 16, 1300));
        assert_eq!(steps[0].1.time, Duration::from_micros(39_200));
        let text = format!("{},cached_tokens\n2149,45.0,0.69,1.7,2,1,100,102.4,128\n", records::HEADER);
        let MeasuredRows::Requests(requests) = parse("a.csv", &text).unwrap() else { panic!("requests") };
        assert_eq!((requests[0].1.generation_tokens, requests[0].1.cached_tokens), (45, Some(128)));
    }

    #[test]
    fn quoted_names_and_values_are_read() {
        let quoted =
            |line: &str| line.split(',').map(|cell| format!("\"{cell}\"")).collect::<Vec<_>>().join(",");
        let text = format!("{}\n{}\n", quoted(STEPS), quoted("1,100,0,0,38.4"));
        let MeasuredRows::Steps(steps) = parse("a.csv", &text).unwrap() else { panic!("steps") };
        assert_eq!(steps[0].1.time, Duration::from_micros(38_400));
    }

    #[test]
    fn wrong_columns_are_named_beside_the_right_ones() {
        let text = error("decode_requests,decode_context,prefill_tokens,time\n1,2,3,4\n");
        assert!(
            text.starts_with(
                "a.csv: unknown columns time; missing columns prefill_context, ms; accepted are\n"
            ),
            "{text}"
        );
        assert!(text.contains(STEPS) && text.contains(records::HEADER), "{text}");
        let text = error("prompt_tokens,ttft\n1,2\n");
        assert!(text.contains("missing columns generation_tokens, generation_time, user_id"), "{text}");
        assert!(error("").starts_with("a.csv is empty; accepted are"));
        assert_eq!(error(STEPS), "a.csv has a header, and no rows");
        assert_eq!(error(&format!("{STEPS},ms\n")), "a.csv has the column ms twice");
    }

    #[test]
    fn a_wrong_value_is_found_by_line_and_column() {
        let of = |row: &str| error(&format!("{STEPS}\n1,100,0,0,38.4\n{row}\n"));
        assert_eq!(of("1,100,0,0,fast"), "a.csv, line 3: ms is `fast`, not a number");
        assert_eq!(of("1,100,0,0,nan"), "a.csv, line 3: ms is `nan`, not a number");
        assert_eq!(of("1,100,0,0,-3"), "a.csv, line 3: ms is `-3`, not a time, 0 or more");
        assert_eq!(of("1,100,0,0,0"), "a.csv, line 3: ms is 0: no step is that fast");
        assert_eq!(
            of("1.5,100,0,0,3"),
            "a.csv, line 3: decode_requests is `1.5`, not a count, 0 to 10 million"
        );
        assert_eq!(of("1,100,0,3"), "a.csv, line 3: 4 values in 5 columns");
        assert!(of("0,100,0,0,3").contains("decode_requests and prefill_tokens are both 0"));
    }
}
