//! A running cluster as a scenario sees it: gateway addresses, pods, logs, and the faults it can ask for.
//!
//! Must not know how requests are sent or judged.
//!
//! ```text
//! Options + Programs ──► Cluster::start ──► local (one task: pods, pickers, Envoy) ──► Status (watch)
//!                            ▲ kill_pod, kill_picker, restart, apply …      each child behind `e2e guard`
//! ```

pub mod authority;
pub mod supervisor;

mod local;

pub mod programs;

mod envoy;

mod process;

mod http;

mod ports;

mod desired;

mod probe;

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

/// Commands under way; a scenario sends one after the other.
const COMMANDS: usize = 16;

/// What to stand up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    /// Directory whose `*.yaml` files (not those of its subdirectories) are the cluster's objects. It is watched, and
    /// never written to.
    pub manifests: PathBuf,
    /// Where logs and generated files go; created when missing. One cluster per run directory.
    pub run_dir: PathBuf,
    /// Replaces `spec.replicas` of every Deployment, until that number is edited.
    pub replicas: Option<u32>,
    /// Processes of every picker; they tell each other what they send where.
    pub pickers: u32,
    /// Virtual seconds per wall second in the engines.
    pub time_scale: f64,
    /// Appended to every engine's command line; a repeated flag wins over the Deployment's.
    pub engine_args: Vec<String>,
    /// Appended to the picker's command line.
    pub picker_args: Vec<String>,
    /// Whether clients that ask are told which pod was picked, and why. Who runs the lab is its operator.
    pub explains: bool,
    /// How long the pods, the picker and Envoy may take until they are ready, each.
    pub ready_timeout: Duration,
}

impl Options {
    /// The tutorial's cluster in real time: the manifests' own replicas, no further arguments, 30 s to get ready.
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

/// How pods and pickers are started anew, in place of what the options said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fresh {
    pub engine_args: Vec<String>,
    pub picker_args: Vec<String>,
    pub explains: bool,
    /// `None`: as many as the options say.
    pub pickers: Option<u32>,
}

impl Default for Fresh {
    fn default() -> Self {
        Self { engine_args: Vec::new(), picker_args: Vec::new(), explains: true, pickers: None }
    }
}

/// Something that happened and that a person who waits would like to read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "text")]
pub enum Event {
    /// Work that has begun, such as `starting 5 pods of default/qwen`; ends when the next step begins.
    Step(String),
    /// A fact worth a line of its own, such as the port that is used instead of a taken one.
    Note(String),
    /// Something that is probably not as the user wants it; the cluster goes on.
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

/// Receives the events of a cluster, from any thread, in order.
pub type Progress = Arc<dyn Fn(Event) + Send + Sync>;

/// The cluster at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// True when every desired pod serves, the pickers run (unless one was killed on purpose), and Envoy and the
    /// pickers have taken the present configuration in.
    pub settled: bool,
    /// Ready and starting pods, by name.
    pub pods: Vec<Pod>,
    pub gateways: Vec<GatewayAddress>,
    pub pickers: Vec<Picker>,
    pub admin: SocketAddr,
    /// Why the newest manifests were not taken; the previous ones stay in force.
    pub config_error: Option<String>,
    /// What keeps the cluster from settling, with the tail of the culprit's log.
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

    /// One line, for an error.
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
    /// Passes its readiness probe, so that it is an endpoint.
    pub ready: bool,
    /// stdout and stderr.
    pub log: PathBuf,
    /// JSON lines, one per request that ended.
    pub request_log: PathBuf,
}

/// Where a Gateway's listener can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayAddress {
    pub gateway: String,
    pub namespace: String,
    pub listener: String,
    /// As the manifest has it; `address` differs when that port was taken.
    pub port: u16,
    pub address: SocketAddr,
}

/// One endpoint-picker process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Picker {
    /// As the managed component names its Deployment: `epp-<namespace>-<extensionRef.name>`; the second process of it and
    /// those after it have a number behind that.
    pub name: String,
    pub running: bool,
    pub grpc: SocketAddr,
    pub health: SocketAddr,
    /// `/metrics`, `/healthz`, `/debug/decisions`.
    pub metrics: SocketAddr,
    pub log: PathBuf,
}

/// The files of a run, all under its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFiles {
    pub dir: PathBuf,
}

impl RunFiles {
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// JSON lines, one per request and listener; flushed every 100 ms.
    pub fn access_log(&self) -> PathBuf {
        self.logs().join("envoy-access.log")
    }

    pub fn envoy_log(&self) -> PathBuf {
        self.logs().join("envoy.log")
    }

    pub fn envoy_dir(&self) -> PathBuf {
        self.dir.join("envoy")
    }

    /// Pools and models of one picker, as it reads them.
    pub fn pools(&self, picker: &str) -> PathBuf {
        self.dir.join(format!("pools-{picker}.yaml"))
    }

    pub fn endpoints(&self) -> PathBuf {
        self.dir.join("endpoints.yaml")
    }

    /// The authority that Envoy believes, PEM.
    pub fn authority(&self) -> PathBuf {
        self.dir.join("tls/ca.crt")
    }

    /// Where one picker has `tls.crt` and `tls.key`.
    pub fn identity(&self, picker: &str) -> PathBuf {
        self.dir.join("tls").join(picker)
    }
}

