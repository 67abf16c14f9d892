//! `e2e compare`: runs policies under workloads that distinguish good routers from bad ones, in virtual time.

pub mod output;
pub mod page;
pub mod ranking;
pub mod matrix;
pub mod shapes;
pub mod workloads;
pub mod traces;

mod charts;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Args;
use lab::flags::time_scale;
use lab::ui::Ui;
use load::ending::End;
use load::output::print;

use self::matrix::{Matrix, POLICIES, RequestSource, WorkloadRow};
use self::shapes::SHAPES;
use self::traces::Traced;
use self::workloads::WORKLOADS;

/// Largest share by which the default policy's mean TTFT may exceed the best router's.
const MARGIN: f64 = 0.1;

const COMPARE_HELP: &str = "\
Each policy routes each load over four A10s with 96,000 tokens of KV cache each, with the code of the picker and the
mock servers. Two of the loads have the shape of public traces; --trace reads a trace itself.

Examples:
  e2e compare --report-dir report         every workload; report/compare.html has the charts
  e2e compare --only 'hot prefix' --loads 0.5,1,1.5,2,3 --seeds 10
  e2e compare --trace conversation_trace.jsonl --speed 0.1

Exit codes:
  0    the default policy is within 10 % of the best router everywhere, and policies rank as published elsewhere
  1    one of the two does not hold
  2    wrong usage, or a file that cannot be read";

#[derive(Debug, Clone, Args)]
#[command(after_help = COMPARE_HELP)]
pub struct CompareArgs {
    /// Runs of each policy under each workload
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub seeds: u32,
    /// Run only workloads whose names contain this word; repeat for several
    #[arg(long, value_name = "WORD")]
    pub only: Vec<String>,
    /// Run this recorded load instead, in Mooncake's JSON lines or Azure's CSV; repeat for several
    #[arg(long = "trace", value_name = "FILE", conflicts_with = "only")]
    pub traces: Vec<PathBuf>,
    /// Play traces this many times faster
    #[arg(long, value_name = "F", default_value_t = 1.0, value_parser = time_scale)]
    pub speed: f64,
    /// Multiples of each load's own rate to run
    #[arg(long, value_name = "F,F", value_delimiter = ',', default_value = "0.5,1,1.5", value_parser = time_scale)]
    pub loads: Vec<f64>,
    /// Directory for compare.html, compare.json and compare.md
    #[arg(long, value_name = "DIR")]
    pub report_dir: Option<PathBuf>,
    /// Print JSON in place of the tables
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: &CompareArgs) -> Result<End> {
    let ui = Ui::new(false);
    let traces = traces(args, &ui)?;
    let drawn = WORKLOADS.iter().filter(|workload| args.traces.is_empty() && workload.is_wanted(&args.only));
    let shaped = SHAPES.iter().filter(|shape| args.traces.is_empty() && shape.is_wanted(&args.only));
    let traced = traces.iter().map(|(name, requests)| RequestSource::Traced(name, requests));
    let sources: Vec<RequestSource<'_>> =
        drawn.map(RequestSource::Drawn).chain(shaped.map(RequestSource::Shaped)).chain(traced).collect();
    if sources.is_empty() {
        let shapes = SHAPES.iter().map(|shape| shape.name);
        let names: Vec<&str> = WORKLOADS.iter().map(|workload| workload.name).chain(shapes).collect();
        return Err(anyhow!("--only {}: the workloads are {}", args.only.join(", "), names.join("; ")));
    }
    let mut loads = args.loads.clone();
    loads.sort_by(f64::total_cmp);
    loads.dedup();
    let matrix = Matrix { sources, loads, seeds: args.seeds };
    ui.step(&format!(
        "{} workloads, {} loads, {} policies, {} seeds",
        matrix.sources.len(),
        matrix.loads.len(),
        POLICIES.len(),
        args.seeds
    ));
    let rows = matrix.run(&|n_done, n_all| {
        if n_done % (n_all / 10).max(1) == 0 {
            ui.note(&format!("{n_done} of {n_all} runs"));
        }
    })?;
    if let Some(dir) = &args.report_dir {
        write_report(dir, &rows, args)?;
        ui.note(&format!("report: {}", dir.join("compare.html").display()));
    }
    ui.finish();
    print(&match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&output::document(&rows, args.seeds, MARGIN))?),
        false => output::text(&rows, args.seeds),
    });
    let is_ranked = ranking::rankings(&rows, args.seeds).iter().all(|ranking| ranking.holds);
    Ok(if is_ranked && rows.iter().all(|row| row.excess() <= MARGIN) { End::Good } else { End::Failed })
}

/// Writes `compare.html`, `compare.json` and `compare.md`.
fn write_report(dir: &Path, rows: &[WorkloadRow], args: &CompareArgs) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let document = output::document(rows, args.seeds, MARGIN);
    for (name, text) in [
        ("compare.html", page::render(rows, &document, args.seeds)?),
        ("compare.json", serde_json::to_string_pretty(&document)?),
        ("compare.md", output::markdown(rows, args.seeds)),
    ] {
        let path = dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Reads the traces that were asked for, each with its file's name.
fn traces(args: &CompareArgs, ui: &Ui) -> Result<Vec<(String, Vec<Traced>)>> {
    let mut traces = Vec::new();
    for path in &args.traces {
        let (kept, n_left_out) = workloads::fitting(traces::read(path)?, args.speed);
        let name = path.display().to_string();
        if n_left_out > 0 {
            ui.note(&format!("{name}: {n_left_out} requests are too long for the pods, and left out"));
        }
        ensure!(!kept.is_empty(), "{name}: every request is too long for the pods");
        traces.push((name, kept));
    }
    Ok(traces)
}
