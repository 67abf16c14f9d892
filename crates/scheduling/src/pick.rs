//! From candidates to a decision: score all, filter by prefix and load, draw among what is left.

use prefix_index::endpoint::EndpointId;
use rand::{Rng, RngExt};

use crate::candidate::{Candidate, Load};
use crate::filter;

/// How a pool's requests are placed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// By load.
    Default,
    /// To the endpoint that holds the longest part of the request's prefix, where that part is more than `threshold` of
    /// it; otherwise by load.
    PrefixCache { threshold: f64 },
}

/// Which rule chose the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It holds more than the threshold of the prefix, and no other holds more.
    Prefix,
    /// It has the least load.
    Load,
    /// There was no other candidate, and its match does not exceed the threshold.
    OnlyCandidate,
}

/// The endpoint for a request, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    pub endpoint: EndpointId,
    /// The endpoint's position among the candidates.
    pub candidate_idx: usize,
    pub reason: Reason,
    /// The endpoint's matched share of the request, in 0..=1.
    pub ratio: f64,
    /// One per candidate, in the order of the candidates.
    pub scores: Vec<Score>,
}

/// What a candidate was judged by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    pub endpoint: EndpointId,
    /// Matched bytes by total bytes, in 0..=1; 0 if the request has no full block.
    pub ratio: f64,
    /// Requests ahead of this one: in flight plus waiting; in flight alone if the metrics are stale.
    pub queue: u32,
    /// KV-cache usage; `None` if the metrics are stale.
    pub kv_usage: Option<f64>,
}

/// Why there is no decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickError {
    /// No candidate was given.
    #[error("no candidates")]
    NoCandidates,
}

/// Picks one of `candidates` for a request whose chain has `total_bytes`.
///
/// Endpoints with stale metrics may be dead, so they are considered only if no other is left, and then by what this
/// picker has in flight. Load is least queue, then least KV-cache usage, then a draw. A prefix counts if its share is
/// strictly more than the threshold; of those that hold the longest one, load decides.
///
/// # Errors
/// [`PickError::NoCandidates`] if `candidates` is empty.
pub fn pick(
    policy: &Policy,
    candidates: &[Candidate],
    total_bytes: u64,
    rng: &mut impl Rng,
) -> Result<Decision, PickError> {
    let scores: Vec<Score> = candidates.iter().map(|candidate| score(candidate, total_bytes)).collect();
    let mut kept: Vec<usize> = (0..scores.len()).collect();
    filter::prefer_fresh(&scores, &mut kept);
    let reason = match policy {
        Policy::PrefixCache { threshold } if filter::longest_match(&scores, &mut kept, *threshold) => {
            Reason::Prefix
        }
        Policy::Default | Policy::PrefixCache { .. } if candidates.len() == 1 => Reason::OnlyCandidate,
        Policy::Default | Policy::PrefixCache { .. } => Reason::Load,
    };
    filter::least(&scores, &mut kept, |score| score.queue);
    filter::least(&scores, &mut kept, |score| score.kv_usage);
    let candidate_idx = match kept[..] {
        [] => return Err(PickError::NoCandidates),
        [only] => only,
        _ => kept[rng.random_range(..kept.len())],
    };
    let Score { endpoint, ratio, queue: _, kv_usage: _ } = scores[candidate_idx];
    Ok(Decision { endpoint, candidate_idx, reason, ratio, scores })
}

fn score(candidate: &Candidate, total_bytes: u64) -> Score {
    let Candidate { endpoint, load, matched_bytes } = *candidate;
    let Load { waiting, running: _, kv_usage, in_flight, fresh } = load;
    let (waiting, kv_usage) = match fresh {
        true => (waiting, Some(kv_usage)),
        false => (0, None),
    };
    let ratio = match total_bytes {
        0 => 0.0,
        _ => matched_bytes as f64 / total_bytes as f64,
    };
    Score { endpoint, ratio, queue: in_flight.saturating_add(waiting), kv_usage }
}
