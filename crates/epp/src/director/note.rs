//! Writes a decision down: the record, the log line, the counters.
//!
//! The facts are collected in a [`DecisionTrace`] while the request is decided; the record is built at the end.

use std::sync::Arc;
use std::time::SystemTime;

use inference_api::pool::{Criticality, RoutingStrategy};
use picking::picker::Placed;
use scheduling::candidate::Candidate;
use scheduling::pick::Reason;
use scheduling::score::Score;
use tracing::{debug, info};

use super::Director;
use crate::datastore::LiveEndpoint;
use crate::explain::{CandidateRecord, DecisionRecord, kept_id};
use crate::metrics::models::ModelMetrics;
use crate::metrics::{ModelErrorLabels, ModelLabels, OutcomeLabels, PickLabels};
use crate::tuning::Tuning;
use ext_proc::refusal::Refusal;

/// Most candidates in a record: a full ring of 1000 records stays below 8 MB for any size of the pool.
const MAX_RECORDED: usize = 64;

/// Facts about a request that are collected while it is decided.
pub(super) struct DecisionTrace {
    /// The picker's own id of the request.
    pub(super) request: String,
    pub(super) x_request_id: String,
    pub(super) time: SystemTime,
    /// Metrics with names from InferenceModels only, so that clients cannot make up label values.
    pub(super) metrics: Arc<ModelMetrics>,
    pub(super) pool: Option<Arc<str>>,
    pub(super) strategy: Option<RoutingStrategy>,
    pub(super) model: Option<String>,
    pub(super) target_model: Option<String>,
    pub(super) criticality: Option<Criticality>,
    /// Bytes of the prompt in full blocks.
    pub(super) total_bytes: u64,
    /// Knobs of the policy, under PREFIX_CACHE.
    pub(super) tuning: Option<Arc<Tuning>>,
    pub(super) threshold: Option<f64>,
    pub(super) untokenized: Option<String>,
}

/// The picked endpoint and the reason, in the form of the record.
pub(super) struct PickFacts {
    endpoint: Arc<str>,
    pod: Arc<str>,
    reason: &'static str,
    fallbacks: Vec<Arc<str>>,
    matched_bytes: u64,
    ratio: f64,
    n_candidates: usize,
    candidates: Vec<CandidateRecord>,
}

// === impl DecisionTrace ===

impl DecisionTrace {
    /// A trace of a request about which only its ids are known. `metrics` are those of requests without a model.
    pub(super) fn new(
        (request, x_request_id): (String, String),
        time: SystemTime,
        metrics: Arc<ModelMetrics>,
    ) -> Self {
        Self {
            request,
            x_request_id: kept_id(x_request_id),
            time,
            metrics,
            pool: None,
            strategy: None,
            model: None,
            target_model: None,
            criticality: None,
            total_bytes: 0,
            tuning: None,
            threshold: None,
            untokenized: None,
        }
    }

    /// The record of a request that got an endpoint, with the number `seq`.
    pub(super) fn picked(self, facts: PickFacts, seq: u64) -> DecisionRecord {
        let PickFacts { endpoint, pod, reason, fallbacks, matched_bytes, ratio, n_candidates, candidates } =
            facts;
        DecisionRecord {
            endpoint: Some(endpoint),
            pod: Some(pod),
            reason: Some(reason),
            fallbacks,
            matched_bytes,
            ratio,
            n_candidates,
            candidates,
            ..self.without_endpoint("picked", seq)
        }
    }

    /// The record of a request without an endpoint, with the number `seq`.
    pub(super) fn without_endpoint(self, outcome: &'static str, seq: u64) -> DecisionRecord {
        let Self {
            request,
            x_request_id,
            time,
            metrics: _,
            pool,
            strategy,
            model,
            target_model,
            criticality,
            total_bytes,
            tuning,
            threshold,
            untokenized,
        } = self;
        DecisionRecord {
            seq,
            time,
            request,
            x_request_id,
            pool,
            model,
            target_model,
            criticality: criticality.map(Criticality::as_str),
            strategy: strategy.map(RoutingStrategy::as_str),
            outcome,
            endpoint: None,
            pod: None,
            reason: None,
            fallbacks: Vec::new(),
            matched_bytes: 0,
            total_bytes,
            ratio: 0.0,
            threshold,
            policy: tuning,
            n_candidates: 0,
            candidates: Vec::new(),
            untokenized,
            served: None,
            response: None,
        }
    }
}

// === impl PickFacts ===

