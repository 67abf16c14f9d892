//! Handle of the local provider's task: commands, faults and pages.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use load::client::Client;
use load::clock::utc_now;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::cluster::authority::{Authority, picker_host};
use crate::cluster::fault::{Fault, Unavailable};
use crate::cluster::local::{Command, CommandReply, Local, View};
use crate::cluster::manifests::Manifests;
use crate::cluster::programs::Programs;
use crate::cluster::provider::{Answer, Provider, Server};
use crate::cluster::relay::Passage;
use crate::cluster::run_files::RunFiles;
use crate::cluster::{Fresh, Options, Progress, Status, http};
use crate::engine::Engine;

/// Commands that may wait for the task. Scenarios send one at a time.
const COMMANDS: usize = 16;

/// Handle of a running local cluster.
#[must_use = "dropping a cluster ends it"]
#[derive(Debug)]
pub struct LocalCluster {
    files: RunFiles,
    engine: Engine,
    ready_timeout: Duration,
    commands: mpsc::Sender<Command>,
    view: watch::Receiver<View>,
    task: JoinHandle<()>,
    /// Asks for pages; scenarios have clients of their own.
    client: Client,
    originals: Mutex<Originals>,
}

/// Texts of the files that faults have changed, by path.
#[derive(Debug, Default)]
struct Originals(BTreeMap<PathBuf, Vec<u8>>);

// === impl LocalCluster ===

