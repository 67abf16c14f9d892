//! Narrowing candidates down, keeping their order. A filter never drops all of them.

use std::cmp::Ordering;

use rand::{Rng, RngExt};

use crate::candidate::AdapterState;
use crate::pick::Score;

/// Longest queue in front of which an adapter that is loaded is worth waiting (upstream's `QUEUING_THRESHOLD_LORA`).
const MAX_ADAPTER_QUEUE: u32 = 128;
/// How often a loaded adapter is preferred; else it may spread (upstream's `LORA_AFFINITY_THRESHOLD`).
const ADAPTER_AFFINITY: f64 = 0.999;

/// What is found in one look at candidates: with thousands of them, each look counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Survey {
    n_seen: usize,
    /// The longest share of the request that one of them holds.
    pub(crate) longest: f64,
    /// Whether what they have of the request's adapter matters.
    pub(crate) is_for_adapter: bool,
}

impl Survey {
    fn note(&mut self, score: &Score) {
        self.n_seen += 1;
        if score.ratio > self.longest {
            self.longest = score.ratio;
        }
        self.is_for_adapter |= score.adapter != AdapterState::Irrelevant;
    }
}

/// Keeps the fresh ones, or all if none is; what those are like.
pub(crate) fn prefer_fresh(scores: &[Score], kept: &mut Vec<usize>) -> Survey {
    let (mut fresh, mut stale) = (Survey::default(), Survey::default());
    for idx in kept.iter() {
        let score = &scores[*idx];
        if score.kv_usage.is_some() { fresh.note(score) } else { stale.note(score) }
    }
    if fresh.n_seen == 0 {
        return stale;
    }
    if stale.n_seen > 0 {
        kept.retain(|idx| scores[*idx].kv_usage.is_some());
    }
    fresh
}

/// Keeps those for which `cost` is least; an incomparable cost counts as equal to any.
pub(crate) fn least<C: PartialOrd>(scores: &[Score], kept: &mut Vec<usize>, cost: impl Fn(&Score) -> C) {
    let mut best: Option<C> = None;
    for idx in kept.iter() {
        let cost = cost(&scores[*idx]);
        if best.as_ref().is_none_or(|best| cost < *best) {
            best = Some(cost);
        }
    }
    if let Some(best) = best {
        kept.retain(|idx| cost(&scores[*idx]).partial_cmp(&best) != Some(Ordering::Greater));
    }
}

/// For a request whose adapter matters. Keeps those that have it loaded; or, now and then and where there are none, those
/// with room for it. Long queues come first, so that affinity does not overload an endpoint. Returns true if a loaded
/// adapter decided.
pub(crate) fn adapter(scores: &[Score], kept: &mut Vec<usize>, rng: &mut impl Rng) -> bool {
    if kept.iter().any(|idx| scores[*idx].queue <= MAX_ADAPTER_QUEUE) {
        kept.retain(|idx| scores[*idx].queue <= MAX_ADAPTER_QUEUE);
    } else {
        least(scores, kept, |score| score.queue);
    }
    let has = |kept: &[usize], state| kept.iter().any(|idx| scores[*idx].adapter == state);
    let (loaded, room) = (has(kept, AdapterState::Loaded), has(kept, AdapterState::Room));
    let preferred = match (loaded, room) {
        (true, true) if !rng.random_bool(ADAPTER_AFFINITY) => AdapterState::Room,
        (true, _) => AdapterState::Loaded,
        (false, true) => AdapterState::Room,
        (false, false) => return false,
    };
    let n_before = kept.len();
    kept.retain(|idx| scores[*idx].adapter == preferred);
    preferred == AdapterState::Loaded && kept.len() < n_before
}
