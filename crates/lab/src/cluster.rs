//! A running cluster as a scenario sees it: gateway addresses, pods, logs, and the faults that it can cause.
//!
//! It must not know how requests are sent or judged.
//!
//! ```text
//! Options + Programs ──► Cluster::start ──► local (one task: pods, pickers, Envoy) ──► Status (watch), evidence
//!                            ▲ inflict(fault), restart, apply …             each child behind `e2e watchdog`
//!                        Cluster::of ◄── another provider, which writes the same evidence to files
//! ```

pub mod supervisor;

pub mod local;

pub mod provider;

pub mod fault;

pub mod authority;

pub mod programs;

mod envoy;

mod relay;

mod ports;

pub mod explain;

mod desired;

mod their_picker;

mod picker_config;

mod adapters;

mod mounts;

mod notes;

mod reading;

mod templates;

mod refusal;

mod workload;

mod probe;

mod http;

mod greeting;

mod process;

pub mod picker_choice;

pub mod run_files;

pub mod manifests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use gateway_config::attachment::Responses;
use serde::{Deserialize, Serialize};
use tracing::info;

use crate::cluster::fault::{Fault, Unavailable};
use crate::cluster::local::handle::LocalCluster;
use crate::cluster::manifests::Manifests;
use crate::cluster::picker_choice::PickerChoice;
use crate::cluster::programs::Programs;
use crate::cluster::provider::{Provider, Server};
use crate::cluster::run_files::RunFiles;
use crate::engine::Engine;
use crate::evidence::access_log::{self, AccessEntry};
use crate::evidence::picker::{self, Decision, LogLine, parse_decisions};
use crate::evidence::pod::{self, PodEntry};

/// Settings of a cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// Files and directories of the cluster's objects. They are watched and never changed.
    pub manifests: Vec<PathBuf>,
    /// Treatment of what has no effect here.
    pub strictness: Strictness,
    /// Directory for logs and generated files, created if it is missing. Each cluster needs its own.
    pub run_dir: PathBuf,
    /// Replicas of every Deployment in place of `spec.replicas`, until that field is edited.
    pub replicas: Option<u32>,
    /// Processes of each picker; they report to each other where they send requests.
    pub pickers: u32,
    /// Program that the pods run.
    pub engine: Engine,
    /// Virtual seconds per second of wall time in the engines; 1 for those that are not ours.
    pub time_scale: f64,
    /// Arguments appended to every engine's command line; they win over the Deployment's own.
    pub engine_args: Vec<String>,
    /// Arguments appended to every picker's command line.
    pub picker_args: Vec<String>,
    /// The program that picks.
    pub picker: PickerChoice,
    /// True if clients may ask which pod was picked and why. Here the user of the lab is also its operator.
    pub explains: bool,
    /// Way of the responses of pools that allow it.
    pub responses: Responses,
    /// Longest time until a pod, a picker or Envoy is ready, for each of them.
    pub ready_timeout: Duration,
}

impl Options {
    /// Makes options for the tutorial's cluster in real time: the manifests' replicas, no further arguments, 30 s to
    /// get ready.
    pub fn new(manifests: impl Into<PathBuf>, run_dir: impl Into<PathBuf>) -> Self {
        Self {
            manifests: vec![manifests.into()],
            strictness: Strictness::default(),
            run_dir: run_dir.into(),
            replicas: None,
            pickers: 1,
            engine: Engine::default(),
            time_scale: 1.0,
            engine_args: Vec::new(),
            picker_args: Vec::new(),
            picker: PickerChoice::Ours,
            explains: true,
            responses: Responses::default(),
            ready_timeout: Duration::from_secs(30),
        }
    }
}

/// Treatment of objects and fields that have no effect here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Strictness {
    /// They are listed.
    #[default]
    Lenient,
    /// They are errors.
    Strict,
}

/// Settings for a restart of pods and pickers, in place of those in [`Options`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fresh {
    pub engine_args: Vec<String>,
    pub picker_args: Vec<String>,
    pub explains: bool,
    /// Way of responses; `None` for the one in the options.
    pub responses: Option<Responses>,
    /// Processes of each picker; `None` for the number in the options.
    pub pickers: Option<u32>,
    /// True if a relay is between Envoy and each picker, which can disturb their connections. They speak without TLS then.
    pub relayed: bool,
}

impl Default for Fresh {
    fn default() -> Self {
        Self {
            engine_args: Vec::new(),
            picker_args: Vec::new(),
            explains: true,
            responses: None,
            pickers: None,
            relayed: false,
        }
    }
}

