//! Makes decisions again offline: from their records, or from requests that were never sent.
//!
//! ```text
//! records ───────────────────────────► replay ─► Explained
//! requests ─► rehearse (a director) ─► records ─┘
//! ```

use std::num::NonZeroUsize;
use std::time::Duration;

use prefix_index::endpoint::EndpointId;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use scheduling::affinity::Affinity;
use scheduling::candidate::{AdapterState, Candidate, Load};
use scheduling::pick::{Ask, Policy, pick};
use scheduling::score::Score;
use serde::{Deserialize, Serialize};

use crate::tuning::{KnobSource, Patch, Tuning};

mod rehearsal;

pub use self::rehearsal::{Rehearsal, RehearsalError};

/// The fields of a decision's record in `/debug/decisions` that a replay needs.
#[derive(Clone, Debug, Deserialize)]
pub struct Record {
    pub seq: u64,
    #[serde(default)]
    pub request: String,
    pub pool: Option<String>,
    pub strategy: Option<String>,
    pub outcome: String,
    pub endpoint: Option<String>,
    pub pod: Option<String>,
    pub reason: Option<String>,
    pub total_bytes: u64,
    /// Values of the knobs at the time, under PREFIX_CACHE.
    pub policy: Option<Patch>,
    pub n_candidates: usize,
    pub candidates: Vec<RecordedCandidate>,
}

/// An endpoint as the policy saw it.
#[derive(Clone, Debug, Deserialize)]
pub struct RecordedCandidate {
    pub endpoint: String,
    pub pod: String,
    pub matched_bytes: u64,
    pub waiting: u32,
    pub running: u32,
    pub kv_usage: f64,
    pub in_flight: u32,
    pub uncached_bytes: u64,
    pub metrics_age_ms: Option<u64>,
    pub fresh: bool,
    pub adapter: AdapterState,
}

/// Comparison of the replay with the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayVerdict {
    /// It has the endpoint and the reason of the record.
    Same,
    /// Another endpoint that is equally good: only a draw decided.
    Draw,
    Differs,
    /// Nothing was picked, so there is nothing to replay.
    Refused,
}

/// A decision and its replay.
#[derive(Clone, Debug, Serialize)]
pub struct Explained {
    pub seq: u64,
    pub request: String,
    pub pool: Option<String>,
    pub strategy: Option<String>,
    pub outcome: String,
    /// The pick in the record.
    pub picked: Option<ReplayedChoice>,
    /// The pick of the replay.
    pub replayed: Option<ReplayedChoice>,
    pub verdict: ReplayVerdict,
    /// The replay's threshold, if prefixes count.
    pub threshold: Option<f64>,
    pub total_bytes: u64,
    /// Number of candidates; a record of a large pool shows only some of them, and the replay knows no others.
    pub n_candidates: usize,
    pub candidates: Vec<Weighed>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReplayedChoice {
    pub endpoint: String,
    pub pod: String,
    pub reason: String,
}

/// A candidate with the replay's figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Weighed {
    pub endpoint: String,
    pub pod: String,
    pub matched_bytes: u64,
    pub ratio: f64,
    /// Requests ahead.
    pub queue: u32,
    /// Absent if the metrics were stale.
    pub kv_usage: Option<f64>,
    /// Work in bytes of prompt; absent under DEFAULT, and if stale metrics rule the endpoint out.
    pub work: Option<f64>,
}

/// Reason why a record cannot be replayed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    #[error("decision {seq} has no candidates, though it picked one")]
    NoCandidates { seq: u64 },
    #[error("decision {seq}: strategy {strategy} is neither DEFAULT nor PREFIX_CACHE")]
    Strategy { seq: u64, strategy: String },
}

