//! Makes a decision from candidates: scores all, filters by prefix and load, draws among those that are left.

use std::num::NonZeroUsize;

use prefix_index::endpoint::EndpointId;
use rand::{Rng, RngExt};

use crate::affinity::{Affinity, Burden};
use crate::candidate::{Candidate, Load};
use crate::filter::{self, Survey};
use crate::score::Score;

/// A pool's rule for placing requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// Least load.
    Default,
    /// Longest prefix: the endpoint that holds the longest part of the request's prefix, if that part exceeds the
    /// threshold and the endpoint is not much busier than others; otherwise the endpoint with the least work.
    PrefixCache(Affinity),
}

/// The request as the policy sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Length of the request's chain, with which matches are compared.
    pub total_bytes: u64,
    /// Most endpoints to return: the picked one and its fallbacks.
    pub n_endpoints: NonZeroUsize,
}

/// The rule that chose the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It holds more than the threshold of the prefix, and no endpoint that holds more has about as little work.
    Prefix,
    /// Other endpoints hold more than the threshold of the prefix, but have so much work that this one is faster.
    Spill,
    /// It has the request's LoRA adapter loaded, and not all other endpoints have.
    Adapter,
    /// It has the least load.
    Load,
    /// It is the only candidate, and its match does not exceed the threshold.
    OnlyCandidate,
}

impl Reason {
    /// The name in records, logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Prefix => "prefix",
            Self::Spill => "spill",
            Self::Adapter => "lora",
            Self::Load => "load",
            Self::OnlyCandidate => "only_endpoint",
        }
    }
}

/// The endpoint for a request, and the reason.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    pub endpoint: EndpointId,
    /// The endpoint's position among the candidates.
    pub candidate_idx: usize,
    pub reason: Reason,
    /// The endpoint's matched share of the request, in 0..=1.
    pub ratio: f64,
    /// Positions among the candidates of the endpoints to try in order if the first cannot be reached. Each is the one
    /// that would be picked without those before it.
    pub fallbacks: Vec<usize>,
    /// Scores of all candidates, in their order.
    pub scores: Vec<Score>,
}

/// Reason why there is no decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickError {
    /// The list of candidates is empty.
    #[error("no candidates")]
    NoCandidates,
}

/// Picks one of `candidates`, and up to `n_endpoints - 1` fallbacks.
///
/// Endpoints with stale metrics may be dead, so they count only if no other is left, and then by what this picker has
/// in flight. By default, load means: least queue, then least KV-cache usage, then a draw. With prefixes it means:
/// least work, then the same. A prefix counts if its share is strictly more than the threshold; the holders of the
/// longest prefix are preferred up to the margin. If no prefix counts, endpoints with the request's LoRA adapter loaded
/// come first, then those with room for it, then the rest.
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
    let mut scores: Vec<Score> = candidates.iter().map(|candidate| score(candidate, total_bytes)).collect();
    let all = (0..scores.len()).collect();
    let (candidate_idx, reason) =
        choose(policy, total_bytes, &mut scores, all, rng).ok_or(PickError::NoCandidates)?;
    let reason = match reason {
        Reason::Load if candidates.len() == 1 => Reason::OnlyCandidate,
        Reason::Prefix | Reason::Spill | Reason::Adapter | Reason::Load | Reason::OnlyCandidate => reason,
    };
    let mut fallbacks = Vec::new();
    if n_endpoints.get() > 1 {
        let mut scores = scores.clone();
        let mut left: Vec<usize> = (0..scores.len()).collect();
        let mut taken = candidate_idx;
        while fallbacks.len() + 1 < n_endpoints.get() {
            left.retain(|idx| *idx != taken);
            let Some((next, _)) = choose(policy, total_bytes, &mut scores, left.clone(), rng) else { break };
            fallbacks.push(next);
            taken = next;
        }
    }
    let Score { endpoint, ratio, .. } = scores[candidate_idx];
    Ok(Decision { endpoint, candidate_idx, reason, ratio, fallbacks, scores })
}

/// The best of `kept`, and the rule that found it; `None` if it is empty. Writes the work of all that are considered.
fn choose(
    policy: &Policy,
    total_bytes: u64,
    scores: &mut [Score],
    mut kept: Vec<usize>,
    rng: &mut impl Rng,
) -> Option<(usize, Reason)> {
    let Survey { longest, is_for_adapter, .. } = filter::prefer_fresh(scores, &mut kept);
    let is_prefix = match policy {
        Policy::Default => None,
        Policy::PrefixCache(affinity) => {
            prefer_prefix(affinity, (total_bytes, longest), scores, &mut kept);
            Some((affinity.threshold, longest > affinity.threshold))
        }
    };
    let is_adapter =
        is_for_adapter && !matches!(is_prefix, Some((_, true))) && filter::adapter(scores, &mut kept, rng);
    if is_prefix.is_some() {
        filter::least(scores, &mut kept, |score| score.work);
    }
    filter::least(scores, &mut kept, |score| score.queue);
    filter::least(scores, &mut kept, |score| score.kv_usage);
    let picked = match kept[..] {
        [] => return None,
        [only] => only,
        _ => kept[rng.random_range(..kept.len())],
    };
    let reason = match is_prefix {
        Some((threshold, true)) if scores[picked].ratio > threshold => Reason::Prefix,
        Some((_, true)) => Reason::Spill,
        Some((_, false)) | None if is_adapter => Reason::Adapter,
        Some((_, false)) | None => Reason::Load,
    };
    Some((picked, reason))
}

/// Computes the work of those in `kept`, and keeps the holders of the longest match if it counts and they are not too
/// busy.
fn prefer_prefix(
    affinity: &Affinity,
    (total_bytes, longest): (u64, f64),
    scores: &mut [Score],
    kept: &mut Vec<usize>,
) {
    let counts = longest > affinity.threshold;
    let (mut least, mut least_of_holders) = (f64::INFINITY, f64::INFINITY);
    for idx in kept.iter() {
        let score = &mut scores[*idx];
        let work = affinity.work(Burden {
            uncached_in_flight: score.uncached_in_flight,
            // If no match counts, none is preferred: each endpoint saves nothing.
            own_uncached: if counts { score.uncached_bytes } else { total_bytes },
            queue: score.queue,
            kv_usage: score.kv_usage,
        });
        score.work = Some(work);
        if work < least {
            least = work;
        }
        if score.ratio >= longest && work < least_of_holders {
            least_of_holders = work;
        }
    }
    if counts && least_of_holders <= least + affinity.spill_bytes {
        kept.retain(|idx| scores[*idx].ratio >= longest);
    }
}

fn score(candidate: &Candidate, total_bytes: u64) -> Score {
    let Candidate { endpoint, load, adapter, matched_bytes } = *candidate;
    let Load { waiting, running: _, kv_usage, in_flight, uncached_bytes: uncached_in_flight, age: _, fresh } =
        load;
    let (waiting, kv_usage) = match fresh {
        true => (waiting, Some(kv_usage)),
        false => (0, None),
    };
    Score {
        endpoint,
        ratio: ratio(matched_bytes, total_bytes),
        queue: in_flight.saturating_add(waiting),
        kv_usage,
        uncached_bytes: total_bytes.saturating_sub(matched_bytes),
        uncached_in_flight,
        work: None,
        adapter,
    }
}

/// The matched share of a request, in 0..=1.
pub(crate) fn ratio(matched_bytes: u64, total_bytes: u64) -> f64 {
    match total_bytes {
        0 => 0.0,
        _ => matched_bytes as f64 / total_bytes as f64,
    }
}