/// An event that a waiting person would like to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "text")]
pub enum ProgressEvent {
    /// Work that begins, such as `starting 5 pods of default/qwen`; it ends when the next step begins.
    Step(String),
    /// A fact, such as the port that is used in place of a taken one.
    Note(String),
    /// Something that the user probably did not want; the cluster goes on.
    Warning(String),
}

impl fmt::Display for ProgressEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(text) | Self::Note(text) => f.write_str(text),
            Self::Warning(text) => write!(f, "warning: {text}"),
        }
    }
}

/// Callback for the events of a cluster, in their order; may be called from any thread.
pub type Progress = Arc<dyn Fn(ProgressEvent) + Send + Sync>;

/// State of the cluster at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// True if every desired pod serves, every picker runs (except those killed on purpose), and Envoy and the pickers
    /// use the current configuration.
    pub settled: bool,
    /// Pods that are ready or starting, sorted by name.
    pub pods: Vec<Pod>,
    pub gateways: Vec<GatewayAddress>,
    pub pickers: Vec<Picker>,
    pub admin: SocketAddr,
    /// Reason why the newest manifests were refused; the previous ones stay in force.
    pub config_error: Option<String>,
    /// Problem that keeps the cluster from settling, with the last lines of the log of its cause.
    pub trouble: Option<String>,
}

impl Status {
    fn starting(admin: SocketAddr) -> Self {
        Self {
            settled: false,
            pods: Vec::new(),
            gateways: Vec::new(),
            pickers: Vec::new(),
            admin,
            config_error: None,
            trouble: None,
        }
    }

    /// Describes the state in one line, for an error message.
    pub fn summary(&self) -> String {
        let starting: Vec<&str> =
            self.pods.iter().filter(|pod| !pod.ready).map(|pod| pod.name.as_str()).collect();
        let down: Vec<&str> =
            self.pickers.iter().filter(|picker| !picker.running).map(|picker| picker.name.as_str()).collect();
        match &self.trouble {
            Some(trouble) => trouble.clone(),
            None => format!(
                "{} pods ready, not ready: [{}], pickers down: [{}]",
                self.pods.len() - starting.len(),
                starting.join(", "),
                down.join(", ")
            ),
        }
    }
}

/// One engine process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    pub name: String,
    pub namespace: String,
    pub deployment: String,
    pub address: SocketAddr,
    /// True if the pod passes its readiness probe and so is an endpoint.
    pub ready: bool,
    /// File with the pod's stdout and stderr.
    pub log: PathBuf,
    /// File of JSON lines, one per finished request.
    pub request_log: PathBuf,
}

/// Address of a Gateway's listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayAddress {
    pub gateway: String,
    pub namespace: String,
    pub listener: String,
    /// Port in the manifest; the port of `address` differs if this one was taken.
    pub port: u16,
    pub address: SocketAddr,
}

/// One endpoint-picker process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picker {
    /// Name that the managed component gives the Deployment: `epp-<namespace>-<extensionRef.name>`. From the second
    /// process on, a number follows.
    pub name: String,
    pub running: bool,
    pub grpc: SocketAddr,
    /// `None` for a picker of the user's.
    pub health: Option<SocketAddr>,
    /// Serves `/metrics`, `/healthz` and `/debug/decisions`; `None` for a picker of the user's.
    pub metrics: Option<SocketAddr>,
    pub log: PathBuf,
}

/// A running cluster of one of the providers. [`Cluster::stop`] ends everything and waits; dropping the value ends it
/// without waiting.
#[must_use = "dropping a cluster ends it"]
#[derive(Debug)]
pub struct Cluster {
    provider: Box<dyn Provider>,
}

/// Places in the pickers' logs, for what is logged from then on.
#[derive(Debug)]
pub struct LogMark {
    lens: BTreeMap<PathBuf, usize>,
}

impl Cluster {
    /// Starts a local cluster and returns when it is ready.
    ///
    /// # Errors
    /// When the manifests cannot be translated, or a process ends early or is not ready in time (with the last lines of
    /// its log). Nothing is left running.
    pub async fn start(options: Options, programs: Programs, progress: Progress) -> Result<Self> {
        let started = Self::start_unless(options, programs, progress, std::future::pending()).await?;
        Ok(started.expect("nothing stops it"))
    }

