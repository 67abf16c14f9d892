//! Faults that are caused on purpose, and their times.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::cluster::Cluster;
use lab::cluster::fault::Fault;
use load::clock::Stopwatch;
use parking_lot::Mutex;
use rand::RngExt as _;
use rand_chacha::ChaCha8Rng;
use tokio::time::sleep;

/// Time before the end without kills, so that requests which were cut can be distinguished from lost ones.
const QUIET_END: Duration = Duration::from_secs(2);

/// A pod's end. Times are counted from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Death {
    pub(super) address: SocketAddr,
    /// Moment before the order to kill it.
    pub(super) from: Duration,
    /// Moment after its end.
    pub(super) until: Duration,
}

impl Death {
    pub(super) fn duration(&self) -> Duration {
        self.until.saturating_sub(self.from)
    }
}

/// Kills pods and replaces pickers.
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

    /// Returns the deaths of pods so far, and how often a picker was replaced.
    pub(super) fn done(&self) -> (Vec<Death>, usize) {
        (self.deaths.lock().clone(), self.n_replaced.load(Ordering::Relaxed))
    }

    /// Kills a random pod every `period`; the cluster replaces each.
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
            self.cluster.inflict(&Fault::KillPod(victim.name.clone())).await?;
            let until = self.started.elapsed();
            self.deaths.lock().push(Death { address: victim.address, from, until });
        }
        sleep(duration.saturating_sub(self.started.elapsed())).await;
        Ok(())
    }

    /// Replaces pickers `count` times, one after the other, evenly over `duration`.
    pub(super) async fn replace_pickers(&self, duration: Duration, count: u32) -> Result<()> {
        for (number, turn) in (1..=count).zip(0_usize..) {
            let due = duration * number / (count + 1);
            sleep(due.saturating_sub(self.started.elapsed())).await;
            let pickers = self.cluster.status().pickers.clone();
            let idx = turn.checked_rem(pickers.len()).context("no picker is left that could be replaced")?;
            self.cluster.inflict(&Fault::ReplacePicker(pickers[idx].name.clone())).await?;
            self.n_replaced.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}
