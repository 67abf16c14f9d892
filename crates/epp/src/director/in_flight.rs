//! A request after its pick, until its stream ends: what it holds, and what its response teaches.

use std::sync::Arc;
use std::time::Instant;

use picking::estimate::{Correction, Learned, ReportedUsage};
use picking::lease::Lease;
use pool_index::snapshot::Slot;
use prefix_index::chain::Chain;
use tracing::debug;

use super::{Director, Now, note};
use crate::datastore::LiveEndpoint;
use crate::explain::ResponseRecord;
use crate::metrics::Counted;
use crate::metrics::models::ModelMetrics;
use crate::observed::Engine;
use ext_proc::exchange::ResponseReport;
use ext_proc::response::Usage;

/// Everything that a request holds while it is served.
#[derive(Debug)]
#[must_use]
pub struct InFlightRequest {
    pub(super) lease: Lease<LiveEndpoint>,
    /// Counts the request among the running ones of the model.
    pub(super) running: Counted,
    pub(super) metrics: Arc<ModelMetrics>,
    /// Chain of each prompt, under PREFIX_CACHE.
    pub(super) chains: Vec<Chain>,
    pub(super) started: Instant,
    /// Number of the decision's record.
    pub(super) seq: u64,
}

impl InFlightRequest {
    /// `ip:port` of the picked endpoint.
    #[must_use]
    pub fn destination(&self) -> &Arc<str> {
        &self.lease.endpoint().destination
    }

    /// Notes that the prompt is computed.
    pub fn note_first_token(&mut self) {
        self.lease.on_first_token();
    }
}

impl Director {
    /// Notes that `served` answered instead of the picked endpoint, which therefore could not be reached. The picked
    /// endpoint counts as stale until it is scraped again, and `served` has the prompt that it was assumed to get.
    pub fn note_served_elsewhere(&self, in_flight: &mut InFlightRequest, served: &str, now: Now) {
        self.metrics().served_elsewhere.inc();
        debug!(picked = %in_flight.lease.endpoint().destination, served, "Served by another endpoint");
        in_flight.lease.endpoint().state.distrust();
        let datastore = self.datastore.load();
        let Some(endpoint) = datastore.endpoints.iter().find(|endpoint| *endpoint.destination == *served)
        else {
            return;
        };
        self.tell_peers(&in_flight.chains, endpoint, now);
        self.picker.on_served_elsewhere(&mut in_flight.lease, &in_flight.chains, endpoint);
        self.decisions().amend(in_flight.seq, |record| record.served = Some(endpoint.destination.clone()));
    }

    /// The request's engine according to its scrapes, and whether it has had no request since a moment after `since`.
    #[must_use]
    pub fn engine(&self, in_flight: &InFlightRequest, since: Instant, now: Instant) -> Engine<Slot> {
        let endpoint = in_flight.lease.endpoint();
        let load = endpoint.state.load(self.moment(now), self.options.max_metrics_age);
        let n_requests = load.fresh.then(|| usize::try_from(load.waiting.saturating_add(load.running)));
        Engine {
            key: endpoint.slot,
            is_quiet: endpoint.state.was_quiet_after(self.moment(since)),
            n_requests: n_requests.and_then(Result::ok),
        }
    }

    /// `ip:port` of the endpoint in `slot`; `None` if it is gone.
    #[must_use]
    pub fn destination(&self, slot: Slot) -> Option<Arc<str>> {
        let datastore = self.datastore.load();
        let idx = datastore.endpoints.binary_search_by_key(&slot, |endpoint| endpoint.slot).ok()?;
        Some(Arc::clone(&datastore.endpoints[idx].destination))
    }

    /// Ends the request: its stream is over.
    pub fn settle(&self, in_flight: InFlightRequest, report: &ResponseReport, now: Instant) {
        let InFlightRequest { mut lease, running, metrics, chains: _, started, seq } = in_flight;
        let ResponseReport { status, usage, n_bytes, complete } = *report;
        if complete != Some(false) && status.is_some_and(|status| (200..300).contains(&status)) {
            lease.on_first_token();
        }
        let answer = usage.filter(|_| complete == Some(true)).map(|usage| {
            let Usage { prompt_tokens, completion_tokens, cached_tokens } = usage;
            ReportedUsage { prompt_tokens, completion_tokens, cached_tokens }
        });
        let endpoint = Arc::clone(lease.endpoint());
        let learned = self.picker.on_end(lease, answer);
        let predicted_cached_tokens = learned.map(|learned| self.note_learned(&endpoint, learned));
        drop(running);
        let seconds = now.saturating_duration_since(started).as_secs_f64();
        if complete != Some(false) {
            metrics.request_seconds.observe(seconds);
        }
        if complete == Some(true) {
            #[expect(clippy::cast_precision_loss, reason = "bodies are far below 2^53 bytes")]
            metrics.response_bytes.observe(n_bytes as f64);
            if let Some(usage) = usage {
                note_usage(&metrics, usage, seconds);
            }
        }
        let response = ResponseRecord { status, complete, usage, predicted_cached_tokens };
        self.decisions().amend(seq, |record| record.response = Some(response));
    }

    /// Logs and counts what an answer of `endpoint` taught. Returns the number of tokens that were predicted to be
    /// cached.
    fn note_learned(&self, endpoint: &LiveEndpoint, learned: Learned) -> f64 {
        let Learned { predicted_tokens, error, bound, correction } = learned;
        note::bounded(endpoint, bound);
        if let Some(error) = error {
            self.metrics.prefix_estimate_error.observe(error);
        }
        if let Some(Correction { estimated_tokens, cached_tokens, n_blocks }) = correction {
            self.metrics.prefix_corrections.inc();
            self.metrics.prefix_corrected_blocks.inc_by(n_blocks);
            let (estimated, cached) = (estimated_tokens, cached_tokens);
            debug!(endpoint = %endpoint.destination, estimated, cached, n_blocks, "Correcting the estimate");
        }
        predicted_tokens
    }
}

fn note_usage(metrics: &ModelMetrics, usage: Usage, seconds: f64) {
    let Usage { prompt_tokens, completion_tokens, cached_tokens } = usage;
    for (histogram, tokens) in [
        (&metrics.input_tokens, prompt_tokens),
        (&metrics.output_tokens, completion_tokens),
        (&metrics.prompt_cached_tokens, cached_tokens),
    ] {
        if let Some(tokens) = tokens {
            histogram.observe(tokens.into());
        }
    }
    if let Some(tokens @ 1..) = completion_tokens {
        metrics.seconds_per_output_token.observe(seconds / f64::from(tokens));
    }
}
