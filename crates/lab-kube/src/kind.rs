//! Clusters of kind: nodes in containers of this machine.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lab::cluster::{Progress, ProgressEvent};
use tokio::time::sleep;

use crate::tool::Tool;

/// Most deletions of one cluster.
const DELETIONS: u32 = 3;
/// Time that Docker has to finish a node whose making was interrupted.
const LATE_NODE: Duration = Duration::from_millis(300);

/// A cluster of kind, which need not be there yet.
#[derive(Clone, Debug)]
pub struct Kind {
    pub name: String,
    /// File for the access to the cluster; `None` for the user's own kubeconfig.
    pub kubeconfig: Option<PathBuf>,
}

impl Kind {
    /// The context of the cluster in the kubeconfig.
    #[must_use]
    pub fn context(&self) -> String {
        format!("kind-{}", self.name)
    }

    /// The container of the node with the API server.
    #[must_use]
    pub fn control_plane(&self) -> String {
        format!("{}-control-plane", self.name)
    }

    /// The command that deletes the cluster, for the user.
    #[must_use]
    pub fn deletion(&self) -> String {
        format!("kind delete cluster --name {}", self.name)
    }

    /// True if the cluster is there, whole or in part.
    ///
    /// # Errors
    /// When kind does not answer.
    pub async fn is_there(&self) -> Result<bool> {
        Ok(Tool::Kind.run(&["get", "clusters"]).await?.lines().any(|name| name == self.name))
    }

    /// Makes the cluster if it is not there, and writes the access to it.
    ///
    /// # Errors
    /// When kind fails.
    pub async fn ensure(&self, progress: &Progress) -> Result<()> {
        if self.is_there().await? {
            return self.run(&["export", "kubeconfig"]).await;
        }
        progress(ProgressEvent::Step(format!("making the cluster {} with kind", self.name)));
        self.run(&["create", "cluster", "--wait", "180s"]).await
    }

    /// Deletes the cluster, also one that was being made a moment ago: Docker may still finish a node.
    ///
    /// # Errors
    /// When kind fails; the error says how to try again.
    pub async fn delete(&self) -> Result<()> {
        let delete = async {
            for _ in 0..DELETIONS {
                self.run(&["delete", "cluster"]).await?;
                sleep(LATE_NODE).await;
                if !self.is_there().await? {
                    return Ok(());
                }
            }
            bail!("it is there again after each of {DELETIONS} deletions")
        };
        delete.await.with_context(|| format!("the cluster may be left: `{}` deletes it", self.deletion()))
    }

    /// Gives images of this machine to the cluster's nodes.
    ///
    /// # Errors
    /// When kind fails.
    pub async fn load(&self, images: &[&str]) -> Result<()> {
        let arguments = [&["load", "docker-image", "--name", &self.name][..], images].concat();
        Tool::Kind.run(&arguments).await.map(drop)
    }

    async fn run(&self, command: &[&str]) -> Result<()> {
        let mut arguments = [command, &["--name", &self.name]].concat();
        if let Some(kubeconfig) = self.kubeconfig.as_deref().and_then(Path::to_str) {
            arguments.extend(["--kubeconfig", kubeconfig]);
        }
        Tool::Kind.run(&arguments).await.map(drop)
    }
}
