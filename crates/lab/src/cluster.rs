//! A running cluster as a scenario sees it: gateway addresses, pods, logs, and the faults that it can cause.
//!
//! It must not know how requests are sent or judged.
//!
//! ```text
//! Options + Programs ──► Cluster::start ──► local (one task: pods, pickers, Envoy) ──► Status (watch)
//!                            ▲ kill_pod, kill_picker, restart, apply …      each child behind `e2e guard`
//! ```

pub mod supervisor;
mod local;

pub mod authority;

pub mod programs;

mod envoy;

mod process;

mod ports;

mod desired;

mod probe;

mod http;

mod command;

pub mod manifests;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::cluster::local::{Command, Local, Reply, View};
use crate::cluster::manifests::Manifests;
use crate::cluster::programs::Programs;

/// Commands that may wait for the task. Scenarios send one at a time.
const COMMANDS: usize = 16;

/// Settings of a cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// Directory whose `*.yaml` files (without subdirectories) are the cluster's objects. It is watched and never
    /// changed.
    pub manifests: PathBuf,
    /// Directory for logs and generated files, created if it is missing. Each cluster needs its own.
    pub run_dir: PathBuf,
    /// Replicas of every Deployment in place of `spec.replicas`, until that field is edited.
    pub replicas: Option<u32>,
    /// Processes of each picker; they report to each other where they send requests.
    pub pickers: u32,
    /// Virtual seconds per second of wall time in the engines.
    pub time_scale: f64,
    /// Arguments appended to every engine's command line; they win over the Deployment's own.
    pub engine_args: Vec<String>,
    /// Arguments appended to every picker's command line.
    pub picker_args: Vec<String>,
    /// True if clients may ask which pod was picked and why. Here the user of the lab is also its operator.
    pub explains: bool,
    /// Longest time until a pod, a picker or Envoy is ready, for each of them.
    pub ready_timeout: Duration,
}

impl Options {
    /// Makes options for the tutorial's cluster in real time: the manifests' replicas, no further arguments, 30 s to
    /// get ready.
    pub fn new(manifests: impl Into<PathBuf>, run_dir: impl Into<PathBuf>) -> Self {
        Self {
            manifests: manifests.into(),
            run_dir: run_dir.into(),
            replicas: None,
            pickers: 1,
            time_scale: 1.0,
            engine_args: Vec::new(),
            picker_args: Vec::new(),
            explains: true,
            ready_timeout: Duration::from_secs(30),
        }
    }
}

/// Settings for a restart of pods and pickers, in place of those in [`Options`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fresh {
    pub engine_args: Vec<String>,
    pub picker_args: Vec<String>,
    pub explains: bool,
    /// Processes of each picker; `None` for the number in the options.
    pub pickers: Option<u32>,
}

impl Default for Fresh {
    fn default() -> Self {
        Self { engine_args: Vec::new(), picker_args: Vec::new(), explains: true, pickers: None }
    }
}

/// An event that a waiting person would like to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "text")]
pub enum Event {
    /// Work that begins, such as `starting 5 pods of default/qwen`; it ends when the next step begins.
    Step(String),
    /// A fact, such as the port that is used in place of a taken one.
    Note(String),
    /// Something that the user probably did not want; the cluster goes on.
    Warning(String),
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step(text) | Self::Note(text) => f.write_str(text),
            Self::Warning(text) => write!(f, "warning: {text}"),
        }
    }
}

/// Callback for the events of a cluster, in their order; may be called from any thread.
pub type Progress = Arc<dyn Fn(Event) + Send + Sync>;

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
    pub health: SocketAddr,
    /// Serves `/metrics`, `/healthz` and `/debug/decisions`.
    pub metrics: SocketAddr,
    pub log: PathBuf,
}

/// Paths of a run's files, all in its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFiles {
    pub dir: PathBuf,
}

impl RunFiles {
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// JSON lines, one per request and listener; Envoy flushes them every 100 ms.
    pub fn access_log(&self) -> PathBuf {
        self.logs().join("envoy-access.log")
    }

    pub fn envoy_log(&self) -> PathBuf {
        self.logs().join("envoy.log")
    }

    pub fn envoy_dir(&self) -> PathBuf {
        self.dir.join("envoy")
    }

    /// File from which a picker reads its pools and models.
    pub fn pools(&self, picker: &str) -> PathBuf {
        self.dir.join(format!("pools-{picker}.yaml"))
    }

    pub fn endpoints(&self) -> PathBuf {
        self.dir.join("endpoints.yaml")
    }

    /// Certificate authority that Envoy trusts, in PEM.
    pub fn authority(&self) -> PathBuf {
        self.dir.join("tls/ca.crt")
    }

    /// Directory with `tls.crt` and `tls.key` of a picker.
    pub fn identity(&self, picker: &str) -> PathBuf {
        self.dir.join("tls").join(picker)
    }
}

/// Handle of a running cluster. [`Cluster::stop`] ends every process and waits; dropping the handle ends them without
/// waiting.
#[must_use = "dropping a cluster ends it"]
#[derive(Debug)]
pub struct Cluster {
    files: RunFiles,
    ready_timeout: Duration,
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<View>,
    task: JoinHandle<()>,
}

