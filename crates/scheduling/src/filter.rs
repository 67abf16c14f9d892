//! Narrowing candidates down, keeping their order. A filter never drops all of them.

use std::cmp::Ordering;

use crate::pick::Score;

/// Keeps the fresh ones, or all if none is.
pub(crate) fn prefer_fresh(scores: &[Score], kept: &mut Vec<usize>) {
    if kept.iter().any(|idx| scores[*idx].kv_usage.is_some()) {
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
