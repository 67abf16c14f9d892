//! Measurements: one record per answered request, a CSV of the records, and a summary of a window of time.
//! Lines and columns are those of `multi-round-qa.py`; only the line with failures, shown if there are any, is ours.

use std::fmt::Write as _;
use std::io;

use anyhow::{Context as _, Result, bail, ensure};

use crate::multi_round_qa::schedule::ScheduleRules;
use crate::rows::Rows;
use crate::stats::{as_f64, mean};

/// The CSV's first line.
pub const HEADER: &str =
    "prompt_tokens,generation_tokens,ttft,generation_time,user_id,question_id,launch_time,finish_time";

/// One answered request. Durations are in seconds, moments in seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Record {
    pub prompt_tokens: u32,
    pub generation_tokens: u32,
    pub ttft: f64,
    /// Time from the first token to the end of the stream.
    pub generation_time: f64,
    pub user_id: u32,
    /// Number of the question within the session, from 1, whichever text was asked.
    pub question_id: u32,
    pub launch_time: f64,
    pub finish_time: f64,
}

/// The time span of a summary, and the figures that records do not show.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Configured requests per second.
    pub qps: f64,
    pub n_pending: usize,
    pub n_failed: usize,
    /// Start of the window, in seconds since the Unix epoch.
    pub start: f64,
    pub end: f64,
    pub rules: ScheduleRules,
}

/// The figures of a summary.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    pub window: Window,
    pub n_finished: usize,
    pub speed: f64,
    pub input_rate: f64,
    pub output_rate: f64,
    pub generation_rate: f64,
    pub ttft: f64,
}

impl Record {
    /// Returns the fields in the order of [`HEADER`].
    fn fields(&self) -> [String; 8] {
        let Self {
            prompt_tokens,
            generation_tokens,
            ttft,
            generation_time,
            user_id,
            question_id,
            launch_time,
            finish_time,
        } = self;
        [
            prompt_tokens.to_string(),
            generation_tokens.to_string(),
            ttft.to_string(),
            generation_time.to_string(),
            user_id.to_string(),
            question_id.to_string(),
            launch_time.to_string(),
            finish_time.to_string(),
        ]
    }

    /// Returns tokens per second after the first token. The original divides the number of all tokens by that time.
    fn generation_rate(&self, rules: ScheduleRules) -> Option<f64> {
        let n_timed = match rules {
            ScheduleRules::Original => self.generation_tokens,
            ScheduleRules::Strict => self.generation_tokens.saturating_sub(1),
        };
        (self.generation_time > 0.0).then(|| f64::from(n_timed) / self.generation_time)
    }
}

impl Summary {
    /// Sums up the records that finished in the window.
    pub fn of(records: &[Record], window: Window) -> Self {
        let inside: Vec<&Record> = records
            .iter()
            .filter(|record| window.start <= record.finish_time && record.finish_time <= window.end)
            .collect();
        let seconds = (window.end - window.start).max(f64::MIN_POSITIVE);
        let sum = |of: fn(&Record) -> u32| inside.iter().map(|record| f64::from(of(record))).sum::<f64>();
        let rates: Vec<f64> =
            inside.iter().filter_map(|record| record.generation_rate(window.rules)).collect();
        let ttfts: Vec<f64> = inside.iter().map(|record| record.ttft).collect();
        Self {
            window,
            n_finished: inside.len(),
            speed: as_f64(inside.len()) / seconds,
            input_rate: sum(|record| record.prompt_tokens) / seconds,
            output_rate: sum(|record| record.generation_tokens) / seconds,
            generation_rate: mean(&rates).unwrap_or(0.0),
            ttft: mean(&ttfts).unwrap_or(0.0),
        }
    }

    /// Returns the figures by name.
    pub fn json(&self) -> serde_json::Value {
        let Self { window, n_finished, speed, input_rate, output_rate, generation_rate, ttft } = self;
        serde_json::json!({
            "qps": window.qps,
            "finished": n_finished,
            "failed": window.n_failed,
            "processing_speed": speed,
            "input_tokens_per_second": input_rate,
            "output_tokens_per_second": output_rate,
            "average_generation_throughput": generation_rate,
            "average_ttft": ttft,
            "start": window.start,
            "end": window.end,
        })
    }

    /// Returns the original's block of lines, in its colours if asked for.
    pub fn text(&self, colours: Colours) -> String {
        let Self { window, n_finished: _, speed, input_rate, output_rate, generation_rate, ttft } = self;
        let Window { qps, n_pending, n_failed, start, end, rules: _ } = window;
        let mut text = "\n\n==================== Performance summary ======================\n".to_owned();
        let mut line = |label: &str, value: String| {
            let _ = match colours {
                Colours::Plain => writeln!(text, "  {label}: {value}\n"),
                Colours::Ansi => writeln!(text, "  \x1b[33m{label}: \x1b[32m{value}\x1b[0m\n"),
            };
        };
        line("QPS", format!("{qps:.4} reqs/s"));
        line("Processing speed", format!("{speed:.4} reqs/s"));
        line("Requests on-the-fly", n_pending.to_string());
        line("Input tokens per second", format!("{input_rate:.4} tokens/s"));
        line("Output tokens per second", format!("{output_rate:.4} tokens/s"));
        line("Average generation throughput (per request)", format!("{generation_rate:.4} tokens/req/s"));
        line("Average TTFT", format!("{ttft:.4}s"));
        if *n_failed > 0 {
            line("Requests failed", n_failed.to_string());
        }
        let _ = writeln!(text, "Time range: {start} - {end} ({:.2}s)\n", end - start);
        text.push_str("===============================================================\n\n");
        text
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Colours {
    Plain,
    Ansi,
}

/// Writes the CSV row by row.
#[derive(Debug)]
pub struct Writer<W: io::Write>(csv::Writer<W>);

impl<W: io::Write> Writer<W> {
    /// Writes the header.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(output: W) -> Result<Self> {
        let mut writer = csv::Writer::from_writer(output);
        writer.write_record(HEADER.split(',')).context("write the CSV's header")?;
        writer.flush().context("write the CSV's header")?;
        Ok(Self(writer))
    }

    /// Writes a row and flushes it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        self.0.write_record(record.fields()).context("write the CSV")?;
        self.0.flush().context("write the CSV")
    }
}

