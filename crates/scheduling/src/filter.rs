//! Filters narrow the candidates down and keep their order. A filter never drops all of them.

use std::cmp::Ordering;

use rand::{Rng, RngExt};

use crate::candidate::AdapterState;
use crate::score::Score;

/// Longest queue in which a loaded adapter is worth the wait (upstream's `QUEUING_THRESHOLD_LORA`).
const MAX_ADAPTER_QUEUE: u32 = 128;
/// Probability that a loaded adapter is preferred; otherwise it may spread (upstream's `LORA_AFFINITY_THRESHOLD`).
const ADAPTER_AFFINITY: f64 = 0.999;

/// Facts that one pass over the candidates finds; with thousands of candidates, each pass counts.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Survey {
    n_seen: usize,
    /// The longest share of the request that one candidate holds.
    pub(crate) longest: f64,
    /// True if the candidates' state of the request's adapter matters.
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

/// Keeps the candidates with fresh metrics, or all if none has. Returns the survey of those that are kept.
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

/// Keeps those with the least `cost`; an incomparable cost counts as equal to any.
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

/// Filters for a request whose adapter matters. Drops long queues first, so that affinity does not overload an
/// endpoint. Then keeps the candidates that have the adapter loaded; now and then, or if there are none, those with
/// room for it. Returns true if a loaded adapter decided.
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
