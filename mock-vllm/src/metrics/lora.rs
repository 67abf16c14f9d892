//! Adapters with requests, as vLLM's API server knows them: from the requests that it submits and the outputs that come
//! back.
//!
//! ```text
//! arrived ──first output──► running ──► ended      (vLLM 0.33 sees a request only from its first output on)
//! ```

use vllm_engine::vllm_version::VllmVersion;

/// Adapters in the order of vLLM's dictionaries.
#[derive(Debug)]
pub(super) struct LoraRequests {
    version: VllmVersion,
    adapters: Vec<Adapter>,
    /// Every combination so far, with the Unix time of its last use.
    pub(super) series: Vec<(Combination, f64)>,
}

/// Names of adapters, joined by commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Combination {
    pub(super) running: String,
    pub(super) waiting: String,
}

#[derive(Debug)]
struct Adapter {
    name: String,
    n_waiting: u32,
    n_running: u32,
}

/// Stage of a request with an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoraStage {
    /// Submitted, without output yet.
    Waiting,
    /// Running, after its first output.
    Running,
}

// === impl LoraRequests ===

impl LoraRequests {
    pub(super) fn new(version: VllmVersion) -> Self {
        Self { version, adapters: Vec::new(), series: Vec::new() }
    }

    /// Moves a request of adapter `name` from one stage to another.
    pub(super) fn shift(&mut self, name: &str, from: Option<LoraStage>, to: Option<LoraStage>) {
        let is_seen = |stage: &LoraStage| match self.version {
            VllmVersion::V0_33 => *stage == LoraStage::Running,
            VllmVersion::V0_8 | VllmVersion::V0_11 => true,
        };
        let (from, to) = (from.filter(is_seen), to.filter(is_seen));
        if (from, to) == (None, None) {
            return;
        }
        let known = self.adapters.iter().position(|adapter| adapter.name == name);
        let idx = known.unwrap_or_else(|| {
            self.adapters.push(Adapter { name: name.to_owned(), n_waiting: 0, n_running: 0 });
            self.adapters.len() - 1
        });
        let adapter = &mut self.adapters[idx];
        if let Some(from) = from {
            let count = adapter.count(from);
            *count = count.saturating_sub(1);
        }
        if let Some(to) = to {
            *adapter.count(to) += 1;
        }
        if self.version == VllmVersion::V0_33 && adapter.n_running == 0 {
            self.adapters.remove(idx);
        }
    }

    /// Records the current combination, at `unix_now` seconds.
    pub(super) fn note(&mut self, unix_now: f64) {
        let combination = self.combination();
        match self.series.iter_mut().find(|(seen, _)| *seen == combination) {
            Some((_, at)) => *at = unix_now,
            None => self.series.push((combination, unix_now)),
        }
    }

    /// Returns the current combination. vLLM 0.33 names every adapter with a request in both lists; earlier versions
    /// separate them.
    fn combination(&self) -> Combination {
        let join = |wanted: fn(&&Adapter) -> bool| {
            let names: Vec<&str> =
                self.adapters.iter().filter(wanted).map(|adapter| adapter.name.as_str()).collect();
            names.join(",")
        };
        let running = join(|adapter| adapter.n_running > 0);
        let waiting = match self.version {
            VllmVersion::V0_33 => running.clone(),
            VllmVersion::V0_8 | VllmVersion::V0_11 => join(|adapter| adapter.n_waiting > 0),
        };
        Combination { running, waiting }
    }
}

// === impl Adapter ===

impl Adapter {
    fn count(&mut self, stage: LoraStage) -> &mut u32 {
        match stage {
            LoraStage::Waiting => &mut self.n_waiting,
            LoraStage::Running => &mut self.n_running,
        }
    }
}
