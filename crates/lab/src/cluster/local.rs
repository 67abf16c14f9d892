//! The local provider: pods, pickers and Envoy are processes of this machine, and one task owns them all.
//!
//! ```text
//! select: command | manifests changed | a child ended | a probe answered ──► act ──► reconcile ──► publish (files, status)
//! ```
//!
//! `reconcile` starts and ends children until they are what the manifests ask for, like a Deployment's controller.
//! `publish` writes the files that Envoy and the pickers read, and the status that scenarios read.

pub mod handle;
mod listeners;
mod publish;
mod pickers;
mod pods;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use gateway_config::attachment::Responses;
use inference_api::object::ObjectKey;
use load::clock::utc_now;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use crate::cluster::authority::Authority;
use crate::cluster::desired::Desired;
use crate::cluster::envoy::{EnvoyFiles, write_whole};
use crate::cluster::greeting::Security;
use crate::cluster::local::listeners::BoundPort;
use crate::cluster::local::pickers::PickerProcess;
use crate::cluster::local::pods::{Backoff, PodProcess};
use crate::cluster::manifests::Manifests;
use crate::cluster::ports;
use crate::cluster::process::{Exit, Process};
use crate::cluster::programs::Programs;
use crate::cluster::relay::Passage;
use crate::cluster::run_files::RunFiles;
use crate::cluster::{Fresh, Options, Progress, ProgressEvent, Status, http, log_tail};

/// Time between two looks at the manifests.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// Time until pickers use what was added to their files; they need at most 300 ms.
const PICKER_RELOAD: Duration = Duration::from_millis(400);
/// Time until pickers drop what was removed from their files, which they do 2 s later.
const PICKER_REMOVAL: Duration = PICKER_RELOAD.saturating_add(Duration::from_secs(2));
/// Longest wait for all children to end; a watchdog kills its child after 2 s.
const STOP: Duration = Duration::from_secs(5);
/// Lines of a log that an error shows.
const TAIL_LINES: usize = 15;

/// A command of a scenario to the task. The reply comes when the task has carried it out, which may be before its
/// effect.
#[derive(Debug)]
pub(super) enum Command {
    KillPod { name: String, reply: CommandReply },
    KillPickers { name: Option<String>, reply: CommandReply },
    HangPickers { hang: bool, reply: CommandReply },
    DisturbPickers { passage: Passage, reply: CommandReply },
    ReplacePicker { name: String, reply: CommandReply },
    StartPickers { reply: CommandReply },
    Restart { fresh: Fresh, reply: CommandReply },
    Apply { manifests: Manifests, reply: CommandReply },
    ResetManifests { reply: CommandReply },
    Stop,
}

pub(super) type CommandReply = oneshot::Sender<Result<()>>;

/// The part of the task's state that the handle can see.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) status: Arc<Status>,
    pub(super) manifests: Arc<Manifests>,
    /// Longest time for which probes delay a pod that answers at once.
    pub(super) patience: Duration,
}

/// Something that the task must act on.
#[derive(Debug)]
enum Action {
    Command(Option<Command>),
    LookAtManifests,
    PodEnded {
        name: String,
        status: std::io::Result<ExitStatus>,
    },
    PodReady {
        name: String,
    },
    PodLate {
        name: String,
    },
    /// The pod's readiness has changed.
    PodProbed {
        name: String,
        answer: String,
    },
    PodDead {
        name: String,
        why: String,
    },
    BackoffOver {
        deployment: String,
    },
    PickerDue {
        name: String,
    },
    PickerEnded {
        name: String,
        status: std::io::Result<ExitStatus>,
    },
    PickerReady {
        name: String,
        start: u64,
        security: Security,
    },
    PickerLate {
        name: String,
        start: u64,
    },
    EnvoyEnded {
        status: std::io::Result<ExitStatus>,
    },
    /// Envoy and the pickers use the publication of this number.
    Taken {
        publication: u64,
    },
    NotTaken {
        publication: u64,
    },
}

/// Decision whether the task continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Continue,
    Stop,
}

