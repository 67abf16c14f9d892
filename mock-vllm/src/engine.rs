//! vLLM's V1 scheduler and KV-cache manager as a step function: which request computes how many tokens in
//! which step, which blocks it holds, what the prefix cache hits, evicts and reports.
//! Knows no clock, no socket, no task: the driver calls `schedule`, waits what `latency` says, calls `complete`.

pub mod config;
pub mod event;
pub mod hash;
pub mod latency;
pub mod request;
pub mod step;

use config::{ConfigError, EngineConfig};
use event::KvEvent;
use request::{AddError, EngineRequest, RequestId};
use step::{StepOutput, StepPlan};

/// One engine: its waiting and running requests and its block pool.
#[derive(Debug)]
pub struct Engine {
    config: EngineConfig,
    plan: StepPlan,
}

/// Gauges and counters as of now; counters count from the start of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineStats {
    pub running: usize,
    pub waiting: usize,
    /// Blocks that no live request holds, cached ones included.
    pub free_blocks: u32,
    /// Share of the usable blocks that live requests hold, 0..=1.
    pub kv_usage: f64,
    /// Prompt tokens looked up, once per request, when it is first admitted.
    pub prefix_cache_queries: u64,
    /// Prompt tokens found then.
    pub prefix_cache_hits: u64,
    /// The same two for requests that come back after a preemption.
    pub preempted_queries: u64,
    pub preempted_hits: u64,
    pub preemptions: u64,
}

// === impl Engine ===

impl Engine {
    /// # Errors
    /// When the settings cannot serve a request of `max_model_len` tokens.
    pub fn try_new(config: EngineConfig) -> Result<Self, ConfigError> {
        Ok(Self { config, plan: StepPlan::default() })
    }

    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Puts a request at the end of the waiting queue (or at its priority's place); the order of calls is the order of arrival.
    ///
    /// # Errors
    /// When the request cannot be served at all; nothing is queued then.
    pub fn add(&mut self, _request: EngineRequest) -> Result<(), AddError> {
        Ok(())
    }

    /// Frees everything the request holds, at once; false when no such request lives.
    pub fn abort(&mut self, _id: RequestId) -> bool {
        false
    }

    /// Composes the next step. `None`: nothing was scheduled and nothing preempted, so there is nothing to wait for.
    /// Each `Some` must be followed by one `complete` before the next `schedule`.
    pub fn schedule(&mut self) -> Option<&StepPlan> {
        (!self.plan.is_empty()).then_some(&self.plan)
    }

    /// The step composed last has run: fills `output` (cleared first) with its tokens, and frees what finished.
    pub fn complete(&mut self, output: &mut StepOutput) {
        output.tokens.clear();
    }

    /// True when a request is waiting or running.
    pub fn has_requests(&self) -> bool {
        false
    }

    pub fn stats(&self) -> EngineStats {
        EngineStats::default()
    }

    /// The KV events since the last call, in order; always empty unless `EngineConfig::kv_events`.
    pub fn take_events(&mut self) -> Vec<KvEvent> {
        Vec::new()
    }

    /// Forgets every cached block; false, and no change, while any request holds a block.
    pub fn reset_prefix_cache(&mut self) -> bool {
        true
    }
}