/// A running cluster; dropping it without [`Cluster::stop`] also ends every process, without waiting.
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
    /// Manifests that cannot be translated; a process that ends early or is not ready in time, with the tail of its
    /// log. Nothing is left running.
    pub async fn start(options: Options, programs: Programs, progress: Progress) -> Result<Self> {
        let started = Self::start_unless(options, programs, progress, std::future::pending()).await?;
        Ok(started.expect("nothing stops it"))
    }

    /// The same, unless `stop` resolves before it is ready: then everything is ended, and there is none.
    ///
    /// # Errors
    /// Those of [`Cluster::start`].
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
        // It waits for nothing after its first child is started, so that dropping it leaves none behind.
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

    /// The newest status; cheap.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.view.borrow().status)
    }

    /// Resolves when the status has changed after the one that was last waited for; `None` when the cluster has ended.
    pub async fn changed(&mut self) -> Option<Arc<Status>> {
        self.view.changed().await.ok()?;
        Some(Arc::clone(&self.view.borrow_and_update().status))
    }

    /// The address of the listener named `listener` (such as `http` or `llm-gw`) of any Gateway.
    ///
    /// # Errors
    /// When there is none, naming those that exist.
    pub fn gateway(&self, listener: &str) -> Result<SocketAddr> {
        let status = self.status();
        let found = status.gateways.iter().find(|gateway| gateway.listener == listener);
        found.map(|gateway| gateway.address).with_context(|| {
            let names: Vec<&str> = status.gateways.iter().map(|gateway| gateway.listener.as_str()).collect();
            format!("there is no listener {listener}, only {}", names.join(", "))
        })
    }

    /// The pods that are ready.
    pub fn pods(&self) -> Vec<Pod> {
        self.status().pods.iter().filter(|pod| pod.ready).cloned().collect()
    }

    /// Waits until [`Status::settled`], and returns that status.
    ///
    /// # Errors
    /// When it takes longer than the options' `ready_timeout` (each for a process to get ready, after the delays of its
    /// probes, and for Envoy to take its configuration in), with the tail of the culprit's log.
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

    /// Kills a pod as `kill -9` does, and returns when the process is gone. Its endpoint is removed at once; a pod with
    /// another name replaces it after a short back-off. Await [`Cluster::settled`] for both to be in effect.
    pub async fn kill_pod(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.command(|reply| Command::KillPod { name, reply }).await
    }

    /// Kills every picker as `kill -9` does, and keeps it down until [`Cluster::start_pickers`].
    pub async fn kill_pickers(&self) -> Result<()> {
        self.command(|reply| Command::KillPickers { name: None, reply }).await
    }

    /// The same with one of them, by its name.
    pub async fn kill_picker(&self, name: &str) -> Result<()> {
        let name = Some(name.to_owned());
        self.command(|reply| Command::KillPickers { name, reply }).await
    }

    /// Makes every picker hang, or lets it go on.
    pub async fn hang_pickers(&self, hang: bool) -> Result<()> {
        self.command(|reply| Command::HangPickers { hang, reply }).await
    }

    /// Ends a picker as a rolling update does, by SIGTERM and in its own time, and returns when its successor serves.
    pub async fn replace_picker(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.command(|reply| Command::ReplacePicker { name, reply }).await?;
        self.settled().await.map(drop)
    }

    /// Starts the pickers again, on the same ports, and returns when they serve.
    pub async fn start_pickers(&self) -> Result<()> {
        self.command(|reply| Command::StartPickers { reply }).await?;
        self.settled().await.map(drop)
    }

    /// Replaces every pod and picker by fresh ones (empty caches, empty index), and returns when the cluster has settled.
    /// Envoy stays; logs get new files for the new pods, the picker's is appended to.
    pub async fn restart(&self, fresh: Fresh) -> Result<()> {
        self.command(|reply| Command::Restart { fresh, reply }).await?;
        self.settled().await.map(drop)
    }

    /// The manifests now in force.
    pub fn manifests(&self) -> Manifests {
        Manifests::clone(&self.view.borrow().manifests)
    }

    /// Puts other manifests in force, in a scratch copy under the run directory (the user's files are not touched), and
    /// returns when the cluster has settled on them. From now on the scratch copy is watched in place of the user's.
    ///
    /// # Errors
    /// What is wrong with them; the previous ones stay in force.
    pub async fn apply(&self, manifests: &Manifests) -> Result<()> {
        let manifests = manifests.clone();
        self.command(|reply| Command::Apply { manifests, reply }).await?;
        self.settled().await.map(drop)
    }

    /// Back to the user's manifests after [`Cluster::apply`]; returns when the cluster has settled.
    pub async fn reset_manifests(&self) -> Result<()> {
        self.command(|reply| Command::ResetManifests { reply }).await?;
        self.settled().await.map(drop)
    }

    /// Ends every process and waits for it.
    pub async fn stop(self) -> Result<()> {
        // A task that has ended by itself needs no order.
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

/// The last `n_lines` of a log, for an error message; empty when it cannot be read.
pub fn log_tail(path: &Path, n_lines: usize) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(n_lines)..].join("\n")
}
