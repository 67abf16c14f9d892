//! `e2e compare`: runs policies under workloads that distinguish good routers from bad ones, in virtual time.

pub mod matrix;
pub mod output;
pub mod page;
pub mod ranking;
pub mod shapes;
pub mod traces;
pub mod workloads;

mod charts;

use std::path::Path;

use anyhow::{Context as _, Result, anyhow, ensure};

use self::matrix::{POLICIES, Plan, Row, Source};
use self::shapes::SHAPES;
use self::traces::Traced;
use self::workloads::WORKLOADS;
use crate::cli::{CompareArgs, End};
use crate::ui::{self, Ui};

/// Largest share by which the default policy's mean TTFT may exceed the best router's.
const MARGIN: f64 = 0.1;

pub fn run(args: &CompareArgs) -> Result<End> {
    let ui = Ui::new(false);
    let traces = traces(args, &ui)?;
    let drawn = WORKLOADS.iter().filter(|workload| args.traces.is_empty() && workload.is_wanted(&args.only));
    let shaped = SHAPES.iter().filter(|shape| args.traces.is_empty() && shape.is_wanted(&args.only));
    let traced = traces.iter().map(|(name, requests)| Source::Traced(name, requests));
    let sources: Vec<Source<'_>> =
        drawn.map(Source::Drawn).chain(shaped.map(Source::Shaped)).chain(traced).collect();
    if sources.is_empty() {
        let shapes = SHAPES.iter().map(|shape| shape.name);
        let names: Vec<&str> = WORKLOADS.iter().map(|workload| workload.name).chain(shapes).collect();
        return Err(anyhow!("--only {}: the workloads are {}", args.only.join(", "), names.join("; ")));
    }
    let mut loads = args.loads.clone();
    loads.sort_by(f64::total_cmp);
    loads.dedup();
    let plan = Plan { sources, loads, seeds: args.seeds };
    ui.step(&format!(
        "{} workloads, {} loads, {} policies, {} seeds",
        plan.sources.len(),
        plan.loads.len(),
        POLICIES.len(),
        args.seeds
    ));
    let rows = plan.run(&|n_done, n_all| {
        if n_done % (n_all / 10).max(1) == 0 {
            ui.note(&format!("{n_done} of {n_all} runs"));
        }
    })?;
    if let Some(dir) = &args.report_dir {
        write_report(dir, &rows, args)?;
        ui.note(&format!("report: {}", dir.join("compare.html").display()));
    }
    ui.finish();
    ui::print(&match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&output::document(&rows, args.seeds, MARGIN))?),
        false => output::text(&rows, args.seeds),
    });
    let is_ranked = ranking::rankings(&rows, args.seeds).iter().all(|ranking| ranking.holds);
    Ok(if is_ranked && rows.iter().all(|row| row.excess() <= MARGIN) { End::Good } else { End::Failed })
}

/// Writes `compare.html`, `compare.json` and `compare.md`.
fn write_report(dir: &Path, rows: &[Row], args: &CompareArgs) -> Result<()> {
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
