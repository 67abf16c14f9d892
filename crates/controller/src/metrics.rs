//! The controller's own metrics.

use std::time::Duration;

use inference_api::pool::BodyMode;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use pool_watch::metrics::WatchStateCollector;
use pool_watch::watches::WatchState;

/// A hook of Envoy Gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Hook {
    Route,
    Cluster,
    Translation,
}

/// The answer to a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Answer {
    Edited,
    /// Sent back as it came: it has no pool, or none that can be attached.
    Kept,
    Refused,
}

/// A way of writing to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Verb {
    Create,
    Apply,
    Patch,
    Delete,
}

/// The end of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    Written,
    /// The object has changed in the meantime.
    Late,
    Failed,
}

/// The end of a look at somebody else's picker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Probe {
    Answered,
    Unanswered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProbeLabels {
    outcome: Probe,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BodyModeLabels {
    body_mode: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HookLabels {
    hook: Hook,
    answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    verb: Verb,
    outcome: Outcome,
}

/// Counts what the controller does.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    hooks: Family<HookLabels, Counter>,
    hook_seconds: Histogram,
    writes: Family<WriteLabels, Counter>,
    probes: Family<ProbeLabels, Counter>,
    body_modes: Family<BodyModeLabels, Gauge>,
    pools: Gauge,
    managed_pickers: Gauge,
    problems: Gauge,
}

impl Metrics {
    /// Metrics that include the state of the connection to the API server.
    #[must_use]
    pub fn new(watch_state: watch::Receiver<WatchState>) -> Self {
        let buckets = [0.000_1, 0.000_5, 0.002, 0.01, 0.02, 0.05, 0.2, 1.0, 5.0];
        let mut metrics = Self {
            registry: Registry::default(),
            hooks: Family::default(),
            hook_seconds: Histogram::new(buckets),
            writes: Family::default(),
            probes: Family::default(),
            body_modes: Family::default(),
            pools: Gauge::default(),
            managed_pickers: Gauge::default(),
            problems: Gauge::default(),
        };
        let Self {
            registry,
            hooks,
            hook_seconds,
            writes,
            probes,
            body_modes,
            pools,
            managed_pickers,
            problems,
        } = &mut metrics;
        registry.register("controller_hooks", "Calls of Envoy Gateway by their answer", hooks.clone());
        registry.register("controller_hook_seconds", "Time that a call took", hook_seconds.clone());
        registry.register("controller_writes", "Writes to the API server by their end", writes.clone());
        let help = "Looks at pickers of others by their end";
        registry.register("controller_probes", help, probes.clone());
        let help = "Pools with pickers of others by the way in which these take bodies";
        registry.register("controller_picker_body_modes", help, body_modes.clone());
        registry.register("controller_pools", "InferencePools", pools.clone());
        registry.register("controller_managed_pickers", "Pickers that run here", managed_pickers.clone());
        let help = "Pools that cannot be served as they ask; the log says which";
        registry.register("controller_problems", help, problems.clone());
        registry.register_collector(Box::new(WatchStateCollector::new("controller", watch_state)));
        metrics
    }

    pub fn count(&self, verb: Verb, outcome: Outcome) {
        self.writes.get_or_create(&WriteLabels { verb, outcome }).inc();
    }

    pub fn observe(&self, hook: Hook, answer: Answer, took: Duration) {
        self.hooks.get_or_create(&HookLabels { hook, answer }).inc();
        self.hook_seconds.observe(took.as_secs_f64());
    }

    pub fn set_counts(&self, n_pools: usize, n_pickers: usize, n_problems: usize) {
        for (gauge, n) in
            [(&self.pools, n_pools), (&self.managed_pickers, n_pickers), (&self.problems, n_problems)]
        {
            gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
        }
    }

    pub fn count_probe(&self, outcome: Probe) {
        self.probes.get_or_create(&ProbeLabels { outcome }).inc();
    }

    /// Sets the number of pools whose picker takes bodies in this mode.
    pub fn set_body_mode(&self, mode: BodyMode, n_pools: usize) {
        let labels = BodyModeLabels { body_mode: mode.as_str() };
        self.body_modes.get_or_create(&labels).set(i64::try_from(n_pools).unwrap_or(i64::MAX));
    }

    /// All metrics in the OpenMetrics text format.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes every text");
        text
    }
}
