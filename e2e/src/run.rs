//! `e2e run`: starts the cluster, runs the checks, ends it and reports. The report is written however the run ends.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use lab::check::Group;
use lab::cluster::Cluster;
use lab::flags::{ClusterArgs, options, requests};
use lab::journal::Journal;
use lab::report::summary;
use lab::report::{Outcome, Part, Report, Run};
use lab::requests::Requests;
use lab::scenario;
use lab::scenario::lab::Lab;
use lab::session::Session;
use lab::ui::{Ui, stdout_style};
use load::clock::{Stopwatch, utc_now};
use load::ending::End;
use load::output;
use time::format_description::well_known::Rfc3339;

#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Run this group only; repeat for several
    #[arg(long, value_name = "GROUP")]
    pub only: Vec<Group>,
    /// Directory for report.html, report.json, junit.xml and the logs
    #[arg(long, value_name = "DIR", default_value = "report")]
    pub report_dir: PathBuf,
    /// Keep everything running after the last check, until Ctrl-C
    #[arg(long)]
    pub keep: bool,
    /// Print the JSON report on standard output in place of the summary
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

pub async fn run(args: RunArgs) -> Result<End> {
    let RunArgs { cluster, only, report_dir, keep, json } = args;
    let session = Session::new(cluster.verbose)?;
    let journal = Journal::default();
    let run_dir = report_dir.join("run");
    clear(&run_dir)?;
    let (outcome, facts) = asserted(&cluster, (&only, keep), &run_dir, (&journal, &session)).await?;
    session.ui.finish();
    let report = journal.report(facts.run(&cluster, outcome, &only));
    let written = report.write(&report_dir)?;
    output::print(&match json {
        true => format!("{}\n", serde_json::to_string_pretty(&report)?),
        false => text(&report, &written),
    });
    Ok(match report.run.outcome {
        Outcome::Passed => End::Good,
        Outcome::Failed => End::Failed,
        Outcome::Interrupted => End::Interrupted,
    })
}

fn text(report: &Report, written: &[PathBuf]) -> String {
    let summary = summary::render(report, stdout_style());
    let html = written.last().map_or_else(String::new, |path| format!("report: {}\n", path.display()));
    format!("\n{summary}{html}")
}

/// Facts about the run's cluster for the report.
struct Facts {
    started: String,
    stopwatch: Stopwatch,
    manifests: Vec<PathBuf>,
    replicas: usize,
    ports: (u16, u16),
}

impl Facts {
    fn of(manifests: Vec<PathBuf>) -> Self {
        Self {
            started: utc_now().truncate_to_second().format(&Rfc3339).unwrap_or_default(),
            stopwatch: Stopwatch::start(),
            manifests,
            replicas: 0,
            ports: (0, 0),
        }
    }

    fn run(&self, args: &ClusterArgs, outcome: Outcome, only: &[Group]) -> Run {
        let Self { started, stopwatch, manifests, replicas, ports: (http_port, llm_port) } = self;
        let sources: Vec<String> = manifests.iter().map(|source| source.display().to_string()).collect();
        let mut notes = Vec::new();
        if !only.is_empty() {
            let names: Vec<&str> = only.iter().map(|group| group.name()).collect();
            notes.push(format!("only {} ran, as asked for with --only", names.join(", ")));
        }
        for (port, documented) in [(http_port, 8080), (llm_port, 8081)] {
            if *port != 0 && *port != documented {
                notes.push(format!("port {documented} was taken: {port} stands for it"));
            }
        }
        Run {
            started: started.clone(),
            outcome,
            elapsed_s: stopwatch.elapsed().as_secs_f64(),
            manifests: sources.join(", "),
            replicas: *replicas,
            time_scale: args.time_scale(),
            http_port: *http_port,
            llm_port: *llm_port,
            notes,
        }
    }
}

/// Starts the cluster, runs the scenarios and ends the cluster. An interrupt ends the cluster too, and waits for that.
async fn asserted(
    args: &ClusterArgs,
    (only, keep): (&[Group], bool),
    run_dir: &Path,
    (journal, session): (&Journal, &Session),
) -> Result<(Outcome, Facts)> {
    let options = options(args, run_dir)?;
    let Some(programs) = session.programs(&args.programs).await? else {
        return Ok((Outcome::Interrupted, Facts::of(options.manifests)));
    };
    // The run's time does not include building and downloading programs.
    let mut facts = Facts::of(options.manifests.clone());
    let requests = Requests::new(requests(&options)?);
    let Session { ui, interrupt } = session;
    let checked = async |cluster: &Cluster| {
        facts.replicas = cluster.pods().len();
        facts.ports = (cluster.gateway("http")?.port(), cluster.gateway("llm-gw")?.port());
        journal.part(Part { name: "start".to_owned(), wall_s: facts.stopwatch.elapsed().as_secs_f64() });
        let lab = Lab::new(cluster, journal, ui, (requests, args.time_scale(), facts.stopwatch));
        let groups = if only.is_empty() { Group::ALL.to_vec() } else { only.to_vec() };
        let outcome = match interrupt.unless(scenario::run(&lab, &groups)).await {
            Some(()) => Outcome::Passed,
            None => Outcome::Interrupted,
        };
        if keep && outcome == Outcome::Passed {
            let _ = interrupt.unless(keep_running(&lab, ui)).await;
        }
        anyhow::Ok((outcome, Stopwatch::start()))
    };
    let Some(checked) = session.with(options, programs, checked).await? else {
        return Ok((Outcome::Interrupted, facts));
    };
    let (outcome, stopping) = checked?;
    journal.part(Part { name: "stop".to_owned(), wall_s: stopping.elapsed().as_secs_f64() });
    Ok((outcome, facts))
}

async fn keep_running(lab: &Lab<'_>, ui: &Ui) {
    if let Err(error) = lab.fresh(&[]).await {
        ui.note(&format!("warning: {error:#}"));
    }
    ui.note("everything keeps running, with empty caches; Ctrl-C ends it");
    ui.step("kept running");
    std::future::pending().await
}

/// Removes what an earlier run left in its subdirectory of the report.
fn clear(run_dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(run_dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {} of the earlier run", run_dir.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
