//! What goes wrong on purpose, and when it did.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use tokio::time::sleep;

use crate::clock::Stopwatch;
use crate::cluster::Cluster;

/// No pod is killed this soon before the end, so that what was cut can be told from what was lost.
const QUIET_END: Duration = Duration::from_secs(2);

/// A pod's end. Times are since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Death {
    pub(super) address: SocketAddr,
    /// The order to kill it was given after this.
    pub(super) from: Duration,
    /// It was gone before this.
    pub(super) until: Duration,
}

/// Kills and replaces.
pub(super) struct Chaos<'a> {
    cluster: &'a Cluster,
    started: Stopwatch,
    rng: Mutex<ChaCha8Rng>,
}

impl<'a> Chaos<'a> {
    pub(super) fn new(cluster: &'a Cluster, started: Stopwatch, rng: ChaCha8Rng) -> Self {
        Self { cluster, started, rng: Mutex::new(rng) }
    }

    /// Kills a pod every `period`, each of them replaced by another; returns when each one died.
    pub(super) async fn kill_pods(&self, duration: Duration, period: Duration) -> Result<Vec<Death>> {
        let mut deaths = Vec::new();
        let mut due = period;
        while due + QUIET_END < duration {
            sleep(due.saturating_sub(self.started.elapsed())).await;
            due += period;
            let pods = self.cluster.pods();
            if pods.len() < 2 {
                continue;
            }
            let victim = &pods[self.rng.lock().random_range(0..pods.len())];
            let from = self.started.elapsed();
            self.cluster.kill_pod(&victim.name).await.with_context(|| format!("kill {}", victim.name))?;
            deaths.push(Death { address: victim.address, from, until: self.started.elapsed() });
        }
        sleep(duration.saturating_sub(self.started.elapsed())).await;
        Ok(deaths)
    }

    /// Replaces a picker `count` times, evenly over the time, one after the other; returns how often it did.
    pub(super) async fn replace_pickers(&self, duration: Duration, count: u32) -> Result<usize> {
        let mut n_replaced = 0;
        for number in 1..=count {
            let due = duration * number / (count + 1);
            sleep(due.saturating_sub(self.started.elapsed())).await;
            let pickers = self.cluster.status().pickers.clone();
            let picker = &pickers[n_replaced % pickers.len()];
            let replaced = self.cluster.replace_picker(&picker.name).await;
            replaced.with_context(|| format!("replace {}", picker.name))?;
            n_replaced += 1;
        }
        Ok(n_replaced)
    }
}