#[derive(Debug)]
pub(super) struct Local {
    options: Options,
    programs: Programs,
    progress: Events,
    files: RunFiles,
    /// Files and directories that are watched.
    sources: Vec<PathBuf>,
    /// Manifests as last read, valid or not.
    seen: Manifests,
    /// Last valid manifests; `desired` is what they ask for.
    in_force: Arc<Manifests>,
    desired: Desired,
    /// Replicas that the manifests asked for at the start, by Deployment.
    first_replicas: BTreeMap<ObjectKey, u32>,
    config_error: Option<String>,
    trouble: Option<String>,
    /// Ports by the listener's xDS name.
    listener_ports: BTreeMap<String, BoundPort>,
    admin: SocketAddr,
    /// Number of restarts; it distinguishes pods from before and after a restart.
    epoch: u64,
    pods: Vec<PodProcess>,
    /// Replies to send when pods that were killed on purpose have ended, by pod name.
    dying: BTreeMap<String, CommandReply>,
    n_pods_started: u64,
    backoffs: BTreeMap<String, Backoff>,
    pickers: Vec<PickerProcess>,
    /// Processes of each picker.
    n_pickers: u32,
    /// Way of responses.
    responses: Responses,
    authority: Authority,
    n_pickers_started: u64,
    envoy_files: EnvoyFiles,
    envoy: Option<Process>,
    /// Number of the newest publication; `taken` is that of the newest one in effect.
    publication: u64,
    taking: Option<Job>,
    taken: u64,
    published: publish::Published,
    n_children: usize,
    jobs: JoinSet<Action>,
    commands: mpsc::Receiver<Command>,
    view: watch::Sender<View>,
}

/// Handle of a background job that is aborted when its owner is dropped.
#[derive(Debug)]
struct Job(AbortHandle);

impl Drop for Job {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The progress callback, with the `Debug` that the task's state needs.
struct Events(Progress);

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

// === impl Local ===

impl Local {
    /// Starts every process; they are not ready yet.
    pub(super) async fn start(
        options: Options,
        programs: Programs,
        progress: Progress,
        commands: mpsc::Receiver<Command>,
    ) -> Result<(Self, watch::Receiver<View>)> {
        let seen = Manifests::read(&options.manifests)?;
        let desired = Desired::new(&seen, options.strictness, &options.picker)?;
        let files = RunFiles { dir: std::path::absolute(&options.run_dir)? };
        if files.logs().exists() {
            std::fs::remove_dir_all(files.logs()).context("remove the logs of an earlier run")?;
        }
        std::fs::create_dir_all(files.logs())
            .with_context(|| format!("create {}", files.logs().display()))?;
        let authority = Authority::new(utc_now())?;
        let ca_file = files.authority();
        std::fs::create_dir_all(ca_file.parent().unwrap_or(&files.dir))
            .context("create the directory of certificates")?;
        write_whole(&ca_file, authority.certificate())?;
        let admin = ports::free()?;
        let in_force = Arc::new(seen.clone());
        let status = Status::starting(admin);
        let (view, watch) = watch::channel(View {
            status: Arc::new(status),
            manifests: Arc::clone(&in_force),
            patience: Duration::ZERO,
        });
        let (n_pickers, responses) = (options.pickers, options.responses);
        let mut local = Self {
            sources: options.manifests.clone(),
            envoy_files: EnvoyFiles::create(files.envoy_dir())?,
            progress: Events(progress),
            options,
            programs,
            files,
            seen,
            in_force,
            first_replicas: desired
                .deployments
                .iter()
                .map(|found| (found.key.clone(), found.replicas))
                .collect(),
            desired,
            config_error: None,
            trouble: None,
            listener_ports: BTreeMap::new(),
            admin,
            epoch: 0,
            pods: Vec::new(),
            dying: BTreeMap::new(),
            n_pods_started: 0,
            backoffs: BTreeMap::new(),
            pickers: Vec::new(),
            responses,
            n_pickers,
            authority,
            n_pickers_started: 0,
            envoy: None,
            publication: 0,
            taking: None,
            taken: 0,
            published: publish::Published::default(),
            n_children: 0,
            jobs: JoinSet::new(),
            commands,
            view,
        };
        local.start_children().await?;
        Ok((local, watch))
    }

    async fn start_children(&mut self) -> Result<()> {
        for note in self.desired.notes.clone() {
            self.note(note);
        }
        self.choose_listener_ports()?;
        self.plan_pickers()?;
        let rendered = self.render()?;
        // Envoy creates its access log during validation, too.
        self.envoy_files.validate(&self.programs.envoy, &rendered.static_equivalent).await?;
        let n_pods: u32 = self.desired.deployments.iter().map(|deployment| self.replicas(deployment)).sum();
        self.step(format!("starting {n_pods} pods, the picker and Envoy"));
        self.publish()?;
        let program = self.envoy_files.program(&self.programs.envoy, self.files.envoy_log());
        let (envoy, exit) = Process::spawn(&self.programs.driver, &program)?;
        self.envoy = Some(envoy);
        self.watch_exit(exit, |status| Action::EnvoyEnded { status });
        self.reconcile()?;
        self.publish()
    }

