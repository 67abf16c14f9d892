//! `epp explain`: why a pod was picked, offline.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Instant, SystemTime};

use anyhow::{Context, bail};
use clap::Args;
use comfy_table::{CellAlignment, Table, presets};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::knobs::KnobArgs;
use crate::director::{Now, Options};
use crate::replay::{Explained, Record, Rehearsal, ReplayVerdict, replay};
use crate::tuning::Patch;

const AFTER_HELP: &str = "\
Reads JSON values, one behind the other, each of these:
  a decision, or a list of them, as /debug/decisions shows them: it is made once more
  the body of a chat or completion: what a fresh picker would do with it, after those before it

Examples:
  Why did the last requests go where they went?
    curl -s 'localhost:9090/debug/decisions?after=0' | epp explain
  Would they have gone elsewhere with another threshold?
    curl -s 'localhost:9090/debug/decisions?after=0' | epp explain --threshold 0.7
  Does the second round of a chat find the first?
    cat round1.txt round2.txt | epp explain

Exit codes: 0, 1 when a decision is not what its own policy makes of its record, 2 when the input is not understood.";

#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(super) struct ExplainArgs {
    /// File to read [default: standard input]
    file: Option<PathBuf>,
    /// Print JSON, one explained decision per line
    #[arg(long)]
    json: bool,
    /// For bodies: YAML with InferencePools and InferenceModels [default: a pool under PREFIX_CACHE that takes any model]
    #[arg(long = "pool-file", value_name = "FILE")]
    pool_files: Vec<PathBuf>,
    /// For bodies: how many endpoints there are
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    endpoints: u16,
    /// For bodies: decides draws
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    knobs: KnobArgs,
}

/// Answer of `/debug/decisions`.
#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow)]
    decisions: Vec<&'a RawValue>,
}

/// Fields that distinguish a decision from a body.
#[derive(Deserialize)]
struct Shape {
    outcome: Option<String>,
    seq: Option<u64>,
}

/// Explains the input and returns the exit code. `options` are those of bodies.
pub(super) fn run(args: &ExplainArgs, options: Options) -> ExitCode {
    let explained = explain(args, options);
    let (text, code) = match explained {
        Ok(explained) => {
            let is_changed = args.knobs.patch() != Patch::default();
            let differs = explained.iter().any(|explained| explained.verdict == ReplayVerdict::Differs);
            let code = if differs && !is_changed { ExitCode::FAILURE } else { ExitCode::SUCCESS };
            (if args.json { json(&explained) } else { table(&explained) }, code)
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            return ExitCode::from(2);
        }
    };
    // A reader that closes the pipe has read enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    code
}

fn explain(args: &ExplainArgs, options: Options) -> anyhow::Result<Vec<Explained>> {
    let text = read(args)?;
    let read_pool = |path: &PathBuf| -> anyhow::Result<(String, String)> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| format!("read {name}"))?;
        Ok((name, text))
    };
    let pools = args.pool_files.iter().map(read_pool).collect::<anyhow::Result<Vec<_>>>()?;
    let endpoints: Vec<SocketAddr> = (1..=args.endpoints)
        .map(|n| (Ipv4Addr::from_bits(0x0A00_0000 + u32::from(n)), 8000).into())
        .collect();
    let options = Options { policy: args.knobs.patch(), seed: args.seed, ..options };
    let rehearsal = Rehearsal::try_new(options, &pools, &endpoints)?;
    let mut explained = Vec::new();
    let mut values = serde_json::Deserializer::from_str(&text).into_iter::<&RawValue>();
    while let Some(value) = values.next() {
        let value = value.with_context(|| format!("not JSON at byte {}", values.byte_offset()))?;
        for record in records(value, &rehearsal)? {
            explained.push(replay(&record, &args.knobs.patch())?);
        }
    }
    if explained.is_empty() {
        bail!("there is no decision and no request in it");
    }
    Ok(explained)
}

fn read(args: &ExplainArgs) -> anyhow::Result<String> {
    match &args.file {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("read {}", path.display())),
        None if std::io::stdin().is_terminal() => {
            bail!("nothing to explain: name a file, or pipe something in (epp explain --help shows what)")
        }
        None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("read standard input")?;
            Ok(text)
        }
    }
}

