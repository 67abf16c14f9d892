//! When an endpoint is asked next: often enough that its numbers count, seldom while it has nothing to do, and more and
//! more seldom while it does not answer.

use std::time::Duration;

use rand::{Rng, RngExt};

/// Limits on the age of numbers are no shorter than this many intervals: one passes between two scrapes, and an answer may
/// take as long.
const LIMIT_INTERVALS: u32 = 2;
/// Longest wait for one answer, in scrape intervals, and its bounds. Upstream waits 5 s, and sends requests to a pod that
/// hangs for as long.
const PATIENCE_INTERVALS: u32 = 10;
const PATIENCE_BOUNDS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(1));
/// An endpoint that does not answer is asked again after this many intervals at most, and half as many on top of it: with
/// 3,000 of them, each attempt counts, and one that comes back is found within 1.5 s.
const MAX_BACKOFF_INTERVALS: u32 = 20;

/// How often endpoints are scraped.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    period: Duration,
    idle: Duration,
}

/// The shortest limit on the age of numbers, from `limit` on, that scrapes every `period` keep.
#[must_use]
pub fn age_limit(limit: Duration, period: Duration) -> Duration {
    limit.max(period.saturating_mul(LIMIT_INTERVALS))
}

impl Pace {
    /// Every `period`, and half as often while there is nothing to do, unless numbers would be older than `limit` then.
    #[must_use]
    pub fn new(period: Duration, limit: Duration) -> Self {
        let idle = period.saturating_mul(2);
        // An answer may take an interval.
        let keeps = idle.saturating_add(period) <= limit;
        Self { period, idle: if keeps { idle } else { period } }
    }

    /// From the begin of a scrape that succeeded to the next one's.
    #[must_use]
    pub fn gap(&self, is_idle: bool) -> Duration {
        if is_idle { self.idle } else { self.period }
    }

    /// From the end of the last of `n_failures` scrapes in a row that failed to the next attempt. Endpoints that fail
    /// together are not asked together again.
    #[must_use]
    pub fn backoff(&self, n_failures: u32, rng: &mut impl Rng) -> Duration {
        let intervals = 1_u32.checked_shl(n_failures.saturating_sub(1)).unwrap_or(MAX_BACKOFF_INTERVALS);
        let base = self.period.saturating_mul(intervals.min(MAX_BACKOFF_INTERVALS));
        base.saturating_add(base.mul_f64(rng.random_range(0.0..0.5)))
    }

    /// Longest wait for one answer.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.period.saturating_mul(PATIENCE_INTERVALS).clamp(PATIENCE_BOUNDS.0, PATIENCE_BOUNDS.1)
    }
}
