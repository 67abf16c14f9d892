//! What goes wrong on purpose, and when it did.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
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
    deaths: Mutex<Vec<Death>>,
    n_replaced: AtomicUsize,
}

impl<'a> Chaos<'a> {
    pub(super) fn new(cluster: &'a Cluster, started: Stopwatch, rng: ChaCha8Rng) -> Self {
        let (deaths, n_replaced) = (Mutex::default(), AtomicUsize::new(0));
        Self { cluster, started, rng: Mutex::new(rng), deaths, n_replaced }
    }

    /// When each pod died so far, and how often a picker was replaced.
    pub(super) fn done(&self) -> (Vec<Death>, usize) {
        (self.deaths.lock().clone(), self.n_replaced.load(Ordering::Relaxed))
    }

    /// Kills a pod every `period`, each of them replaced by another.
    pub(super) async fn kill_pods(&self, duration: Duration, period: Duration) -> Result<()> {
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
            let until = self.started.elapsed();
            self.deaths.lock().push(Death { address: victim.address, from, until });
        }
        sleep(duration.saturating_sub(self.started.elapsed())).await;
        Ok(())
    }

    /// Replaces a picker `count` times, evenly over the time, one after the other.
    pub(super) async fn replace_pickers(&self, duration: Duration, count: u32) -> Result<()> {
        for (number, turn) in (1..=count).zip(0_usize..) {
            let due = duration * number / (count + 1);
            sleep(due.saturating_sub(self.started.elapsed())).await;
            let pickers = self.cluster.status().pickers.clone();
            let idx = turn.checked_rem(pickers.len()).context("no picker is left that could be replaced")?;
            let picker = &pickers[idx];
            let replaced = self.cluster.replace_picker(&picker.name).await;
            replaced.with_context(|| format!("replace {}", picker.name))?;
            self.n_replaced.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}
