//! Plans when a request enters the engine: after the time that the API server spends on it.

use super::{Driver, Event};
use crate::clock::SimTime;
use rand_distr::{Distribution as _, StandardNormal};
use vllm_engine::request::RequestId;

impl Driver {
    pub(super) fn arrive(&mut self, id: RequestId, arrival: SimTime) {
        let c_pre = self.latency.c_pre.mul_f64(self.jitter_factor());
        self.plan(arrival + c_pre, Event::Enter(id));
    }

    fn jitter_factor(&mut self) -> f64 {
        if self.jitter == 0.0 {
            return 1.0;
        }
        let normal: f64 = StandardNormal.sample(&mut self.rng);
        (1.0 + self.jitter * normal).max(0.5)
    }
}
