//! The source of pools, models and endpoints: files, or an API server in a build with the feature `kubernetes`.

use std::future::Future;

use anyhow::Context;
use pool_index::snapshot::Reader;
use pool_index::source::files::{self, Files};
#[cfg(feature = "kubernetes")]
use pool_watch::connect;

use crate::metrics::Metrics;

/// Settings of a source.
#[derive(Clone, Debug)]
pub enum Config {
    Files(files::Config),
    #[cfg(feature = "kubernetes")]
    Cluster(Cluster),
}

/// A cluster whose objects are followed.
#[cfg(feature = "kubernetes")]
#[derive(Clone, Debug)]
pub struct Cluster {
    pub scope: pool_watch::view::PoolScope,
    /// File that names the API server. None: found as `kubectl` and pods find it.
    pub kubeconfig: Option<std::path::PathBuf>,
}

/// A source that has been opened.
#[derive(Debug)]
pub enum Source {
    Files(Box<Files>),
    #[cfg(feature = "kubernetes")]
    Cluster(Box<pool_watch::source::Source>),
}

// === impl Config ===

impl Config {
    /// Reads the files, or finds the API server; its state goes to `metrics`.
    ///
    /// # Errors
    /// If a file is not valid, or no API server is known.
    #[cfg_attr(
        not(feature = "kubernetes"),
        expect(
            clippy::unused_async,
            unused_variables,
            reason = "only an API server is waited for, and has metrics"
        )
    )]
    pub async fn open(&self, metrics: &mut Metrics) -> anyhow::Result<(Source, Reader)> {
        match self {
            Self::Files(config) => {
                let (files, reader) = Files::load(config.clone()).context("read the pools")?;
                Ok((Source::Files(Box::new(files)), reader))
            }
            #[cfg(feature = "kubernetes")]
            Self::Cluster(Cluster { scope, kubeconfig }) => {
                let config = connect::config(kubeconfig.as_deref()).await.context("find the API server")?;
                let connected = pool_watch::source::Source::try_new(config, scope.clone());
                let connected = connected.context("connect to the API server")?;
                let pool_watch::source::Connected { source, reader, watch_state } = connected;
                metrics.register_cluster(watch_state);
                Ok((Source::Cluster(Box::new(source)), reader))
            }
        }
    }
}

// === impl Source ===

impl Source {
    /// Follows the source until `shutdown` resolves.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        match self {
            Self::Files(files) => files.run(shutdown).await,
            #[cfg(feature = "kubernetes")]
            Self::Cluster(source) => source.run(shutdown).await,
        }
    }
}
