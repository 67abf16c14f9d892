//! Waits for what must happen: as long as anything changes. A slow machine is waited for, and one on which
//! nothing goes on any more is not.

use std::time::Duration;

use load::clock::Stopwatch;

/// Time without a change after which a log is complete: logs are written when requests end and flushed within 100 ms.
pub const LOGS: Duration = Duration::from_secs(10);
/// Time without a change after which a program does nothing any more.
pub const PROGRAMS: Duration = Duration::from_secs(30);

/// A wait that ends when what is seen stays the same for a time.
#[derive(Debug)]
pub struct Patience<T> {
    limit: Duration,
    started: Stopwatch,
    /// The last sight, and the time when it was new.
    last: Option<(T, Duration)>,
}

impl<T: PartialEq> Patience<T> {
    /// Starts a wait that ends after `limit` without a change.
    pub fn start(limit: Duration) -> Self {
        Self { limit, started: Stopwatch::start(), last: None }
    }

    /// Returns true if `sight` is new, or is not old enough to give up.
    pub fn lasts(&mut self, sight: T) -> bool {
        self.lasts_at(sight, self.started.elapsed())
    }

    fn lasts_at(&mut self, sight: T, now: Duration) -> bool {
        match &self.last {
            Some((last, since)) if *last == sight => now.saturating_sub(*since) < self.limit,
            _ => {
                self.last = Some((sight, now));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Patience;

    #[test]
    fn a_wait_lasts_while_something_changes_and_ends_when_nothing_does() {
        let mut patience = Patience::start(Duration::from_secs(10));
        let mut lasts = |sight: u64, seconds: u64| patience.lasts_at(sight, Duration::from_secs(seconds));
        for n_bytes in 0..100 {
            assert!(lasts(n_bytes, n_bytes * 9), "a slow change at {n_bytes}");
        }
        assert!(lasts(99, 99 * 9 + 9));
        assert!(!lasts(99, 99 * 9 + 10));
    }
}
