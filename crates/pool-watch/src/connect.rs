//! Finds the API server.

use std::path::{Path, PathBuf};

use kube::Config;
use kube::config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use thiserror::Error;

use crate::source::{Connected, Source};
use crate::world::Scope;

/// Why there is no API server to follow.
#[derive(Debug, Error)]
pub enum ConnectError {
    #[error("{}: not a usable kubeconfig", path.display())]
    Kubeconfig { path: PathBuf, source: KubeconfigError },
    #[error(
        "no API server is known: give --kubeconfig, set KUBECONFIG, or run in a pod with a service account"
    )]
    Unknown(#[source] InferConfigError),
    #[error("cannot make a client of the configuration")]
    Client(#[source] kube::Error),
}

/// A source of the API server that `kubeconfig` names; without it, of the one in `$KUBECONFIG` or `~/.kube/config`, or
/// else of the cluster that the process runs in. Nothing is asked of the server yet.
///
/// # Errors
/// If no API server is known, or its certificates cannot be read.
pub async fn connect(kubeconfig: Option<&Path>, scope: Scope) -> Result<Connected, ConnectError> {
    let config = match kubeconfig {
        Some(path) => from_file(path)
            .await
            .map_err(|source| ConnectError::Kubeconfig { path: path.to_owned(), source })?,
        None => Config::infer().await.map_err(ConnectError::Unknown)?,
    };
    Source::try_new(config, scope).map_err(ConnectError::Client)
}

async fn from_file(path: &Path) -> Result<Config, KubeconfigError> {
    Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await
}
