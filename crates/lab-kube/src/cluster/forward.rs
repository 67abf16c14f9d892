//! Ports of pods on this machine: kubectl forwards them for as long as the value lives.

use std::net::SocketAddr;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;
use tokio::task::JoinSet;
use tracing::info;

use crate::api::Access;

/// A port of a pod, which a port of this machine leads to.
#[derive(Debug)]
pub(super) struct Forward {
    pub(super) address: SocketAddr,
    /// The pod's name.
    pub(super) pod: String,
    /// The process, which ends with this value.
    kubectl: Child,
    /// Reads what kubectl says of each connection, which would end on a closed pipe.
    _reader: JoinSet<()>,
}

impl Forward {
    /// Opens a way to a port of a pod, and returns when it is open.
    ///
    /// # Errors
    /// When kubectl fails.
    pub(super) async fn open(access: &Access, namespace: &str, pod: &str, port: u16) -> Result<Self> {
        let target = (format!("pod/{pod}"), format!(":{port}"));
        let arguments =
            ["--namespace", namespace, "port-forward", "--address", "127.0.0.1", &target.0, &target.1];
        let mut command = access.kubectl_command(&arguments);
        info!(command = ?command.as_std(), "Forwarding a port");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut kubectl = command.process_group(0).spawn().context("start kubectl")?;
        let stdout = kubectl.stdout.take().context("kubectl has no output")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = lines.next_line().await?;
        let address = line.as_deref().and_then(address);
        let address = address.with_context(|| format!("kubectl does not forward port {port} of {pod}"))?;
        let mut reader = JoinSet::new();
        reader.spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { address, pod: pod.to_owned(), kubectl, _reader: reader })
    }

    /// False if kubectl has ended.
    pub(super) fn is_open(&mut self) -> bool {
        matches!(self.kubectl.try_wait(), Ok(None))
    }
}

/// Reads the address in `Forwarding from 127.0.0.1:36519 -> 19000`.
fn address(line: &str) -> Option<SocketAddr> {
    line.split_whitespace().find_map(|word| word.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::address;

    #[test]
    fn kubectl_says_on_which_port_it_listens() {
        let said = address("Forwarding from 127.0.0.1:36519 -> 19000");
        assert_eq!(said, Some("127.0.0.1:36519".parse().unwrap()));
        assert_eq!(address("error: pod not found"), None);
    }
}
