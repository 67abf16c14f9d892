//! Finds the API server, and makes clients of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{InferConfigError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use thiserror::Error;

/// Longest wait for a connection to the API server, which is in the same network.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

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

/// The API server that `kubeconfig` names; without it, the one in `$KUBECONFIG` or `~/.kube/config`, or else that of the
/// cluster that the process runs in.
///
/// # Errors
/// If no API server is known.
pub async fn config(kubeconfig: Option<&Path>) -> Result<Config, ConnectError> {
    match kubeconfig {
        Some(path) => {
            from_file(path).await.map_err(|source| ConnectError::Kubeconfig { path: path.to_owned(), source })
        }
        None => Config::infer().await.map_err(ConnectError::Unknown),
    }
}

/// A client for watches, each of which tries again by itself and says so.
///
/// # Errors
/// If the configuration names a certificate that is none.
pub fn client(mut config: Config) -> Result<Client, ConnectError> {
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Client::try_from(config).map_err(ConnectError::Client)
}

async fn from_file(path: &Path) -> Result<Config, KubeconfigError> {
    Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default()).await
}
