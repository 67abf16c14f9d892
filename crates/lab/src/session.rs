//! A cluster for as long as one command works with it. However the work ends, by Ctrl-C too, so does everything started.

use anyhow::Result;
use load::interrupt::Interrupt;

use crate::cluster::fault::Unavailable;
use crate::cluster::programs::{ProgramOptions, Programs};
use crate::cluster::provider::Answer;
use crate::cluster::{Cluster, Options, Progress};
use crate::ui::Ui;

/// Signals and output that every command with a cluster shares.
#[derive(Debug)]
pub struct Session {
    pub ui: Ui,
    pub interrupt: Interrupt,
}

/// A place for the clusters of one command, one after the other: processes of this machine, or a Kubernetes cluster.
pub trait Stage {
    /// Says if clusters of this stage can have these settings.
    ///
    /// # Errors
    /// When they cannot, with the reason.
    fn can_have(&self, options: &Options) -> Result<(), Unavailable>;

    /// Starts a cluster and returns when it is ready; `None` if it is interrupted before.
    fn start<'a>(
        &'a self,
        options: Options,
        progress: Progress,
        interrupt: &'a Interrupt,
    ) -> Answer<'a, Option<Cluster>>;
}

impl Stage for Programs {
    fn can_have(&self, _: &Options) -> Result<(), Unavailable> {
        Ok(())
    }

    fn start<'a>(
        &'a self,
        options: Options,
        progress: Progress,
        interrupt: &'a Interrupt,
    ) -> Answer<'a, Option<Cluster>> {
        Box::pin(Cluster::start_unless(options, self.clone(), progress, interrupt.requested()))
    }
}

impl Session {
    /// Listens to signals from now on.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new(verbose: bool) -> Result<Self> {
        Ok(Self { interrupt: Interrupt::listen()?, ui: Ui::new(verbose) })
    }

    /// Finds the programs; returns `None` if interrupted before.
    ///
    /// # Errors
    /// When [`Programs::resolve`] fails.
    pub async fn programs(&self, options: &ProgramOptions) -> Result<Option<Programs>> {
        let progress = self.ui.progress();
        self.interrupt.unless(Programs::resolve(options, &progress)).await.transpose()
    }

    /// Starts the cluster, gives it to `work` and ends it; returns `None` if interrupted before the cluster was ready.
    /// Later interrupts are for `work` to notice.
    ///
    /// # Errors
    /// When the cluster cannot be started or ended.
    pub async fn with<T>(
        &self,
        options: Options,
        stage: &impl Stage,
        work: impl AsyncFnOnce(&Cluster) -> T,
    ) -> Result<Option<T>> {
        let Self { ui, interrupt } = self;
        ui.step("starting pods, picker and Envoy");
        let started = stage.start(options, ui.progress(), interrupt).await?;
        let Some(cluster) = started else { return Ok(None) };
        let done = work(&cluster).await;
        ui.step("ending what was started");
        cluster.stop().await?;
        Ok(Some(done))
    }
}