    /// Starts everything like [`Cluster::start`], unless `stop` resolves before it is ready: then ends everything and
    /// returns `None`.
    ///
    /// # Errors
    /// When [`Cluster::start`] fails.
    pub async fn start_unless(
        options: Options,
        programs: Programs,
        progress: Progress,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<Self>> {
        let started = LocalCluster::start_unless(options, programs, progress, stop).await?;
        Ok(started.map(|local| Self::of(Box::new(local))))
    }

    /// Makes a cluster of another provider's that is ready.
    pub fn of(provider: Box<dyn Provider>) -> Self {
        Self { provider }
    }

    /// Returns the program that the pods run.
    pub fn engine(&self) -> Engine {
        self.provider.engine()
    }

    /// Returns the paths of the run's files.
    pub fn files(&self) -> &RunFiles {
        self.provider.files()
    }

    /// Returns the newest status; cheap.
    pub fn status(&self) -> Arc<Status> {
        self.provider.status()
    }

    /// Waits for [`Status::settled`] and returns that status.
    ///
    /// # Errors
    /// When it takes too long. The error names the cause, and has the last lines of its log if it has one.
    pub async fn settled(&self) -> Result<Arc<Status>> {
        self.provider.settled().await
    }

    /// Replaces every pod and picker with a new one (empty caches, empty index) under the user's manifests, and returns
    /// when the cluster has settled. Envoy stays.
    ///
    /// # Errors
    /// [`Unavailable`] when the provider lacks a setting; another error when a pod or a picker does not start.
    pub async fn restart(&self, fresh: Fresh) -> Result<()> {
        if self.engine() == Engine::Vllm && !fresh.engine_args.is_empty() {
            let arguments = fresh.engine_args.join(" ");
            return Err(Unavailable(format!("a real engine keeps its own arguments: {arguments}")).into());
        }
        self.provider.restart(fresh).await
    }

    /// Returns the manifests in force.
    pub fn manifests(&self) -> Manifests {
        self.provider.manifests()
    }

    /// Puts other manifests in force and returns when the cluster has settled on them. The user's files are not touched.
    ///
    /// # Errors
    /// When the manifests are wrong; the previous ones stay in force.
    pub async fn apply(&self, manifests: &Manifests) -> Result<()> {
        self.provider.apply(manifests).await
    }

    /// Goes back to the user's manifests after [`Cluster::apply`], and returns when the cluster has settled.
    ///
    /// # Errors
    /// When the user's manifests are wrong.
    pub async fn reset_manifests(&self) -> Result<()> {
        self.provider.reset_manifests().await
    }

    /// Says if the cluster can cause a fault.
    ///
    /// # Errors
    /// When it cannot, with the reason.
    pub fn can(&self, fault: &Fault) -> Result<(), Unavailable> {
        self.provider.can(fault)
    }

    /// Causes a fault, and returns when it is there. [`Cluster::settled`] waits for what follows, such as the pod that
    /// replaces a dead one.
    ///
    /// # Errors
    /// [`Unavailable`] when the cluster is not able to; another error when it tries and fails.
    pub async fn inflict(&self, fault: &Fault) -> Result<()> {
        self.can(fault)?;
        info!(%fault, "Inflicting a fault");
        self.provider.inflict(fault).await.with_context(|| fault.to_string())
    }

    /// Ends a fault that lasts: killed pickers serve again, hung ones continue, files are what they were.
    ///
    /// # Errors
    /// When the pickers do not serve again.
    pub async fn end(&self, fault: &Fault) -> Result<()> {
        info!(%fault, "Ending a fault");
        self.provider.end(fault).await.with_context(|| format!("end the fault: {fault}"))
    }

    /// Returns an address that leads to a pod's from here.
    ///
    /// # Errors
    /// When there is no way to the pod.
    pub async fn reach(&self, address: SocketAddr) -> Result<SocketAddr> {
        self.provider.reach(address).await
    }

    /// Returns a page of a picker, such as `/metrics`.
    ///
    /// # Errors
    /// When the picker does not answer with success.
    pub async fn picker_page(&self, picker: &Picker, path: &str) -> Result<String> {
        self.provider.page(Server::Picker(picker), path).await
    }

    /// Returns a page of a pod, such as `/metrics`.
    ///
    /// # Errors
    /// When the pod does not answer with success.
    pub async fn pod_page(&self, pod: &Pod, path: &str) -> Result<String> {
        self.provider.page(Server::Pod(pod), path).await
    }

    /// Returns a page of Envoy's admin port, such as `/stats`.
    ///
    /// # Errors
    /// When Envoy does not answer with success.
    pub async fn envoy_page(&self, path: &str) -> Result<String> {
        self.provider.page(Server::Envoy, path).await
    }

    /// Ends everything and waits for it.
    ///
    /// # Errors
    /// When the work of the cluster has failed.
    pub async fn stop(self) -> Result<()> {
        self.provider.stop().await
    }
}

// === impl Cluster, from the run's files ===

impl Cluster {
    /// Returns Envoy's record of every request that has ended.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn access_log(&self) -> Result<Vec<AccessEntry>> {
        access_log::parse(&read(&self.files().access_log()))
            .map_err(|error| anyhow!("read Envoy's access log: {error}"))
    }

