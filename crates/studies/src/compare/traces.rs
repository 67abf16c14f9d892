//! Recorded loads: Mooncake's JSON lines, which say what prompts share, and Azure's CSV, which does not.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use load::rows::Rows;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use time::PrimitiveDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

/// Tokens of one block, which one hash id of Mooncake stands for.
pub const MOONCAKE_BLOCK: usize = 512;
/// Format of Azure's times: `2023-11-16 18:15:46.6805900`.
const AZURE_TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond]");
/// Number of token ids of which prompts are made.
const VOCABULARY: u32 = 1 << 16;

/// One request of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// Time since the first request.
    pub at: Duration,
    pub input_tokens: usize,
    pub output_tokens: usize,
    /// Blocks of [`MOONCAKE_BLOCK`] tokens of which the prompt is made; empty if it shares nothing.
    pub hash_ids: Vec<u64>,
}

#[derive(Deserialize)]
struct Mooncake {
    /// Time in milliseconds.
    timestamp: u64,
    input_length: usize,
    output_length: usize,
    hash_ids: Vec<u64>,
}

/// Reads a file of either format; its first character says which.
///
/// # Errors
/// When it cannot be read; or the first line with neither format, with its number.
pub fn read(path: &Path) -> Result<Vec<Traced>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    parse(&text).with_context(|| format!("{} is no trace", path.display()))
}

fn parse(text: &str) -> Result<Vec<Traced>> {
    let mut traced = match text.trim_start().chars().next() {
        Some('{') => text
            .lines()
            .zip(1..)
            .filter(|(line, _)| !line.trim().is_empty())
            .map(mooncake)
            .collect::<Result<Vec<_>>>()?,
        Some(_) => azure(text)?,
        None => bail!("the file is empty"),
    };
    traced.sort_by_key(|one| one.at);
    let first = traced.first().map(|one| one.at).context("no request is in it")?;
    for one in &mut traced {
        one.at -= first;
    }
    Ok(traced)
}

fn mooncake((line, number): (&str, u32)) -> Result<Traced> {
    let Mooncake { timestamp, input_length, output_length, hash_ids } =
        serde_json::from_str(line).with_context(|| format!("line {number}"))?;
    ensure!(input_length > 0 && output_length > 0, "line {number}: a request of no tokens");
    let at = Duration::from_millis(timestamp);
    Ok(Traced { at, input_tokens: input_length, output_tokens: output_length, hash_ids })
}

fn azure(text: &str) -> Result<Vec<Traced>> {
    let Rows { columns, rows } = Rows::parse(text)?;
    let find = |name: &str| {
        let position = columns.iter().position(|column| column.eq_ignore_ascii_case(name));
        position.with_context(|| format!("the CSV has no column {name}"))
    };
    let (time, input, output) = (find("TIMESTAMP")?, find("ContextTokens")?, find("GeneratedTokens")?);
    let mut first = None;
    let mut traced = Vec::new();
    for row in &rows {
        let (number, cell) = (row.line, |place: usize| row.cell(place));
        let tokens = |place: usize| {
            let parsed = cell(place).parse::<usize>().ok().filter(|n| *n > 0);
            parsed.with_context(|| format!("line {number}: {:?} is no number of tokens", cell(place)))
        };
        // Some files name the time zone, always UTC.
        let moment = cell(time).trim_end_matches("+00:00").trim_end_matches('Z').replace('T', " ");
        let moment = PrimitiveDateTime::parse(&moment, AZURE_TIME)
            .with_context(|| format!("line {number}: {:?} is no moment", cell(time)))?;
        let first = *first.get_or_insert(moment);
        let at = Duration::try_from(moment - first)
            .with_context(|| format!("line {number}: before the first request"))?;
        traced.push(Traced {
            at,
            input_tokens: tokens(input)?,
            output_tokens: tokens(output)?,
            hash_ids: Vec::new(),
        });
    }
    Ok(traced)
}

impl Traced {
    /// Makes the token ids of such a prompt. `number` makes the parts unique that it does not share.
    pub fn prompt(&self, number: u64) -> Vec<u32> {
        let mut prompt = Vec::with_capacity(self.input_tokens);
        for id in &self.hash_ids {
            let n_tokens = MOONCAKE_BLOCK.min(self.input_tokens - prompt.len());
            let mut rng = ChaCha8Rng::seed_from_u64(*id);
            prompt.extend((0..n_tokens).map(|_| rng.random_range(0..VOCABULARY)));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(number);
        rng.set_stream(1);
        prompt.extend((prompt.len()..self.input_tokens).map(|_| rng.random_range(0..VOCABULARY)));
        prompt
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::parse;

    #[test]
    fn mooncakes_lines_share_the_blocks_that_they_name() {
        let text = "{\"timestamp\": 3000, \"input_length\": 700, \"output_length\": 5, \"hash_ids\": [7, 9]}\n\
                    {\"timestamp\": 1000, \"input_length\": 600, \"output_length\": 6, \"hash_ids\": [7, 8]}\n";
        let traced = parse(text).unwrap();
        assert_eq!(traced.iter().map(|one| one.at.as_secs()).collect::<Vec<_>>(), [0, 2]);
        let (first, second) = (traced[0].prompt(1), traced[1].prompt(2));
        assert_eq!((first.len(), second.len()), (600, 700));
        assert_eq!(first[..512], second[..512]);
        assert_ne!(first[512..600], second[512..600]);
        assert!(
            parse("{\"timestamp\": 1}")
                .unwrap_err()
                .chain()
                .any(|cause| cause.to_string().contains("line 1"))
        );
    }

    #[test]
    fn azures_rows_share_nothing() {
        let text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n\
                    2023-11-16 18:15:50.9951690,396,109\n";
        let traced = parse(text).unwrap();
        assert_eq!(
            (traced[1].at.as_millis(), traced[1].input_tokens, traced[1].output_tokens),
            (4314, 396, 109)
        );
        assert_eq!(traced[0].at, Duration::ZERO);
        assert_ne!(traced[0].prompt(1)[..9], traced[0].prompt(2)[..9]);
        let error = |text: &str| format!("{:#}", parse(text).unwrap_err());
        assert!(error(&text.replace("396", "x")).contains("line 3"));
        let quoted =
            text.replace("TIMESTAMP,", "\"note, if any\",TIMESTAMP,").replace("2023-", "\"a, b\",2023-");
        assert_eq!(parse(&quoted).unwrap(), traced);
        assert!(error("a,b\n1,2\n").contains("TIMESTAMP"));
        assert!(error("").contains("empty"));
    }
}