    /// Runs until it gets a stop command, its handle is dropped, or a vital process ends.
    pub(super) async fn run(mut self) {
        self.look_again();
        loop {
            let action = self.next_action().await;
            let next = match self.act(action).await {
                Ok(next) => next,
                Err(error) => {
                    self.trouble = Some(format!("{error:#}"));
                    Next::Stop
                }
            };
            let went_on = match next {
                Next::Continue => self.reconcile().and_then(|()| self.publish()),
                Next::Stop => break,
            };
            if let Err(error) = went_on {
                self.trouble = Some(format!("{error:#}"));
                break;
            }
        }
        self.send_view(false);
        self.stop().await;
    }

    async fn next_action(&mut self) -> Action {
        loop {
            tokio::select! {
                command = self.commands.recv() => return Action::Command(command),
                Some(job) = self.jobs.join_next() => match job {
                    Ok(action) => return action,
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
            }
        }
    }

    async fn act(&mut self, action: Action) -> Result<Next> {
        match action {
            Action::Command(None | Some(Command::Stop)) => return Ok(Next::Stop),
            Action::Command(Some(command)) => self.command(command).await?,
            Action::LookAtManifests => {
                self.look_at_manifests().await;
                self.look_again();
            }
            Action::PodEnded { name, status } => self.pod_ended(&name, status),
            Action::PodReady { name } => self.pod_ready(&name),
            Action::PodLate { name } => self.pod_late(&name),
            Action::PodProbed { name, answer } => self.pod_probed(&name, &answer),
            Action::PodDead { name, why } => self.pod_dead(&name, &why),
            Action::BackoffOver { deployment } => self.backoff_over(&deployment),
            Action::PickerDue { name } => self.picker_due(&name),
            Action::PickerEnded { name, status } => self.picker_ended(&name, status),
            Action::PickerReady { name, start, security } => self.picker_ready(&name, start, security),
            Action::PickerLate { name, start } => self.picker_late(&name, start),
            Action::EnvoyEnded { status } => {
                self.n_children -= 1;
                let log = self.files.envoy_log();
                bail!("Envoy has ended ({}):\n{}", describe(status), log_tail(&log, TAIL_LINES));
            }
            Action::Taken { publication } => self.taken = self.taken.max(publication),
            Action::NotTaken { publication } => {
                if publication == self.publication {
                    let log = log_tail(&self.files.envoy_log(), TAIL_LINES);
                    self.trouble = Some(format!("Envoy has not taken its configuration in:\n{log}"));
                }
            }
        }
        Ok(Next::Continue)
    }

    async fn command(&mut self, command: Command) -> Result<()> {
        self.trouble = None;
        match command {
            Command::KillPod { name, reply } => self.kill_pod(name, reply),
            Command::KillPickers { name, reply } => self.kill_pickers(name.as_deref(), reply),
            Command::HangPickers { hang, reply } => {
                self.hang_pickers(hang);
                let _ = reply.send(Ok(()));
            }
            Command::ReplacePicker { name, reply } => {
                let _ = reply.send(self.replace_picker(&name));
            }
            Command::StartPickers { reply } => {
                let outcome = self.start_pickers();
                let _ = reply.send(outcome);
            }
            Command::DisturbPickers { passage, reply } => {
                let _ = reply.send(self.disturb_pickers(passage));
            }
            Command::Restart { fresh, reply } => {
                let outcome = self.restart(fresh).await;
                let _ = reply.send(outcome);
            }
            Command::Apply { manifests, reply } => {
                let outcome = self.apply(manifests).await;
                let _ = reply.send(outcome);
            }
            Command::ResetManifests { reply } => {
                let outcome = self.reset_manifests().await;
                let _ = reply.send(outcome);
            }
            Command::Stop => {}
        }
        Ok(())
    }

    async fn restart(&mut self, fresh: Fresh) -> Result<()> {
        if self.sources != self.options.manifests {
            self.take_manifests_back().await?;
        }
        let Fresh { engine_args, picker_args, explains, responses, pickers, relayed } = fresh;
        self.options.engine_args = engine_args;
        self.options.picker_args = picker_args;
        self.options.explains = explains;
        self.responses = responses.unwrap_or(self.options.responses);
        self.n_pickers = pickers.unwrap_or(self.options.pickers);
        self.epoch += 1;
        self.backoffs.clear();
        self.restart_pickers();
        self.plan_pickers()?;
        self.relay_pickers(relayed)?;
        self.reconcile()?;
        self.publish()
    }

    async fn apply(&mut self, manifests: Manifests) -> Result<()> {
        self.put_in_force(&manifests).await?;
        let scratch = self.files.dir.join("manifests");
        if scratch.exists() {
            std::fs::remove_dir_all(&scratch).context("remove the scratch manifests")?;
        }
        std::fs::create_dir_all(&scratch).context("create the scratch manifests")?;
        for (name, text) in &manifests.files {
            let name = name.trim_start_matches('/').replace('/', "_");
            std::fs::write(scratch.join(&name), text).with_context(|| format!("write {name}"))?;
        }
        self.sources = vec![scratch];
        self.seen = Manifests::read(&self.sources)?;
        self.reconcile()?;
        self.publish()
    }

    async fn reset_manifests(&mut self) -> Result<()> {
        self.take_manifests_back().await?;
        self.reconcile()?;
        self.publish()
    }

    /// Puts the user's manifests in force, for the next reconciliation.
    async fn take_manifests_back(&mut self) -> Result<()> {
        let manifests = Manifests::read(&self.options.manifests)?;
        self.put_in_force(&manifests).await?;
        self.sources = self.options.manifests.clone();
        self.seen = manifests;
        Ok(())
    }

    /// Reads the manifests and follows a change. An invalid one is reported once, and again only when it changes.
    async fn look_at_manifests(&mut self) {
        let read = Manifests::read(&self.sources);
        let manifests = match read {
            Ok(manifests) if manifests == self.seen => return,
            Ok(manifests) => manifests,
            Err(error) => return self.refuse(&error),
        };
        self.seen = manifests.clone();
        match self.put_in_force(&manifests).await {
            Ok(()) => self.note("the manifests have changed and are in force".to_owned()),
            Err(error) => self.refuse(&error),
        }
    }

    fn refuse(&mut self, error: &anyhow::Error) {
        let message = format!("{error:#}");
        if self.config_error.as_ref() != Some(&message) {
            (self.progress.0)(ProgressEvent::Warning(format!(
                "the previous manifests stay in force: {message}"
            )));
            self.config_error = Some(message);
        }
    }

    /// Checks the manifests as a whole, also with Envoy's own validation, and puts them in force if they are valid.
    async fn put_in_force(&mut self, manifests: &Manifests) -> Result<()> {
        let desired = Desired::new(manifests, self.options.strictness, &self.options.picker)?;
        let previous = std::mem::replace(&mut self.desired, desired);
        let listener_ports = self.listener_ports.clone();
        if let Err(error) = self.check_desired().await {
            self.desired = previous;
            self.listener_ports = listener_ports;
            return Err(error);
        }
        for note in self.desired.notes.iter().filter(|note| !previous.notes.contains(note)) {
            self.note(note.clone());
        }
        self.in_force = Arc::new(manifests.clone());
        self.config_error = None;
        Ok(())
    }

    async fn check_desired(&mut self) -> Result<()> {
        self.choose_listener_ports()?;
        self.plan_pickers()?;
        let rendered = self.render()?;
        if self.envoy_files.needs_validation(&rendered) {
            self.envoy_files.validate(&self.programs.envoy, &rendered.static_equivalent).await?;
        }
        Ok(())
    }

    async fn stop(mut self) {
        self.envoy = None;
        self.pods.clear();
        self.pickers.clear();
        let ended = async {
            while self.n_children > 0 {
                let Some(action) = self.jobs.join_next().await else { return };
                if matches!(
                    action,
                    Ok(Action::PodEnded { .. } | Action::PickerEnded { .. } | Action::EnvoyEnded { .. })
                ) {
                    self.n_children -= 1;
                }
            }
        };
        if timeout(STOP, ended).await.is_err() {
            (self.progress.0)(ProgressEvent::Warning("some processes have not ended in time".to_owned()));
        }
    }

    fn watch_exit(
        &mut self,
        exit: Exit,
        action: impl FnOnce(std::io::Result<ExitStatus>) -> Action + Send + 'static,
    ) {
        self.n_children += 1;
        self.jobs.spawn(async move { action(exit.wait().await) });
    }

    /// Starts a job that reports `ready` when a GET answers with 200, or `late` if that takes too long.
    #[must_use]
    fn probe(&mut self, address: SocketAddr, path: &'static str, ready: Action, late: Action) -> Job {
        let limit = self.options.ready_timeout;
        Job(self.jobs.spawn(async move {
            match timeout(limit, http::until_ok(address, path)).await {
                Ok(()) => ready,
                Err(_) => late,
            }
        }))
    }

    fn look_again(&mut self) {
        self.jobs.spawn(async {
            sleep(WATCH_INTERVAL).await;
            Action::LookAtManifests
        });
    }

    fn step(&self, text: String) {
        (self.progress.0)(ProgressEvent::Step(text));
    }

    fn note(&self, text: String) {
        (self.progress.0)(ProgressEvent::Note(text));
    }

    fn warn(&self, text: String) {
        (self.progress.0)(ProgressEvent::Warning(text));
    }
}

fn describe(status: std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}
