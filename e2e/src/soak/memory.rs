//! Memory of the pickers and of Envoy over their lives.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::cluster::Cluster;
use load::clock::Stopwatch;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;
use tokio::time::{interval, sleep};

const PERIOD: Duration = Duration::from_secs(1);
/// Number of samples that a process must have to show growth.
const MIN_SAMPLES: usize = 20;
const RESIDENT: &str = "process_resident_memory_bytes ";

/// Memory of one process in bytes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Growth {
    pub(super) process: String,
    pub(super) is_picker: bool,
    /// Bytes in the middle of its life.
    pub(super) half_way: f64,
    /// Bytes added from then to its end.
    pub(super) grown: f64,
    pub(super) most: f64,
}

pub(super) struct Memory<'a> {
    cluster: &'a Cluster,
    started: Stopwatch,
    lives: Mutex<Lives>,
}

/// Samples by process. A picker that was replaced counts as another process.
#[derive(Debug, Default)]
struct Lives(BTreeMap<String, Vec<f64>>);

impl<'a> Memory<'a> {
    pub(super) fn new(cluster: &'a Cluster, started: Stopwatch) -> Self {
        Self { cluster, started, lives: Mutex::default() }
    }

    /// Returns the growth in the samples so far.
    pub(super) fn growth(&self) -> Vec<Growth> {
        self.lives.lock().growth()
    }

    /// Takes samples until the time is over.
    pub(super) async fn watch(&self, duration: Duration) -> Result<()> {
        let mut generations: BTreeMap<String, u32> = BTreeMap::new();
        let mut was_running: BTreeMap<String, bool> = BTreeMap::new();
        let mut ticks = interval(PERIOD);
        while self.started.elapsed() + PERIOD < duration {
            ticks.tick().await;
            let status = self.cluster.status();
            for picker in &status.pickers {
                let was = was_running.insert(picker.name.clone(), picker.running).unwrap_or(false);
                let generation = generations.entry(picker.name.clone()).or_default();
                *generation += u32::from(picker.running && !was);
                // A picker that is being replaced may not answer.
                let Ok(text) = self.cluster.picker_page(picker, "/metrics").await else { continue };
                let bytes = text.lines().find_map(|line| line.strip_prefix(RESIDENT)?.parse::<f64>().ok());
                let name = format!("{} #{generation}", picker.name);
                let bytes = bytes.with_context(|| format!("{} lacks {RESIDENT}", picker.name))?;
                self.lives.lock().note(name, bytes);
            }
            let page = self.cluster.envoy_page("/memory").await?;
            let memory: Value = serde_json::from_str(&page).context("read Envoy's memory")?;
            let allocated = memory["allocated"].as_str().and_then(|bytes| bytes.parse::<f64>().ok());
            let allocated = allocated.context("Envoy does not report its memory")?;
            self.lives.lock().note("envoy, allocated".to_owned(), allocated);
        }
        sleep(duration.saturating_sub(self.started.elapsed())).await;
        Ok(())
    }
}

impl Lives {
    fn note(&mut self, process: String, bytes: f64) {
        self.0.entry(process).or_default().push(bytes);
    }

    fn growth(&self) -> Vec<Growth> {
        let growth = |(process, samples): (&String, &Vec<f64>)| {
            let last = *samples.last()?;
            let half_way = samples[samples.len() / 2];
            let is_picker = process.contains('#');
            let most = samples.iter().copied().fold(0.0, f64::max);
            let grown = if samples.len() < MIN_SAMPLES { 0.0 } else { last - half_way };
            Some(Growth { process: process.clone(), is_picker, half_way, grown, most })
        };
        self.0.iter().filter_map(growth).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Lives;

    #[test]
    fn growth_is_that_of_the_second_half() {
        let mut lives = Lives::default();
        for second in 0..40_u32 {
            lives.note("a #1".to_owned(), f64::from(second.min(10)));
            lives.note("b #1".to_owned(), f64::from(second));
        }
        lives.note("c #1".to_owned(), 5.0);
        let grown: Vec<f64> = lives.growth().iter().map(|growth| growth.grown).collect();
        assert_eq!(grown, [0.0, 19.0, 0.0]);
    }
}