    /// Returns the records of `pods`, which may be gone by now, and of the pods that are ready. A real engine keeps none.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn pod_entries(&self, pods: &[Pod]) -> Result<Vec<PodEntry>> {
        if self.engine() == Engine::Vllm {
            return Ok(Vec::new());
        }
        let status = self.status();
        let ready = status.pods.iter().filter(|pod| pod.ready);
        let logs: BTreeSet<&Path> = pods.iter().chain(ready).map(|pod| pod.request_log.as_path()).collect();
        let mut entries = Vec::new();
        for log in logs {
            let read = pod::parse(&read(log));
            entries.extend(read.map_err(|error| anyhow!("read {}: {error}", log.display()))?);
        }
        Ok(entries)
    }

    /// Returns the present end of the pickers' logs.
    pub fn log_mark(&self) -> LogMark {
        let len = |picker: &Picker| (picker.log.clone(), read(&picker.log).len());
        LogMark { lens: self.status().pickers.iter().map(len).collect() }
    }

    /// Returns the pickers' log lines about prefix-aware routing since `mark`.
    pub fn prefix_lines(&self, mark: &LogMark) -> Vec<LogLine> {
        let status = self.status();
        let logs: BTreeSet<&Path> = mark
            .lens
            .keys()
            .map(PathBuf::as_path)
            .chain(status.pickers.iter().map(|picker| picker.log.as_path()))
            .collect();
        let since = |log: &Path| {
            // A picker that has come since then has logged nothing before.
            let from = mark.lens.get(log).copied().unwrap_or(0);
            picker::prefix_aware_lines(read(log).get(from..).unwrap_or_default())
        };
        logs.into_iter().flat_map(since).collect()
    }
}

// === impl Cluster, for every provider ===

impl Cluster {
    /// Returns the address of the listener named `listener` (such as `http` or `llm-gw`) of any Gateway.
    ///
    /// # Errors
    /// When there is no such listener; the error names those that exist.
    pub fn gateway(&self, listener: &str) -> Result<SocketAddr> {
        let status = self.status();
        let found = status.gateways.iter().find(|gateway| gateway.listener == listener);
        found.map(|gateway| gateway.address).with_context(|| {
            let names: Vec<&str> = status.gateways.iter().map(|gateway| gateway.listener.as_str()).collect();
            format!("there is no listener {listener}, only {}", names.join(", "))
        })
    }

    /// Returns the pods that are ready.
    pub fn pods(&self) -> Vec<Pod> {
        self.status().pods.iter().filter(|pod| pod.ready).cloned().collect()
    }

    /// Returns a page of every picker that runs.
    ///
    /// # Errors
    /// When one of them does not answer with success.
    pub async fn picker_pages(&self, path: &str) -> Result<Vec<String>> {
        let mut pages = Vec::new();
        for picker in self.status().pickers.iter().filter(|picker| picker.running) {
            pages.push(self.picker_page(picker, path).await?);
        }
        Ok(pages)
    }

    /// Returns the decisions after number `seq` of every picker that runs.
    ///
    /// # Errors
    /// When a picker does not answer, or its answer is not a list of decisions.
    pub async fn decisions(&self, seq: u64) -> Result<Vec<Decision>> {
        let mut decisions = Vec::new();
        for page in self.picker_pages(&format!("/debug/decisions?after={seq}")).await? {
            let read = parse_decisions(page.as_bytes());
            decisions.extend(read.with_context(|| format!("read the picker's decisions: {page}"))?);
        }
        Ok(decisions)
    }
}

/// Returns the last `n_lines` of a log for an error message; empty if the log cannot be read.
pub fn log_tail(path: &Path, n_lines: usize) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(n_lines)..].join("\n")
}

/// Reads a log; one that does not exist yet is empty.
fn read(log: &Path) -> String {
    std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
