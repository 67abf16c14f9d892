//! From candidates to a decision: score all, filter by prefix and load, draw among what is left.

use std::num::NonZeroUsize;

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

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Length of the request's chain, which matches are measured against.
    pub total_bytes: u64,
    /// Most endpoints to name: the picked one and its fallbacks.
    pub n_endpoints: NonZeroUsize,
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
    /// Positions among the candidates of those to try when the endpoint cannot be reached, in order: each is the one
    /// that would be picked if those before it were not there.
    pub fallbacks: Vec<usize>,
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

/// Picks one of `candidates`, and as many fallbacks as are asked for and there.
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
    ask: Ask,
    rng: &mut impl Rng,
) -> Result<Decision, PickError> {
    let Ask { total_bytes, n_endpoints } = ask;
    let scores: Vec<Score> = candidates.iter().map(|candidate| score(candidate, total_bytes)).collect();
    let mut left: Vec<usize> = (0..scores.len()).collect();
    let (candidate_idx, reason) =
        choose(policy, &scores, left.clone(), rng).ok_or(PickError::NoCandidates)?;
    let reason = match reason {
        Reason::Load if candidates.len() == 1 => Reason::OnlyCandidate,
        Reason::Prefix | Reason::Load | Reason::OnlyCandidate => reason,
    };
    let mut fallbacks = Vec::new();
    let mut taken = candidate_idx;
    while fallbacks.len() + 1 < n_endpoints.get() {
        left.retain(|idx| *idx != taken);
        let Some((next, _)) = choose(policy, &scores, left.clone(), rng) else { break };
        fallbacks.push(next);
        taken = next;
    }
    let Score { endpoint, ratio, queue: _, kv_usage: _ } = scores[candidate_idx];
    Ok(Decision { endpoint, candidate_idx, reason, ratio, fallbacks, scores })
}

/// The best of `kept`, and the rule that found it; `None` if it is empty.
fn choose(
    policy: &Policy,
    scores: &[Score],
    mut kept: Vec<usize>,
    rng: &mut impl Rng,
) -> Option<(usize, Reason)> {
    filter::prefer_fresh(scores, &mut kept);
    let reason = match policy {
        Policy::PrefixCache { threshold } if filter::longest_match(scores, &mut kept, *threshold) => {
            Reason::Prefix
        }
        Policy::Default | Policy::PrefixCache { .. } => Reason::Load,
    };
    filter::least(scores, &mut kept, |score| score.queue);
    filter::least(scores, &mut kept, |score| score.kv_usage);
    match kept[..] {
        [] => None,
        [only] => Some((only, reason)),
        _ => Some((kept[rng.random_range(..kept.len())], reason)),
    }
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
