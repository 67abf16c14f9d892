//! Times of scrapes: often enough that the numbers are recent, less often for an idle endpoint, and less and less often
//! for one that does not answer.

use std::time::Duration;

use rand::{Rng, RngExt};

/// Least number of intervals in a limit on the age of numbers: one passes between two scrapes, and an answer may take
/// another.
const LIMIT_INTERVALS: u32 = 2;
/// Longest wait for an answer, in scrape intervals, and the bounds of that wait. Upstream waits 5 s, and sends requests
/// to a hanging pod for that long.
const PATIENCE_INTERVALS: u32 = 10;
const PATIENCE_BOUNDS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(1));
/// Most intervals before an endpoint that does not answer is asked again, plus up to half as many at random. With 3,000
/// such endpoints each attempt counts, and one that comes back is found within 1.5 s.
const MAX_BACKOFF_INTERVALS: u32 = 20;

/// The times between an endpoint's scrapes.
#[derive(Clone, Copy, Debug)]
pub struct ScrapeTimes {
    period: Duration,
    idle: Duration,
}

/// The shortest limit on the age of numbers, at least `limit`, that scrapes every `period` can keep.
#[must_use]
pub fn age_limit(limit: Duration, period: Duration) -> Duration {
    limit.max(period.saturating_mul(LIMIT_INTERVALS))
}

impl ScrapeTimes {
    /// Scrapes every `period`, and half as often while the endpoint is idle, unless the numbers would then be older
    /// than `limit`.
    #[must_use]
    pub fn new(period: Duration, limit: Duration) -> Self {
        let idle = period.saturating_mul(2);
        // An answer may take an interval.
        let keeps = idle.saturating_add(period) <= limit;
        Self { period, idle: if keeps { idle } else { period } }
    }

    /// Start of the scrape after a successful one that began at `begun`, both counted from a moment that several endpoints
    /// have in common: scrapes that begin together wake the picker once.
    #[must_use]
    pub fn next(&self, begun: Duration, is_idle: bool) -> Duration {
        let gap = self.gap(is_idle);
        let since_last =
            begun.as_nanos().checked_rem(gap.as_nanos()).and_then(|nanos| u64::try_from(nanos).ok());
        begun + gap.saturating_sub(Duration::from_nanos(since_last.unwrap_or_default()))
    }

    /// Time by which the scrapes of a row of endpoints are ahead of those of the first row, so that rows differ.
    #[must_use]
    pub fn phase(&self, row: u32) -> Duration {
        /// The fractional parts of this number's multiples are spread evenly, however many there are.
        const GOLDEN_RATIO: f64 = 0.618_033_988_749_895;
        self.period.mul_f64((f64::from(row) * GOLDEN_RATIO).fract())
    }

    /// Longest time from the start of a successful scrape to the start of the next.
    #[must_use]
    pub fn gap(&self, is_idle: bool) -> Duration {
        if is_idle { self.idle } else { self.period }
    }

    /// Time from the last of `n_failures` failed scrapes in a row to the next attempt. It is random, so that endpoints
    /// that fail together are not asked again together.
    #[must_use]
    pub fn backoff(&self, n_failures: u32, rng: &mut impl Rng) -> Duration {
        let intervals = 1_u32.checked_shl(n_failures.saturating_sub(1)).unwrap_or(MAX_BACKOFF_INTERVALS);
        let base = self.period.saturating_mul(intervals.min(MAX_BACKOFF_INTERVALS));
        base.saturating_add(base.mul_f64(rng.random_range(0.0..0.5)))
    }

    /// Longest wait for an answer.
    #[must_use]
    pub fn patience(&self) -> Duration {
        self.period.saturating_mul(PATIENCE_INTERVALS).clamp(PATIENCE_BOUNDS.0, PATIENCE_BOUNDS.1)
    }
}