impl PickFacts {
    pub(super) fn new(endpoints: &[&Arc<LiveEndpoint>], placed: &Placed<LiveEndpoint>) -> Self {
        let decision = &placed.decision;
        let endpoint = endpoints[decision.candidate_idx];
        Self {
            endpoint: Arc::clone(&endpoint.destination),
            pod: Arc::clone(&endpoint.pod),
            reason: decision.reason.as_str(),
            fallbacks: decision
                .fallbacks
                .iter()
                .map(|idx| Arc::clone(&endpoints[*idx].destination))
                .collect(),
            matched_bytes: placed.candidates[decision.candidate_idx].matched_bytes,
            ratio: decision.ratio,
            n_candidates: endpoints.len(),
            candidates: candidate_records(endpoints, placed),
        }
    }

    /// The picked endpoint and its fallbacks in the form for the proxy: `ip:port,ip:port`.
    pub(super) fn destination(&self) -> String {
        let mut destination = self.endpoint.to_string();
        for fallback in &self.fallbacks {
            destination.push(',');
            destination.push_str(fallback);
        }
        destination
    }
}

// === impl Director ===

impl Director {
    pub(super) fn note_picked(&self, record: &DecisionRecord, metrics: &ModelMetrics) {
        let reason = record.reason.unwrap_or_default();
        if let Some(threshold) = record.threshold
            && reason == Reason::Prefix.as_str()
        {
            info!(
                request = record.request,
                "matching ratio" = format!(" {:.2} > {threshold:.2}", record.ratio),
                "Do prefix-aware routing!"
            );
        }
        debug!(
            request = record.request,
            x_request_id = record.x_request_id,
            endpoint = record.endpoint.as_deref().unwrap_or_default(),
            pod = record.pod.as_deref().unwrap_or_default(),
            reason,
            matched_bytes = record.matched_bytes,
            total_bytes = record.total_bytes,
            "Picked endpoint"
        );
        let pool = record.pool.clone().unwrap_or_default();
        let strategy = record.strategy.unwrap_or_default();
        self.metrics.picks.get_or_create(&PickLabels { pool, strategy, reason }).inc();
        metrics.requests.inc();
        if record.threshold.is_some() {
            self.metrics.prefix_hit_ratio.observe(record.ratio);
            #[expect(clippy::cast_precision_loss, reason = "prompts are far below 2^53 bytes")]
            self.metrics.prefix_hit_bytes.observe(record.matched_bytes as f64);
        }
    }

    pub(super) fn note_refused(&self, refusal: &Refusal, record: &DecisionRecord, labels: &ModelLabels) {
        info!(
            request = record.request,
            x_request_id = record.x_request_id,
            code = refusal.code(),
            error = %refusal,
            "Refused request"
        );
        self.metrics.refusals.get_or_create(&OutcomeLabels { outcome: record.outcome }).inc();
        let ModelLabels { model_name, target_model_name } = labels.clone();
        let error_code = self.options.compat.error_code(refusal);
        let labels = ModelErrorLabels { model_name, target_model_name, error_code };
        self.metrics.request_errors.get_or_create(&labels).inc();
    }
}

/// Logs a new bound of the text that `endpoint` is assumed to hold.
pub(super) fn bounded(endpoint: &LiveEndpoint, bound: Option<u64>) {
    if let Some(max_bytes) = bound {
        debug!(endpoint = %endpoint.destination, max_bytes, "Bounding the prefixes by the cache's size");
    }
}

/// The candidates in their order: all of a small pool, the first ones and the picked one of a large pool.
fn candidate_records(
    endpoints: &[&Arc<LiveEndpoint>],
    placed: &Placed<LiveEndpoint>,
) -> Vec<CandidateRecord> {
    let Placed { decision, candidates, matched, lease: _ } = placed;
    let record = |candidate_idx: usize| {
        let Candidate { endpoint: _, load, adapter, matched_bytes } = candidates[candidate_idx];
        let Score { ratio, work, .. } = decision.scores[candidate_idx];
        let endpoint = endpoints[candidate_idx];
        CandidateRecord {
            endpoint: Arc::clone(&endpoint.destination),
            pod: Arc::clone(&endpoint.pod),
            matched_bytes,
            cached_tokens: matched[candidate_idx].saved_tokens,
            ratio,
            waiting: load.waiting,
            running: load.running,
            kv_usage: load.kv_usage,
            in_flight: load.in_flight,
            uncached_bytes: load.uncached_bytes,
            work,
            fresh: load.fresh,
            adapter,
            metrics_age_ms: load.age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        }
    };
    let first = 0..endpoints.len().min(MAX_RECORDED);
    let picked_later = (decision.candidate_idx >= MAX_RECORDED).then_some(decision.candidate_idx);
    first.chain(picked_later).map(record).collect()
}
