//! Saturation: a pool without capacity left refuses requests that may be refused.

use std::time::Duration;

use crate::candidate::Load;

/// Limits within which an endpoint has capacity. The defaults are upstream's (`SD_QUEUE_DEPTH_THRESHOLD`,
/// `SD_KV_CACHE_UTIL_THRESHOLD`, `SD_METRICS_STALENESS_THRESHOLD`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// Most requests in the engine's queue.
    pub queue_depth: u32,
    /// Highest KV-cache usage, in 0..=1.
    pub kv_usage: f64,
    /// Greatest age of metrics that count.
    pub metrics_age: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { queue_depth: 5, kv_usage: 0.8, metrics_age: Duration::from_millis(200) }
    }
}

impl Thresholds {
    /// True if no endpoint has capacity; also true without endpoints.
    pub fn are_exceeded_by_all<'a>(&self, loads: impl IntoIterator<Item = &'a Load>) -> bool {
        !loads.into_iter().any(|load| self.has_capacity(load))
    }

    fn has_capacity(&self, load: &Load) -> bool {
        let Self { queue_depth, kv_usage, metrics_age } = *self;
        load.age.is_some_and(|age| age <= metrics_age)
            && load.waiting <= queue_depth
            && load.kv_usage <= kv_usage
    }
}
