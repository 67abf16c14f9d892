//! State of the connection to an API server.

use std::fmt;

use pool_watch::source::Standing;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::sync::watch;

/// Reads the state when the metrics are read.
#[derive(Debug)]
pub(super) struct ClusterStanding(pub(super) watch::Receiver<Standing>);

impl Collector for ClusterStanding {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Standing { is_listed, is_failing, n_failures, n_refused } = self.0.borrow().clone();
        let mut gauge = |name, help, value: u64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge("epp_kubernetes_listed", "1 once the first lists of pools and pods are in", is_listed.into())?;
        gauge(
            "epp_kubernetes_failing",
            "1 while the API server does not answer, and what is known stays in force",
            is_failing.into(),
        )?;
        gauge(
            "epp_kubernetes_refused_objects",
            "InferencePools and InferenceModels whose newest version is not valid",
            n_refused as u64,
        )?;
        let failures = ConstCounter::new(n_failures);
        let help = "Failures of watches since the start";
        failures.encode(encoder.encode_descriptor(
            "epp_kubernetes_failures",
            help,
            None,
            failures.metric_type(),
        )?)
    }
}
