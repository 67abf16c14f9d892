//! How a request comes to the engine: after what happens before it, and in an order that does not depend on threads.

use super::clock::SimTime;
use super::live::Stage;
use super::{Driver, Event};
use rand_distr::{Distribution as _, StandardNormal};
use std::time::Duration;
use vllm_engine::request::{EngineRequest, RequestId};

/// With a detached clock requests of one moment are sorted once time moves on.
const NEXT_MOMENT: Duration = Duration::from_nanos(1);

impl Driver {
    pub(super) fn arrive(&mut self, id: RequestId, arrival: SimTime) {
        if self.clock.timeline().is_none() {
            return self.approach(id, arrival);
        }
        if self.arrivals.is_empty() {
            self.plan(self.clock.now() + NEXT_MOMENT, Event::SortArrivals);
        }
        self.arrivals.push(id);
    }

    /// By arrival, then by what they ask for: equal ones can change places without anybody noticing.
    pub(super) fn sort_arrivals(&mut self) {
        let mut arrivals = std::mem::take(&mut self.arrivals);
        arrivals.retain(|id| self.live.contains_key(id));
        arrivals.sort_by(|a, b| self.arrival_key(*a).cmp(&self.arrival_key(*b)));
        for id in arrivals {
            let arrival = self.live[&id].arrival;
            self.approach(id, arrival);
        }
    }

    fn approach(&mut self, id: RequestId, arrival: SimTime) {
        let c_pre = self.latency.c_pre.mul_f64(self.jitter_factor());
        self.plan(arrival + c_pre, Event::Enter(id));
    }

    fn arrival_key(&self, id: RequestId) -> Option<(SimTime, &[u32], &[u32], i32)> {
        let live = self.live.get(&id)?;
        let Stage::Arriving(request) = &live.stage else { return None };
        let EngineRequest { prompt, output, priority, .. } = &**request;
        Some((live.arrival, prompt, output, *priority))
    }

    fn jitter_factor(&mut self) -> f64 {
        if self.jitter == 0.0 {
            return 1.0;
        }
        let normal: f64 = StandardNormal.sample(&mut self.rng);
        (1.0 + self.jitter * normal).max(0.5)
    }
}