/// The records in one value.
fn records(value: &RawValue, rehearsal: &Rehearsal) -> anyhow::Result<Vec<Record>> {
    let text = value.get();
    if text.starts_with('[') {
        let values: Vec<&RawValue> = serde_json::from_str(text)?;
        let nested = values.into_iter().map(|value| records(value, rehearsal));
        return Ok(nested.collect::<anyhow::Result<Vec<_>>>()?.into_iter().flatten().collect());
    }
    if let Ok(List { decisions }) = serde_json::from_str(text) {
        let record = |value: &RawValue| serde_json::from_str(value.get()).context("not a decision");
        return decisions.into_iter().map(record).collect();
    }
    if let Ok(Shape { outcome: Some(_), seq: Some(_) }) = serde_json::from_str(text) {
        return Ok(vec![serde_json::from_str(text).context("not a decision")?]);
    }
    let decision = rehearsal.decide(text.as_bytes(), now()).context("no decision was recorded")?;
    let record = serde_json::to_string(&*decision).context("write the decision")?;
    Ok(vec![serde_json::from_str(&record).context("read the decision")?])
}

fn json(explained: &[Explained]) -> String {
    let line = |explained: &Explained| serde_json::to_string(explained).unwrap_or_default() + "\n";
    explained.iter().map(line).collect()
}

fn table(explained: &[Explained]) -> String {
    explained.iter().map(paragraph).collect::<Vec<_>>().join("\n")
}

fn paragraph(explained: &Explained) -> String {
    let Explained { seq, request, pool, strategy, outcome, picked, replayed, verdict, .. } = explained;
    let mut text = format!(
        "#{seq} {request}  {}  {}\n",
        pool.as_deref().unwrap_or("no pool"),
        strategy.as_deref().unwrap_or("no strategy"),
    );
    let (Some(picked), Some(replayed)) = (picked, replayed) else {
        let _ = writeln!(text, "  refused: {outcome}");
        return text;
    };
    let _ = writeln!(text, "  {} ({}): {}", picked.pod, picked.endpoint, why(explained, &picked.reason));
    match verdict {
        ReplayVerdict::Same | ReplayVerdict::Refused => {}
        ReplayVerdict::Draw => {
            let _ = writeln!(text, "  {} is exactly as good: a draw decided", replayed.pod);
        }
        ReplayVerdict::Differs => {
            let _ = writeln!(
                text,
                "  offline it is {} ({}): {}",
                replayed.pod,
                replayed.endpoint,
                why(explained, &replayed.reason)
            );
        }
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["", "pod", "matched", "ratio", "queue", "kv", "work"]);
    for candidate in &explained.candidates {
        let mark = if candidate.endpoint == replayed.endpoint { "*" } else { "" };
        table.add_row([
            mark.to_owned(),
            candidate.pod.clone(),
            candidate.matched_bytes.to_string(),
            format!("{:.2}", candidate.ratio),
            candidate.queue.to_string(),
            candidate.kv_usage.map_or_else(|| "stale".to_owned(), |usage| format!("{usage:.2}")),
            candidate.work.map_or_else(|| "-".to_owned(), |work| format!("{work:.0}")),
        ]);
    }
    table.column_iter_mut().skip(2).for_each(|column| {
        column.set_cell_alignment(CellAlignment::Right);
    });
    let _ = writeln!(text, "{}", table.trim_fmt());
    let n_hidden = explained.n_candidates.saturating_sub(explained.candidates.len());
    if n_hidden > 0 {
        let _ = writeln!(text, "  and {n_hidden} more, which the record does not show");
    }
    text
}

/// The reason in words.
fn why(explained: &Explained, reason: &str) -> String {
    let total = explained.total_bytes;
    let threshold = explained.threshold.unwrap_or_default();
    let longest = explained.candidates.iter().map(|candidate| candidate.ratio).fold(0.0, f64::max);
    match reason {
        "prefix" => {
            format!("prefix, it holds {longest:.2} > {threshold:.2} of the prompt's {total} bytes")
        }
        "spill" => {
            format!("spill, the holder of {longest:.2} of the prompt's {total} bytes has too much to do")
        }
        "lora" => "lora, it has the adapter or room for it".to_owned(),
        "load" if total > 0 => {
            format!("load, no pod holds more than {threshold:.2} of the prompt's {total} bytes")
        }
        "load" => "load, there is no prefix to go by".to_owned(),
        "only_endpoint" => "only_endpoint, there is no other".to_owned(),
        other => other.to_owned(),
    }
}

#[expect(clippy::disallowed_methods, reason = "a command is an edge that hands the time in")]
fn now() -> Now {
    Now { instant: Instant::now(), wall: SystemTime::now() }
}
