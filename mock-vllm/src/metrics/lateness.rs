//! Error of the mock's own timing: the wall time from a streamed token's virtual time to its sending to the client.
//! vLLM has no such metric, so it is shown only on request.

use super::exposition::{Exposition, Labels, MetricHead, Series};
use super::histogram::Histogram;
use parking_lot::Mutex;
use std::time::Duration;

/// Upper bounds in seconds.
const BUCKETS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_15, 0.000_2, 0.000_3, 0.000_4, 0.000_5, 0.000_6, 0.000_7, 0.000_8, 0.000_9,
    0.001, 0.001_25, 0.001_5, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1,
];

/// Lateness of tokens, shared by the requests of a pod.
#[derive(Debug)]
pub struct TokenLateness(Mutex<State>);

#[derive(Debug)]
struct State {
    tokens: Histogram,
    worst: Duration,
}

impl Default for TokenLateness {
    fn default() -> Self {
        Self(Mutex::new(State { tokens: Histogram::new(BUCKETS), worst: Duration::ZERO }))
    }
}

impl TokenLateness {
    /// Counts a token's lateness, in wall time at any time scale.
    pub fn observe(&self, lateness: Duration) {
        let mut state = self.0.lock();
        state.tokens.observe(lateness.as_secs_f64());
        state.worst = state.worst.max(lateness);
    }

    pub(super) fn render(&self, out: &mut Exposition<'_>, labels: &Labels, created: f64) {
        let state = self.0.lock();
        let head = MetricHead {
            name: "mock_vllm:token_lateness_seconds",
            help: "Histogram of wall time between a streamed token's virtual time and its hand-over to the socket, early or late, in seconds.",
        };
        let created = Some(created);
        out.histogram(head, &[Series { labels: labels.clone(), value: &state.tokens, created }]);
        let head = MetricHead {
            name: "mock_vllm:token_lateness_max_seconds",
            help: "The longest of mock_vllm:token_lateness_seconds.",
        };
        let value = state.worst.as_secs_f64();
        out.gauge(head, &[Series { labels: labels.clone(), value, created: None }]);
    }
}