/// Makes the decision of `record` again, with the knobs in `changes`.
///
/// # Errors
/// If the record lacks something that the replay needs.
pub fn replay(record: &Record, changes: &Patch) -> Result<Explained, ReplayError> {
    let mut explained = Explained {
        seq: record.seq,
        request: record.request.clone(),
        pool: record.pool.clone(),
        strategy: record.strategy.clone(),
        outcome: record.outcome.clone(),
        picked: None,
        replayed: None,
        verdict: ReplayVerdict::Refused,
        threshold: None,
        total_bytes: record.total_bytes,
        n_candidates: record.n_candidates,
        candidates: Vec::new(),
    };
    let (Some(endpoint), Some(pod), Some(reason)) = (&record.endpoint, &record.pod, &record.reason) else {
        return Ok(explained);
    };
    let policy = policy(record, changes)?;
    let candidates: Vec<Candidate> = (0..).zip(&record.candidates).map(candidate).collect();
    // The record does not contain the draw; any draw shows which candidates are equally good.
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let ask = Ask { total_bytes: record.total_bytes, n_endpoints: NonZeroUsize::MIN };
    let again = pick(&policy, &candidates, ask, &mut rng)
        .map_err(|_| ReplayError::NoCandidates { seq: record.seq })?;
    let recorded_idx = record.candidates.iter().position(|candidate| candidate.endpoint == *endpoint);
    let (new, old) = (again.candidate_idx, recorded_idx.unwrap_or(again.candidate_idx));
    let same_reason = again.reason.as_str() == reason;
    explained.verdict = match () {
        () if new == old && same_reason && recorded_idx.is_some() => ReplayVerdict::Same,
        () if same_reason && are_equal(&again.scores[new], &again.scores[old]) && recorded_idx.is_some() => {
            ReplayVerdict::Draw
        }
        () => ReplayVerdict::Differs,
    };
    let choice = |endpoint: &str, pod: &str, reason: &str| ReplayedChoice {
        endpoint: endpoint.to_owned(),
        pod: pod.to_owned(),
        reason: reason.to_owned(),
    };
    let RecordedCandidate { endpoint: new_endpoint, pod: new_pod, .. } = &record.candidates[new];
    explained.picked = Some(choice(endpoint, pod, reason));
    explained.replayed = Some(choice(new_endpoint, new_pod, again.reason.as_str()));
    explained.threshold = match policy {
        Policy::Default => None,
        Policy::PrefixCache(affinity) => Some(affinity.threshold),
    };
    explained.candidates = record.candidates.iter().zip(&again.scores).map(weighed).collect();
    Ok(explained)
}

fn policy(record: &Record, changes: &Patch) -> Result<Policy, ReplayError> {
    match record.strategy.as_deref() {
        None | Some("DEFAULT") => Ok(Policy::Default),
        Some("PREFIX_CACHE") => {
            let recorded = record.policy.clone().unwrap_or_default();
            let tuning =
                Tuning::default().with(&recorded, KnobSource::BuiltIn).with(changes, KnobSource::Flag);
            Ok(Policy::PrefixCache(tuning.affinity(Affinity::BYTES_PER_TOKEN)))
        }
        Some(other) => Err(ReplayError::Strategy { seq: record.seq, strategy: other.to_owned() }),
    }
}

fn candidate((idx, recorded): (u32, &RecordedCandidate)) -> Candidate {
    let RecordedCandidate { matched_bytes, waiting, running, kv_usage, in_flight, uncached_bytes, .. } =
        *recorded;
    let age = recorded.metrics_age_ms.map(Duration::from_millis);
    let fresh = recorded.fresh;
    Candidate {
        endpoint: EndpointId::new(idx, 0),
        load: Load { waiting, running, kv_usage, in_flight, uncached_bytes, age, fresh },
        adapter: recorded.adapter,
        matched_bytes,
    }
}

/// Returns true if only a draw can decide between the two.
fn are_equal(one: &Score, other: &Score) -> bool {
    let key = |score: &Score| (score.work, score.queue, score.kv_usage, score.adapter);
    key(one) == key(other)
}

fn weighed((recorded, score): (&RecordedCandidate, &Score)) -> Weighed {
    Weighed {
        endpoint: recorded.endpoint.clone(),
        pod: recorded.pod.clone(),
        matched_bytes: recorded.matched_bytes,
        ratio: score.ratio,
        queue: score.queue,
        kv_usage: score.kv_usage,
        work: score.work,
    }
}
