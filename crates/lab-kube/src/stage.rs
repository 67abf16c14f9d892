//! A Kubernetes cluster for one command, and the lab's clusters on it, one after the other.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use lab::cluster::fault::Unavailable;
use lab::cluster::programs::ProgramOptions;
use lab::cluster::provider::Answer;
use lab::cluster::{Cluster, Options, Progress};
use lab::engine::Engine;
use lab::on::{InstallArgs, OnArgs, Provider};
use lab::session::{Session, Stage};
use load::interrupt::Interrupt;

use crate::cluster::{self, KubernetesCluster};
use crate::kind::Kind;
use crate::stand::{self, Plan, Standing, Target};

/// The cluster that a command line asks for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub on: &'a OnArgs,
    pub install: &'a InstallArgs,
    pub programs: &'a ProgramOptions,
    /// Version of the running program, with its revision in brackets.
    pub version: &'a str,
}

/// State in which a command leaves a cluster that it has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    Nothing,
    /// All of it, unless the command is interrupted.
    IfDone,
}

/// A Kubernetes cluster that has the components.
#[derive(Debug)]
pub struct KubernetesStage {
    standing: Standing,
    kind: Option<Kind>,
}

impl Stage for KubernetesStage {
    fn can_have(&self, options: &Options) -> Result<(), Unavailable> {
        cluster::can_have(options)
    }

    fn start<'a>(
        &'a self,
        options: Options,
        progress: Progress,
        interrupt: &'a Interrupt,
    ) -> Answer<'a, Option<Cluster>> {
        Box::pin(async move {
            let (standing, kind) = (self.standing.clone(), self.kind.clone());
            let start = async { KubernetesCluster::start(standing, kind, &options, progress).await };
            let started = interrupt.unless(start).await.transpose()?;
            Ok(started.map(|provider| Cluster::of(Box::new(provider))))
        })
    }
}

/// The cluster to use, whose kubeconfig of kind's is this file; `None` for the user's.
///
/// # Errors
/// If none is asked for.
pub fn target(on: &OnArgs, kubeconfig: Option<PathBuf>) -> Result<Target> {
    let OnArgs { on, context, kind_name } = on;
    Ok(match on.context("--on is missing")? {
        Provider::Kind => Target::Kind(Kind { name: kind_name.clone(), kubeconfig }),
        Provider::Cluster => Target::Existing(context.clone()),
    })
}

impl Asked<'_> {
    /// The parts to stand up on a target.
    #[must_use]
    pub fn plan(&self, target: Target, run_dir: PathBuf) -> Plan {
        let InstallArgs { images, envoy_gateway, engine } = self.install.clone();
        let envoy_gateway = envoy_gateway.unwrap_or_else(|| stand::INSTALL.to_owned());
        let (programs, version) = (self.programs.clone(), self.version.to_owned());
        Plan { target, engine, images, envoy_gateway, programs, version, run_dir }
    }

    /// Refuses real engines, for a command that needs the mock's clock and arguments.
    ///
    /// # Errors
    /// If they are asked for.
    pub fn with_mocks(self) -> Result<Self> {
        ensure!(
            self.install.engine == Engine::Mock,
            "--engine vllm: only the checks and `up` run on real engines"
        );
        Ok(self)
    }

    /// Stands the components up, gives them to `work`, and deletes a cluster that was made for it; `None` if it is
    /// interrupted.
    ///
    /// # Errors
    /// When the components or the work fail.
    pub async fn stage<T>(
        &self,
        session: &Session,
        run_dir: &Path,
        work: impl AsyncFnOnce(&KubernetesStage) -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        // A cluster for this run only does not become the user's current one.
        let kubeconfig = (self.on.on == Some(Provider::Kind)).then(|| run_dir.join("kubeconfig"));
        std::fs::create_dir_all(run_dir).with_context(|| format!("create {}", run_dir.display()))?;
        let plan = self.plan(target(self.on, kubeconfig)?, run_dir.to_owned());
        let kind = match &plan.target {
            Target::Kind(kind) => Some(kind.clone()),
            Target::Existing(_) => None,
        };
        let stood = async || {
            let progress = session.ui.progress();
            let stand = stand::components(&plan, &progress);
            let Some(standing) = session.interrupt.unless(stand).await.transpose()? else { return Ok(None) };
            work(&KubernetesStage { standing, kind }).await
        };
        made_for(session, &plan.target, Left::Nothing, stood).await
    }
}

/// Does the work, and deletes a cluster that was made for it. Work that is interrupted returns `None`. A cluster that was
/// there before stays in any case.
///
/// # Errors
/// When a program is missing, or the work or the deletion fails.
pub async fn made_for<T>(
    session: &Session,
    target: &Target,
    left: Left,
    work: impl AsyncFnOnce() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let ui = &session.ui;
    stand::check(target).await?;
    let made: Option<&Kind> = match target {
        Target::Kind(kind) if !kind.is_there().await? => Some(kind),
        Target::Kind(_) | Target::Existing(_) => None,
    };
    let done = work().await;
    let is_left = left == Left::IfDone && !matches!(done, Ok(None));
    let ended = match made {
        Some(kind) if is_left && done.is_err() => told(session, kind).await,
        Some(_) if is_left => Ok(()),
        Some(kind) => {
            ui.step(&format!("deleting the cluster {}", kind.name));
            kind.delete().await
        }
        None => Ok(()),
    };
    ui.finish();
    match (done, ended) {
        (Err(error), Err(also)) => {
            ui.note(&format!("warning: {also:#}"));
            Err(error)
        }
        (done, ended) => ended.and(done),
    }
}

/// Tells the user which command deletes a cluster that is left, if it is there.
async fn told(session: &Session, kind: &Kind) -> Result<()> {
    if kind.is_there().await? {
        session.ui.note(&format!(
            "the cluster {} is left as it is: `{}` deletes it",
            kind.name,
            kind.deletion()
        ));
    }
    Ok(())
}
