//! `e2e run`: starts the cluster, runs the checks, ends it and reports. The report is written however the run ends.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use lab::check::Group;
use lab::cluster::{Cluster, Options};
use lab::engine::Engine;
use lab::flags::{ClusterArgs, options, requests};
use lab::journal::Journal;
use lab::on::{InstallArgs, OnArgs};
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
    #[command(flatten)]
    pub on: OnArgs,
    #[command(flatten)]
    pub install: InstallArgs,
}

pub async fn run(args: RunArgs) -> Result<End> {
    let session = Session::new(args.cluster.verbose)?;
    let options = prepared(&args)?;
    let mut checks = Checks::new(&args, &options, &session)?;
    let outcome = match session.programs(&args.cluster.programs).await? {
        None => Outcome::Interrupted,
        Some(programs) => {
            // The run's time does not include building and downloading programs.
            checks.restart_clock();
            let work = async |cluster: &Cluster| checks.run(cluster).await;
            session.with(options, &programs, work).await?.transpose()?.unwrap_or(Outcome::Interrupted)
        }
    };
    session.ui.finish();
    checks.report(outcome)
}

/// Clears the run's directory, and returns the options of the cluster for the checks.
///
/// # Errors
/// When the directory cannot be cleared.
pub fn prepared(args: &RunArgs) -> Result<Options> {
    let run_dir = args.report_dir.join("run");
    clear(&run_dir)?;
    options(&args.cluster, &run_dir)
}

fn text(report: &Report, written: &[PathBuf]) -> String {
    let summary = summary::render(report, stdout_style());
    let html = written.last().map_or_else(String::new, |path| format!("report: {}\n", path.display()));
    format!("\n{summary}{html}")
}

/// The checks of one run, on a cluster of any provider, and what the report says of them.
#[derive(Debug)]
pub struct Checks<'a> {
    args: &'a RunArgs,
    session: &'a Session,
    journal: Journal,
    requests: Requests,
    started: String,
    stopwatch: Stopwatch,
    manifests: Vec<PathBuf>,
    replicas: usize,
    ports: (u16, u16),
    /// Time since the end of the checks.
    stopping: Option<Stopwatch>,
}

impl<'a> Checks<'a> {
    /// Reads the requests, and starts the clock.
    ///
    /// # Errors
    /// When the requests cannot be written to the run's directory.
    pub fn new(args: &'a RunArgs, options: &Options, session: &'a Session) -> Result<Self> {
        Ok(Self {
            args,
            session,
            journal: Journal::default(),
            requests: Requests::new(requests(options)?),
            started: utc_now().truncate_to_second().format(&Rfc3339).unwrap_or_default(),
            stopwatch: Stopwatch::start(),
            manifests: options.manifests.clone(),
            replicas: 0,
            ports: (0, 0),
            stopping: None,
        })
    }

    /// Starts the clock again.
    pub fn restart_clock(&mut self) {
        self.started = utc_now().truncate_to_second().format(&Rfc3339).unwrap_or_default();
        self.stopwatch = Stopwatch::start();
    }

    /// Runs the groups of checks that are asked for, and keeps the cluster afterwards if that is asked for.
    ///
    /// # Errors
    /// When the cluster lacks a listener of the tutorial's.
    pub async fn run(&mut self, cluster: &Cluster) -> Result<Outcome> {
        let Session { ui, interrupt } = self.session;
        let RunArgs { only, keep, .. } = self.args;
        self.replicas = cluster.pods().len();
        self.ports = (cluster.gateway("http")?.port(), cluster.gateway("llm-gw")?.port());
        self.journal.part(Part { name: "start".to_owned(), wall_s: self.stopwatch.elapsed().as_secs_f64() });
        let settings = (self.requests.clone(), self.args.cluster.time_scale(), self.stopwatch);
        let lab = Lab::new(cluster, &self.journal, ui, settings);
        let groups = if only.is_empty() { Group::ALL.to_vec() } else { only.clone() };
        let outcome = match interrupt.unless(scenario::run(&lab, &groups)).await {
            Some(()) => Outcome::Passed,
            None => Outcome::Interrupted,
        };
        if *keep && outcome == Outcome::Passed {
            let _ = interrupt.unless(keep_running(&lab, ui)).await;
        }
        self.stopping = Some(Stopwatch::start());
        Ok(outcome)
    }

    /// Writes the report and prints its summary.
    ///
    /// # Errors
    /// When the report cannot be written.
    pub fn report(&self, outcome: Outcome) -> Result<End> {
        if let Some(stopping) = &self.stopping {
            self.journal.part(Part { name: "stop".to_owned(), wall_s: stopping.elapsed().as_secs_f64() });
        }
        let report = self.journal.report(self.described(outcome));
        let written = report.write(&self.args.report_dir)?;
        output::print(&match self.args.json {
            true => format!("{}\n", serde_json::to_string_pretty(&report)?),
            false => text(&report, &written),
        });
        Ok(match report.run.outcome {
            Outcome::Passed => End::Good,
            Outcome::Failed => End::Failed,
            Outcome::Interrupted => End::Interrupted,
        })
    }

    fn described(&self, outcome: Outcome) -> Run {
        let (http_port, llm_port) = self.ports;
        let only = &self.args.only;
        let sources: Vec<String> = self.manifests.iter().map(|source| source.display().to_string()).collect();
        let mut notes = Vec::new();
        if !only.is_empty() {
            let names: Vec<&str> = only.iter().map(|group| group.name()).collect();
            notes.push(format!("only {} ran, as asked for with --only", names.join(", ")));
        }
        if self.args.install.engine == Engine::Vllm {
            notes.push(
                "real engines, as asked for with --engine: skipped is what only mock-vllm has".to_owned(),
            );
        }
        for (port, documented) in [(http_port, 8080), (llm_port, 8081)] {
            if port != 0 && port != documented {
                notes.push(format!("port {documented} was taken: {port} stands for it"));
            }
        }
        Run {
            started: self.started.clone(),
            outcome,
            elapsed_s: self.stopwatch.elapsed().as_secs_f64(),
            manifests: sources.join(", "),
            replicas: self.replicas,
            time_scale: self.args.cluster.time_scale(),
            http_port,
            llm_port,
            notes,
        }
    }
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
