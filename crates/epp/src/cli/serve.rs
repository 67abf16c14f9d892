//! The process around the server: its signals, and the file with its ports.

use std::convert::Infallible;
use std::path::Path;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tracing::info;

use crate::server::{BoundPorts, Server, Settings, Shutdown};

/// Serves until a signal ends it. The bound addresses go to `port_file`.
#[tokio::main]
pub(super) async fn serve(settings: Settings, port_file: Option<&Path>) -> anyhow::Result<()> {
    // Signals are watched before anyone can know the ports, so that a signal from then on ends the picker in order.
    let signals = Signals::watch()?;
    let server = Server::bind(settings).await?;
    if let Some(path) = port_file {
        write_ports(path, server.ports()?)?;
    }
    let (shutdown, reload) = (Shutdown::default(), server.reload());
    tokio::select! {
        ended = server.run(shutdown.clone()) => ended,
        never = signals.pass_on(shutdown, &reload) => match never {},
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn watch() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("watch for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("watch for SIGINT")?,
            hangup: signal(SignalKind::hangup()).context("watch for SIGHUP")?,
        })
    }

    /// The first signal drains, the second ends; SIGHUP reads again what may have changed, at any time.
    async fn pass_on(mut self, shutdown: Shutdown, reload: &Notify) -> Infallible {
        let mut ends = [shutdown.drain, shutdown.abort].into_iter();
        loop {
            let (name, ends_it) = tokio::select! {
                _ = self.terminate.recv() => ("SIGTERM", true),
                _ = self.interrupt.recv() => ("SIGINT", true),
                _ = self.hangup.recv() => ("SIGHUP", false),
            };
            info!(signal = name, "Received signal");
            match ends_it {
                false => reload.notify_one(),
                true => ends.next().into_iter().for_each(|end| end.cancel()),
            }
        }
    }
}

/// Writes the ports by a rename, so that a reader sees the whole file or none.
fn write_ports(path: &Path, ports: BoundPorts) -> anyhow::Result<()> {
    let text = serde_json::to_string(&ports).context("write the ports as JSON")?;
    let part = path.with_extension("part");
    std::fs::write(&part, text + "\n").with_context(|| format!("write {}", part.display()))?;
    std::fs::rename(&part, path).with_context(|| format!("write {}", path.display()))
}
