//! `oracle`: reports for each request of a fleet what every pod had cached for it, and so what the router's choice
//! cost. It is pure except for reading the files: it rebuilds the caches from the pods' cache logs, block by block.
//!
//! ```text
//! --cache-log files ─read─► lines in order of time ─replay─► choices, one per request ─report─► table | JSON
//! ```

mod report;
mod replay;
mod read;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use replay::Replayed;
use std::io::Write;
use std::path::PathBuf;

const EXIT_FAILED: u8 = 1;
const EXIT_INVALID: u8 = 2;

#[derive(Debug, Args)]
#[command(after_help = EXPLANATION)]
pub struct OracleArgs {
    /// Files that `serve --cache-log` wrote, of all pods that the router could choose from
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Moment at which all pods are asked
    #[arg(long, value_name = "MOMENT", value_enum, default_value = "arrival")]
    at: Moment,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    /// Exit with 1 if all requests together lost more tokens than this
    #[arg(long, value_name = "TOKENS")]
    max_regret: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Moment {
    /// When the request arrived at its pod: what a router could have known
    Arrival,
    /// When its pod's engine admitted it: also counts what arrived while it waited
    Admission,
}

const EXPLANATION: &str = "\
Columns:
  cached   prompt tokens that the pod really had when it admitted the request
  here     what its pod had at the moment of --at
  best     the most that any pod had at that moment, and which pod (its own if no other had more)
  regret   best - here, in tokens
  cost     time that the pod's latency model spends on the regret, alone in its engine, in virtual milliseconds

A request with several prompts or choices has a row for each. Pods must hash alike: same --block-size,
--prefix-caching-hash-algo and PYTHONHASHSEED.

Exit codes:
  0  done
  1  regret is above --max-regret, or the logs contradict what the pods really hit
  2  a file cannot be read, is not a cache log, or lacks lines

Try:
  mock-vllm serve MODEL --port 8001 --pod-name a --cache-log cache.jsonl &
  mock-vllm serve MODEL --port 8002 --pod-name b --cache-log cache.jsonl &
  ... send requests through a router ...
  mock-vllm oracle cache.jsonl";

/// Reads the logs, writes the report and returns the exit code.
///
/// # Errors
/// Fails if `out` cannot be written.
pub fn run(args: &OracleArgs, out: &mut impl Write, talk: &mut impl Write) -> std::io::Result<u8> {
    let Replayed { choices, agreement } = match tell(args) {
        Ok(replayed) => replayed,
        Err(error) => {
            writeln!(talk, "error: {error:#}")?;
            return Ok(EXIT_INVALID);
        }
    };
    let totals = report::Totals::of(&choices, &agreement);
    if args.json {
        report::write_json(&choices, &totals, out)?;
    } else {
        report::write_table(&choices, &totals, out)?;
    }
    if let Some(contradiction) = &agreement.first_contradiction {
        writeln!(talk, "error: {contradiction}")?;
        return Ok(EXIT_FAILED);
    }
    if let Some(max) = args.max_regret.filter(|max| totals.regret_tokens > *max) {
        writeln!(talk, "error: regret of {} tokens is above --max-regret {max}", totals.regret_tokens)?;
        return Ok(EXIT_FAILED);
    }
    Ok(0)
}

fn tell(args: &OracleArgs) -> anyhow::Result<Replayed> {
    let lines = read::read(&args.files)?;
    replay::replay(lines, args.at).context("the logs do not tell one story")
}
