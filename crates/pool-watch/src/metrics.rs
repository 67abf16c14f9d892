//! The state of the connection to an API server as metrics.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::sync::watch;

use crate::watches::WatchState;

/// Reads the state when the metrics are read.
#[derive(Debug)]
pub struct WatchStateCollector {
    /// The program's prefix of metric names.
    prefix: &'static str,
    watch_state: watch::Receiver<WatchState>,
}

impl WatchStateCollector {
    #[must_use]
    pub fn new(prefix: &'static str, watch_state: watch::Receiver<WatchState>) -> Self {
        Self { prefix, watch_state }
    }
}

impl Collector for WatchStateCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let WatchState { is_listed, is_failing, n_failures, n_refused } = self.watch_state.borrow().clone();
        let name = |name: &str| format!("{}_kubernetes_{name}", self.prefix);
        let mut gauge = |metric, help, value: u64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(&name(metric), help, None, gauge.metric_type())?)
        };
        gauge("listed", "1 once the first lists are in", is_listed.into())?;
        gauge(
            "failing",
            "1 while the API server does not answer, and what is known stays in force",
            is_failing.into(),
        )?;
        gauge("refused_objects", "Objects whose newest version is not valid", n_refused as u64)?;
        let failures = ConstCounter::new(n_failures);
        let help = "Failures of watches since the start";
        failures.encode(encoder.encode_descriptor(&name("failures"), help, None, failures.metric_type())?)
    }
}