/// Reads a CSV of ours or of the original; columns are found by name.
///
/// # Errors
/// A missing column, or a value that is not a number, with its line and column.
pub fn parse(text: &str) -> Result<Vec<Record>> {
    let Rows { columns, rows } = Rows::parse(text)?;
    ensure!(!columns.is_empty(), "the CSV is empty");
    let find = |name: &str| {
        columns
            .iter()
            .position(|column| *column == name)
            .with_context(|| format!("the CSV has no column `{name}`"))
    };
    let mut places = Vec::new();
    for name in HEADER.split(',') {
        places.push((name, find(name)?));
    }
    let mut records = Vec::new();
    for row in &rows {
        let line = row.line;
        let mut values = Vec::new();
        for (name, place) in &places {
            let cell = row.cell(*place);
            match cell.parse::<f64>() {
                Ok(value) if value.is_finite() => values.push(value),
                Ok(_) | Err(_) => bail!("line {line}: {name} is `{cell}`, not a number"),
            }
        }
        let [prompt, generated, ttft, generation_time, user, question, launch_time, finish_time] = values[..]
        else {
            bail!("line {line}: {} columns", values.len())
        };
        records.push(Record {
            prompt_tokens: count(prompt),
            generation_tokens: count(generated),
            ttft,
            generation_time,
            user_id: count(user),
            question_id: count(question),
            launch_time,
            finish_time,
        });
    }
    Ok(records)
}

/// Converts a count; pandas writes the whole numbers of a column with gaps as `3.0`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a saturating cast is what is wanted"
)]
fn count(value: f64) -> u32 {
    value as u32
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::{Colours, HEADER, Record, Summary, Window, Writer, parse};
    use crate::multi_round_qa::schedule::ScheduleRules;

    fn record(user_id: u32, finish_time: f64) -> Record {
        Record {
            prompt_tokens: 2_400,
            generation_tokens: 5,
            ttft: 0.25,
            generation_time: 0.2,
            user_id,
            question_id: 1,
            launch_time: finish_time - 0.45,
            finish_time,
        }
    }

    fn window(rules: ScheduleRules, n_failed: usize) -> Window {
        Window { qps: 0.1, n_pending: 0, n_failed, start: 100.0, end: 120.0, rules }
    }

    #[test]
    fn the_summary_is_the_originals_line_for_line() {
        let records = [record(2, 110.0), record(3, 120.0), record(4, 121.0)];
        let summary = Summary::of(&records, window(ScheduleRules::Original, 0));
        assert_eq!(summary.n_finished, 2, "what finished outside the window does not count");
        expect![[r"


            ==================== Performance summary ======================
              QPS: 0.1000 reqs/s

              Processing speed: 0.1000 reqs/s

              Requests on-the-fly: 0

              Input tokens per second: 240.0000 tokens/s

              Output tokens per second: 0.5000 tokens/s

              Average generation throughput (per request): 25.0000 tokens/req/s

              Average TTFT: 0.2500s

            Time range: 100 - 120 (20.00s)

            ===============================================================

        "]]
        .assert_eq(&summary.text(Colours::Plain));
    }

    #[test]
    fn failures_are_shown_and_strict_counts_intervals() {
        let summary = Summary::of(&[record(2, 110.0)], window(ScheduleRules::Strict, 3));
        assert!(summary.text(Colours::Ansi).contains("\x1b[33mRequests failed: \x1b[32m3\x1b[0m"));
        assert!((summary.generation_rate - 20.0).abs() < 1e-9);
    }

    fn csv(records: &[Record]) -> String {
        let mut text = Vec::new();
        let mut writer = Writer::new(&mut text).unwrap();
        records.iter().for_each(|record| writer.write(record).unwrap());
        drop(writer);
        String::from_utf8(text).unwrap()
    }

    /// pandas quotes names on request, and people add columns of text.
    #[test]
    fn quoted_fields_are_read_whole() {
        let records = [record(2, 110.0), record(3, 120.5)];
        let quoted =
            |line: &str| line.split(',').map(|cell| format!("\"{cell}\"")).collect::<Vec<_>>().join(",");
        let lines = csv(&records)
            .lines()
            .map(|line| format!("\"pod a, zone b\",{}\n", quoted(line)))
            .collect::<String>();
        assert_eq!(parse(&lines).unwrap(), records);
    }

    #[test]
    fn a_csv_is_read_back_and_its_faults_are_named() {
        let records = [record(2, 110.0), record(3, 120.5)];
        let text = csv(&records);
        assert_eq!(text.lines().nth(2).unwrap(), "2400,5,0.25,0.2,3,1,120.05,120.5");
        assert!(text.starts_with(&format!("{HEADER}\n")));
        assert_eq!(parse(&text).unwrap(), records);
        assert_eq!(parse(&text.replace("2400", "2400.0")).unwrap(), records);
        let error = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(error(&text.replace("0.25", "x")), "line 2: ttft is `x`, not a number");
        assert_eq!(error(&text.replace("ttft,", "")), "the CSV has no column `ttft`");
    }
}