impl LocalCluster {
    /// Starts everything, unless `stop` resolves before it is ready: then ends everything and returns `None`.
    ///
    /// # Errors
    /// When the manifests cannot be translated, or a process ends early or is not ready in time.
    pub(in crate::cluster) async fn start_unless(
        options: Options,
        programs: Programs,
        progress: Progress,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<Self>> {
        tokio::pin!(stop);
        let (engine, ready_timeout) = (options.engine, options.ready_timeout);
        let (commands, received) = mpsc::channel(COMMANDS);
        let files = RunFiles { dir: std::path::absolute(&options.run_dir)? };
        // `Local::start` does not await anything after its first child has started, so dropping it leaves no child
        // behind.
        let (local, view) = tokio::select! {
            started = Local::start(options, programs, progress, received) => started?,
            () = &mut stop => return Ok(None),
        };
        let task = TaskTracker::new().spawn(local.run());
        let (client, originals) = (Client::default(), Mutex::default());
        let cluster = Self { files, engine, ready_timeout, commands, view, task, client, originals };
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

    /// Returns the newest status; cheap.
    pub(in crate::cluster) fn status(&self) -> Arc<Status> {
        Arc::clone(&self.view.borrow().status)
    }

    /// Waits for a status that is newer than the last one returned here; `None` if the cluster has ended.
    pub(in crate::cluster) async fn changed(&mut self) -> Option<Arc<Status>> {
        self.view.changed().await.ok()?;
        Some(Arc::clone(&self.view.borrow_and_update().status))
    }

    /// Waits for [`Status::settled`] and returns that status.
    ///
    /// # Errors
    /// When it takes too long: twice the options' `ready_timeout` (once for the processes, once for Envoy's
    /// configuration) and the delays of the probes. The error has the last lines of the log of its cause.
    pub(in crate::cluster) async fn settled(&self) -> Result<Arc<Status>> {
        let status = self.ready().await?;
        let pickers = status.pickers.iter().filter(|picker| picker.running);
        let pickers: Vec<SocketAddr> = pickers.map(|picker| picker.grpc).collect();
        timeout(self.ready_timeout, http::until_healthy(status.admin, &pickers))
            .await
            .with_context(|| format!("Envoy finds a picker down that is ready, among {pickers:?}"))?;
        Ok(status)
    }

    /// Waits like [`Self::settled`], whatever Envoy's health checks find.
    async fn ready(&self) -> Result<Arc<Status>> {
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
        Ok(status)
    }

    /// Refuses faults of pickers if there are none; a process of this machine can have all others.
    pub(in crate::cluster) fn can(&self, fault: &Fault) -> Result<(), Unavailable> {
        match fault {
            Fault::KillPod(_) | Fault::EmptyEndpoints => Ok(()),
            Fault::KillController
            | Fault::RestartGatewayController
            | Fault::RemakePools
            | Fault::HangApiServer => Err(Unavailable(
                "without Kubernetes there are no objects, and no controllers of them".to_owned(),
            )),
            Fault::EndConnections | Fault::HoldAnswers | Fault::LoseMessages
                if self.status().pickers.iter().any(|picker| picker.metrics.is_none()) =>
            {
                Err(Unavailable("a relay understands only the lab's own picker".to_owned()))
            }
            Fault::KillPicker(_)
            | Fault::KillPickers
            | Fault::HangPickers
            | Fault::EndConnections
            | Fault::HoldAnswers
            | Fault::LoseMessages
            | Fault::ReplacePicker(_)
            | Fault::ForgeCertificates
            | Fault::EmptyPools => {
                let reason = "no picker runs, because the manifests have no InferencePool";
                let is_there = !self.status().pickers.is_empty();
                is_there.then_some(()).ok_or_else(|| Unavailable(reason.to_owned()))
            }
        }
    }

    pub(in crate::cluster) async fn inflict(&self, fault: &Fault) -> Result<()> {
        match fault {
            Fault::KillPod(name) => {
                let name = name.clone();
                self.command(|reply| Command::KillPod { name, reply }).await
            }
            Fault::KillPicker(name) => self.kill_pickers(Some(name.clone())).await,
            Fault::KillPickers => self.kill_pickers(None).await,
            Fault::HangPickers => self.command(|reply| Command::HangPickers { hang: true, reply }).await,
            Fault::EndConnections => self.disturb_pickers(Passage::GoAway).await,
            Fault::HoldAnswers => self.disturb_pickers(Passage::Held).await,
            Fault::LoseMessages => self.disturb_pickers(Passage::Closed).await,
            Fault::ReplacePicker(name) => {
                let name = name.clone();
                self.command(|reply| Command::ReplacePicker { name, reply }).await?;
                self.settled().await.map(drop)
            }
            Fault::ForgeCertificates => {
                let stranger = Authority::new(utc_now())?;
                self.kill_pickers(None).await?;
                for picker in &self.status().pickers {
                    let identity = self.files.identity(&picker.name);
                    self.originals.lock().await.keep(files_in(&identity)?)?;
                    stranger.write_identity(&identity, &picker_host(&picker.name))?;
                }
                self.command(|reply| Command::StartPickers { reply }).await?;
                // Envoy soon finds a picker down that it does not trust.
                self.ready().await.map(drop)
            }
            Fault::EmptyPools => self.originals.lock().await.empty(self.pool_files()),
            Fault::EmptyEndpoints => self.originals.lock().await.empty(vec![self.files.endpoints()]),
            Fault::KillController
            | Fault::RestartGatewayController
            | Fault::RemakePools
            | Fault::HangApiServer => Ok(self.can(fault)?),
        }
    }

    pub(in crate::cluster) async fn end(&self, fault: &Fault) -> Result<()> {
        match fault {
            Fault::KillPod(_)
            | Fault::EndConnections
            | Fault::ReplacePicker(_)
            | Fault::KillController
            | Fault::RestartGatewayController
            | Fault::RemakePools
            | Fault::HangApiServer => Ok(()),
            Fault::HoldAnswers | Fault::LoseMessages => self.disturb_pickers(Passage::Open).await,
            Fault::KillPicker(_) | Fault::KillPickers => self.start_pickers().await,
            Fault::HangPickers => self.command(|reply| Command::HangPickers { hang: false, reply }).await,
            Fault::ForgeCertificates => {
                self.kill_pickers(None).await?;
                for picker in &self.status().pickers {
                    self.originals.lock().await.restore(&files_in(&self.files.identity(&picker.name))?)?;
                }
                self.start_pickers().await
            }
            Fault::EmptyPools => self.originals.lock().await.restore(&self.pool_files()),
            Fault::EmptyEndpoints => self.originals.lock().await.restore(&[self.files.endpoints()]),
        }
    }

    fn pool_files(&self) -> Vec<PathBuf> {
        self.status().pickers.iter().map(|picker| self.files.pools(&picker.name)).collect()
    }

    async fn kill_pickers(&self, name: Option<String>) -> Result<()> {
        self.command(|reply| Command::KillPickers { name, reply }).await
    }

    async fn disturb_pickers(&self, passage: Passage) -> Result<()> {
        self.command(|reply| Command::DisturbPickers { passage, reply }).await
    }

    async fn start_pickers(&self) -> Result<()> {
        self.command(|reply| Command::StartPickers { reply }).await?;
        self.settled().await.map(drop)
    }

    pub(in crate::cluster) async fn page(&self, address: SocketAddr, path: &str) -> Result<String> {
        let reply = self.client.get(&format!("http://{address}{path}")).await?;
        let text = reply.text();
        ensure!(reply.status.is_success(), "{address}{path} answers {}: {text}", reply.status);
        Ok(text)
    }

    /// Replaces every pod and picker with a new one (empty caches, empty index) under the user's manifests, and returns
    /// when the cluster has settled. Envoy stays. New pods get new log files; a picker's log is continued.
    pub(in crate::cluster) async fn restart(&self, fresh: Fresh) -> Result<()> {
        self.command(|reply| Command::Restart { fresh, reply }).await?;
        self.settled().await.map(drop)
    }

    /// Returns the manifests in force.
    pub(in crate::cluster) fn manifests(&self) -> Manifests {
        Manifests::clone(&self.view.borrow().manifests)
    }

    /// Puts other manifests in force and returns when the cluster has settled on them. They go into a copy under the
    /// run directory, which is watched from now on; the user's files are not touched.
    ///
    /// # Errors
    /// When the manifests are wrong; the previous ones stay in force.
    pub(in crate::cluster) async fn apply(&self, manifests: &Manifests) -> Result<()> {
        let manifests = manifests.clone();
        self.command(|reply| Command::Apply { manifests, reply }).await?;
        self.settled().await.map(drop)
    }

    /// Goes back to the user's manifests after [`LocalCluster::apply`], and returns when the cluster has settled.
    pub(in crate::cluster) async fn reset_manifests(&self) -> Result<()> {
        self.command(|reply| Command::ResetManifests { reply }).await?;
        self.settled().await.map(drop)
    }

    /// Ends every process and waits for it.
    pub(in crate::cluster) async fn stop(self) -> Result<()> {
        // An error means that the task has already ended.
        let _ = self.commands.send(Command::Stop).await;
        self.task.await.context("end the cluster")
    }

    async fn command(&self, command: impl FnOnce(CommandReply) -> Command) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        let ended = || format!("the cluster has ended: {}", self.status().summary());
        self.commands.send(command(reply)).await.ok().with_context(ended)?;
        answer.await.ok().with_context(ended)?
    }
}

// === impl Provider for LocalCluster ===

impl Provider for LocalCluster {
    fn engine(&self) -> Engine {
        self.engine
    }

