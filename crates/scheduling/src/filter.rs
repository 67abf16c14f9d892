//! Narrowing candidates down, keeping their order. A filter never drops all of them.

use std::cmp::Ordering;

use rand::{Rng, RngExt};

use crate::candidate::AdapterState;
use crate::pick::Score;

/// Longest queue in front of which an adapter that is loaded is worth waiting (upstream's `QUEUING_THRESHOLD_LORA`).
const MAX_ADAPTER_QUEUE: u32 = 128;
/// How often a loaded adapter is preferred; else it may spread (upstream's `LORA_AFFINITY_THRESHOLD`).
const ADAPTER_AFFINITY: f64 = 0.999;

/// Keeps the fresh ones, or all if none is.
pub(crate) fn prefer_fresh(scores: &[Score], kept: &mut Vec<usize>) {
    let n_fresh = kept.iter().filter(|idx| scores[**idx].kv_usage.is_some()).count();
    if n_fresh > 0 && n_fresh < kept.len() {
        kept.retain(|idx| scores[*idx].kv_usage.is_some());
    }
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

/// Keeps those that have the adapter loaded; or, now and then and where there are none, those with room for it. Long
/// queues come first, so that affinity does not overload an endpoint. Returns true if a loaded adapter decided.
pub(crate) fn adapter(scores: &[Score], kept: &mut Vec<usize>, rng: &mut impl Rng) -> bool {
    if kept.iter().all(|idx| scores[*idx].adapter == AdapterState::Irrelevant) {
        return false;
    }
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
