//! Which adapters have requests, as vLLM's API server knows it: from what it submits and from what comes back.
//!
//! ```text
//! arrived ──first output──► running ──► ended      (vLLM 0.33 sees a request only from its first output on)
//! ```

use vllm_engine::vllm_version::VllmVersion;

/// Adapters in the order in which vLLM's dictionaries hold them.
#[derive(Debug)]
pub(super) struct LoraRequests {
    version: VllmVersion,
    adapters: Vec<Adapter>,
    /// Every combination seen, with the Unix time at which it was seen last.
    pub(super) series: Vec<(Combination, f64)>,
}

/// Names joined by commas.
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

/// How far a request with an adapter has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoraStage {
    /// Submitted, no output yet.
    Waiting,
    /// Its first output has come.
    Running,
}

// === impl LoraRequests ===

impl LoraRequests {
    pub(super) fn new(version: VllmVersion) -> Self {
        Self { version, adapters: Vec::new(), series: Vec::new() }
    }

    /// A request of `name` enters `to`, leaving `from`.
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

    /// Notes the combination of now, as of `unix_now` seconds.
    pub(super) fn note(&mut self, unix_now: f64) {
        let combination = self.combination();
        match self.series.iter_mut().find(|(seen, _)| *seen == combination) {
            Some((_, at)) => *at = unix_now,
            None => self.series.push((combination, unix_now)),
        }
    }

    /// vLLM 0.33 names every adapter with a request in both lists; earlier ones tell them apart.
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