    fn files(&self) -> &RunFiles {
        &self.files
    }

    fn status(&self) -> Arc<Status> {
        self.status()
    }

    fn settled(&self) -> Answer<'_, Arc<Status>> {
        Box::pin(self.settled())
    }

    fn restart(&self, fresh: Fresh) -> Answer<'_, ()> {
        Box::pin(self.restart(fresh))
    }

    fn manifests(&self) -> Manifests {
        self.manifests()
    }

    fn apply<'a>(&'a self, manifests: &'a Manifests) -> Answer<'a, ()> {
        Box::pin(self.apply(manifests))
    }

    fn reset_manifests(&self) -> Answer<'_, ()> {
        Box::pin(self.reset_manifests())
    }

    fn can(&self, fault: &Fault) -> Result<(), Unavailable> {
        self.can(fault)
    }

    fn inflict<'a>(&'a self, fault: &'a Fault) -> Answer<'a, ()> {
        Box::pin(self.inflict(fault))
    }

    fn end<'a>(&'a self, fault: &'a Fault) -> Answer<'a, ()> {
        Box::pin(self.end(fault))
    }

    fn reach(&self, address: SocketAddr) -> Answer<'_, SocketAddr> {
        Box::pin(async move { Ok(address) })
    }

    fn page<'a>(&'a self, server: Server<'a>, path: &'a str) -> Answer<'a, String> {
        let address = match server {
            Server::Picker(picker) => picker.metrics,
            Server::Pod(pod) => Some(pod.address),
            Server::Envoy => Some(self.status().admin),
        };
        Box::pin(
            async move { self.page(address.context("a picker of the user's has no pages")?, path).await },
        )
    }

    fn stop(self: Box<Self>) -> Answer<'static, ()> {
        Box::pin((*self).stop())
    }
}

// === impl Originals ===

impl Originals {
    /// Keeps the text of these files, unless a fault that lasts has kept it before.
    fn keep(&mut self, files: Vec<PathBuf>) -> Result<()> {
        for path in files {
            if let Entry::Vacant(entry) = self.0.entry(path) {
                let path = entry.key();
                let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
                entry.insert(text);
            }
        }
        Ok(())
    }

    fn empty(&mut self, files: Vec<PathBuf>) -> Result<()> {
        self.keep(files.clone())?;
        for path in files {
            std::fs::write(&path, b"").with_context(|| format!("empty {}", path.display()))?;
        }
        Ok(())
    }

    fn restore(&mut self, files: &[PathBuf]) -> Result<()> {
        for path in files {
            if let Some(text) = self.0.remove(path) {
                std::fs::write(path, text).with_context(|| format!("restore {}", path.display()))?;
            }
        }
        Ok(())
    }
}

fn files_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let read = || std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>();
    read().with_context(|| format!("read {}", dir.display()))
}
