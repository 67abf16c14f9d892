//! Writes a decision down: the record, the log line, the counters.

use std::sync::Arc;

use picking::picker::Placed;
use scheduling::candidate::Candidate;
use scheduling::pick::Reason;
use scheduling::score::Score;
use tracing::{debug, info};

use super::Director;
use crate::candidates::Member;
use crate::explain::{CandidateRecord, Decision};
use crate::metrics::{ModelErrorLabels, ModelLabels, OutcomeLabels, PickLabels};
use ext_proc::refusal::Refusal;

/// Most candidates in a record: a full ring of 1000 records stays below 8 MB for any size of the pool.
const MAX_RECORDED: usize = 64;

/// Facts about a request that are collected while it is decided.
pub(super) struct Trace {
    pub(super) record: Decision,
    /// Labels with names from InferenceModels only, so that clients cannot make up label values.
    pub(super) labels: ModelLabels,
}

impl Director {
    pub(super) fn note_picked(&self, trace: &Trace) {
        let Trace { record, labels } = trace;
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
        self.metrics.requests.get_or_create(labels).inc();
        if record.threshold.is_some() {
            self.metrics.prefix_hit_ratio.observe(record.ratio);
            #[expect(clippy::cast_precision_loss, reason = "prompts are far below 2^53 bytes")]
            self.metrics.prefix_hit_bytes.observe(record.matched_bytes as f64);
        }
    }

    pub(super) fn note_refused(&self, refusal: &Refusal, trace: &mut Trace) {
        let Trace { record, labels } = trace;
        record.outcome = refusal.outcome();
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

/// Logs a new bound of the text that `member` is assumed to hold.
pub(super) fn bounded(member: &Member, bound: Option<u64>) {
    if let Some(max_bytes) = bound {
        debug!(endpoint = %member.destination, max_bytes, "Bounding the prefixes by the cache's size");
    }
}

/// Adds the pick and its reason to the record.
pub(super) fn picked(record: &mut Decision, members: &[&Arc<Member>], placed: &Placed<Member>) {
    let decision = &placed.decision;
    let member = members[decision.candidate_idx];
    record.matched_bytes = placed.candidates[decision.candidate_idx].matched_bytes;
    record.ratio = decision.ratio;
    record.endpoint = Some(Arc::clone(&member.destination));
    record.pod = Some(Arc::clone(&member.pod));
    record.reason = Some(decision.reason.as_str());
    record.fallbacks = decision.fallbacks.iter().map(|idx| Arc::clone(&members[*idx].destination)).collect();
    record.n_candidates = members.len();
    record.candidates = candidate_records(members, placed);
}

/// The picked endpoint and its fallbacks in the form for the proxy: `ip:port,ip:port`.
pub(super) fn destination(record: &Decision) -> String {
    let endpoints: Vec<&str> =
        record.endpoint.iter().chain(&record.fallbacks).map(|endpoint| &**endpoint).collect();
    endpoints.join(",")
}

/// The candidates in their order: all of a small pool, the first ones and the picked one of a large pool.
fn candidate_records(members: &[&Arc<Member>], placed: &Placed<Member>) -> Vec<CandidateRecord> {
    let Placed { decision, candidates, matched, lease: _ } = placed;
    let record = |candidate_idx: usize| {
        let Candidate { endpoint: _, load, adapter, matched_bytes } = candidates[candidate_idx];
        let Score { ratio, work, .. } = decision.scores[candidate_idx];
        let member = members[candidate_idx];
        CandidateRecord {
            endpoint: Arc::clone(&member.destination),
            pod: Arc::clone(&member.pod),
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
    let first = 0..members.len().min(MAX_RECORDED);
    let picked_later = (decision.candidate_idx >= MAX_RECORDED).then_some(decision.candidate_idx);
    first.chain(picked_later).map(record).collect()
}
