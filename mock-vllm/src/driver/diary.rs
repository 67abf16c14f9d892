//! Writes the cache log of the driver, and keeps the engine's events that wait for their publisher meanwhile.

use super::{Driver, Submission};
use crate::cache_log::CacheAdmission;
use crate::clock::Clock;
use vllm_engine::step::Origin;

impl Driver {
    pub(super) fn log_arrival(&mut self, submission: &Submission) {
        if let Some(log) = &mut self.cache_log {
            log.arrival(&submission.request, &submission.request_id, Clock::unix_now());
        }
    }

    /// Logs a composed step: the cache changes then, not at the step's end.
    pub(super) fn log_step(&mut self) {
        if self.cache_log.is_none() {
            return;
        }
        let is_new = |origin: Origin| match origin {
            Origin::New => true,
            Origin::Running | Origin::Resumed => false,
        };
        let scheduled = self.engine.plan().scheduled.iter();
        let admitted = scheduled
            .filter(|scheduled| is_new(scheduled.origin))
            .map(|scheduled| CacheAdmission {
                request: scheduled.id.0,
                cached_tokens: scheduled.n_computed_before,
            })
            .collect();
        self.log_cache(admitted);
    }

    pub(super) fn log_cache(&mut self, admitted: Vec<CacheAdmission>) {
        let Some(log) = &mut self.cache_log else { return };
        let events = self.engine.take_events();
        log.step(admitted, &events, Clock::unix_now());
        if self.kv_events.is_some() {
            self.logged_events.extend(events);
        }
    }

    pub(super) fn log_stop(&mut self) {
        if let Some(log) = &mut self.cache_log {
            log.stop(Clock::unix_now());
        }
    }

    /// Publishes all events since the last call as one batch.
    pub(super) fn publish_events(&mut self) {
        if let Some(publisher) = &mut self.kv_events {
            let mut events = std::mem::take(&mut self.logged_events);
            events.extend(self.engine.take_events());
            publisher.publish(Clock::unix_now(), events);
        }
    }
}