impl Cluster {
    /// Starts everything and returns when it is ready.
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
        tokio::pin!(stop);
        let ready_timeout = options.ready_timeout;
        let (commands, received) = mpsc::channel(COMMANDS);
        let files = RunFiles { dir: std::path::absolute(&options.run_dir)? };
        // `Local::start` does not await anything after its first child has started, so dropping it leaves no child
        // behind.
        let (local, view) = tokio::select! {
            started = Local::start(options, programs, progress, received) => started?,
            () = &mut stop => return Ok(None),
        };
        let task = TaskTracker::new().spawn(local.run());
        let cluster = Self { files, ready_timeout, commands, view, task };
        let settled = tokio::select! {
            settled = cluster.settled() => settled.map(Some),
            () = &mut stop => Ok(None),
        };
        match settled {
            Ok(Some(_)) => Ok(Some(cluster)),
            Ok(None) => cluster.stop().await.map(|()| None),
            Err(error) => {
                cluster.stop().await?;
                Err(error)
            }
        }
    }

    pub fn files(&self) -> &RunFiles {
        &self.files
    }

    /// Returns the newest status; cheap.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.view.borrow().status)
    }

    /// Waits for a status that is newer than the last one returned here; `None` if the cluster has ended.
    pub async fn changed(&mut self) -> Option<Arc<Status>> {
        self.view.changed().await.ok()?;
        Some(Arc::clone(&self.view.borrow_and_update().status))
    }

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

    /// Waits for [`Status::settled`] and returns that status.
    ///
    /// # Errors
    /// When it takes too long: twice the options' `ready_timeout` (once for the processes, once for Envoy's
    /// configuration) and the delays of the probes. The error has the last lines of the log of its cause.
    pub async fn settled(&self) -> Result<Arc<Status>> {
        let mut view = self.view.clone();
        let limit = self.ready_timeout * 2 + view.borrow().patience;
        let wait = view.wait_for(|view| view.status.settled || view.status.trouble.is_some());
        let status = match timeout(limit, wait).await {
            Ok(Ok(view)) => Arc::clone(&view.status),
            Ok(Err(_)) => bail!("the cluster has ended"),
            Err(_) => bail!("the cluster is not ready after {limit:?}: {}", self.status().summary()),
        };
        if let Some(trouble) = &status.trouble {
            bail!("{trouble}");
        }
        let pickers = status.pickers.iter().filter(|picker| picker.running);
        let pickers: Vec<SocketAddr> = pickers.map(|picker| picker.grpc).collect();
        timeout(self.ready_timeout, http::until_healthy(status.admin, &pickers))
            .await
            .with_context(|| format!("Envoy finds a picker down that is ready, among {pickers:?}"))?;
        Ok(status)
    }

    /// Kills a pod like `kill -9` and returns when the process is gone. Its endpoint is removed at once, and after a
    /// short back-off a pod with another name replaces it. Await [`Cluster::settled`] to see both.
    pub async fn kill_pod(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.command(|reply| Command::KillPod { name, reply }).await
    }

    /// Kills every picker like `kill -9`; they stay down until [`Cluster::start_pickers`].
    pub async fn kill_pickers(&self) -> Result<()> {
        self.command(|reply| Command::KillPickers { name: None, reply }).await
    }

    /// Kills the picker of this name like `kill -9`; it stays down until [`Cluster::start_pickers`].
    pub async fn kill_picker(&self, name: &str) -> Result<()> {
        let name = Some(name.to_owned());
        self.command(|reply| Command::KillPickers { name, reply }).await
    }

    /// Makes every picker hang (`true`) or continue (`false`).
    pub async fn hang_pickers(&self, hang: bool) -> Result<()> {
        self.command(|reply| Command::HangPickers { hang, reply }).await
    }

    /// Ends a picker as a rolling update does, with SIGTERM and time to drain, and returns when its successor serves.
    pub async fn replace_picker(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.command(|reply| Command::ReplacePicker { name, reply }).await?;
        self.settled().await.map(drop)
    }

    /// Starts the killed pickers again on their ports, and returns when they serve.
    pub async fn start_pickers(&self) -> Result<()> {
        self.command(|reply| Command::StartPickers { reply }).await?;
        self.settled().await.map(drop)
    }

    /// Replaces every pod and picker with a new one (empty caches, empty index), and returns when the cluster has
    /// settled. Envoy stays. New pods get new log files; a picker's log is continued.
    pub async fn restart(&self, fresh: Fresh) -> Result<()> {
        self.command(|reply| Command::Restart { fresh, reply }).await?;
        self.settled().await.map(drop)
    }

    /// Returns the manifests in force.
    pub fn manifests(&self) -> Manifests {
        Manifests::clone(&self.view.borrow().manifests)
    }

    /// Puts other manifests in force and returns when the cluster has settled on them. They go into a copy under the
    /// run directory, which is watched from now on; the user's files are not touched.
    ///
    /// # Errors
    /// When the manifests are wrong; the previous ones stay in force.
    pub async fn apply(&self, manifests: &Manifests) -> Result<()> {
        let manifests = manifests.clone();
        self.command(|reply| Command::Apply { manifests, reply }).await?;
        self.settled().await.map(drop)
    }

    /// Goes back to the user's manifests after [`Cluster::apply`], and returns when the cluster has settled.
    pub async fn reset_manifests(&self) -> Result<()> {
        self.command(|reply| Command::ResetManifests { reply }).await?;
        self.settled().await.map(drop)
    }

    /// Ends every process and waits for it.
    pub async fn stop(self) -> Result<()> {
        // An error means that the task has already ended.
        let _ = self.commands.send(Command::Stop).await;
        self.task.await.context("end the cluster")
    }

    async fn command(&self, command: impl FnOnce(Reply) -> Command) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        let ended = || format!("the cluster has ended: {}", self.status().summary());
        self.commands.send(command(reply)).await.ok().with_context(ended)?;
        answer.await.ok().with_context(ended)?
    }
}

/// Returns the last `n_lines` of a log for an error message; empty if the log cannot be read.
pub fn log_tail(path: &Path, n_lines: usize) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(n_lines)..].join("\n")
}
