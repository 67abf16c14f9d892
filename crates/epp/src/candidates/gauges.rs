//! What picks read of a scrape, without a lock: with thousands of endpoints, a lock for each is most of a decision's time.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What is known of an endpoint, in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outline {
    /// No scrape has ended yet.
    Pending,
    /// Scraped, and without LoRA adapters.
    Plain,
    /// Scraped, and with them.
    Adapters,
    /// Nothing listens there.
    Down,
}

/// A scrape's numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reading {
    pub(super) waiting: u32,
    pub(super) running: u32,
    pub(super) kv_usage: f64,
    /// How long ago that was.
    pub(super) age: Duration,
}

/// The last reading. One that is written meanwhile may be read in part: then each number is of the last scrape or of the
/// one before, and both are true enough to pick by.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    outline: AtomicU8,
    waiting: AtomicU32,
    running: AtomicU32,
    kv_usage: AtomicU64,
    /// Nanoseconds since `epoch`.
    taken: AtomicU64,
    /// The first scrape.
    epoch: OnceLock<Instant>,
}

impl Outline {
    const ALL: [Self; 4] = [Self::Pending, Self::Plain, Self::Adapters, Self::Down];
}

impl Gauges {
    #[inline]
    pub(super) fn outline(&self) -> Outline {
        Outline::ALL[usize::from(self.outline.load(Ordering::Acquire)) % Outline::ALL.len()]
    }

    pub(super) fn note_down(&self) {
        self.outline.store(Outline::Down as u8, Ordering::Release);
    }

    /// Notes what a scrape at `taken` found.
    pub(super) fn note(&self, reading: Reading, taken: Instant, has_adapters: bool) {
        let Reading { waiting, running, kv_usage, age: _ } = reading;
        let since = self.since(taken).unwrap_or_else(|| {
            let _ = self.epoch.set(taken);
            0
        });
        self.waiting.store(waiting, Ordering::Relaxed);
        self.running.store(running, Ordering::Relaxed);
        self.kv_usage.store(kv_usage.to_bits(), Ordering::Relaxed);
        self.taken.store(since, Ordering::Relaxed);
        let outline = if has_adapters { Outline::Adapters } else { Outline::Plain };
        self.outline.store(outline as u8, Ordering::Release);
    }

    /// `None` unless the last scrape succeeded.
    #[inline]
    pub(super) fn reading(&self, now: Instant) -> Option<Reading> {
        match self.outline() {
            Outline::Pending | Outline::Down => None,
            Outline::Plain | Outline::Adapters => {
                let age = self.since(now)?.saturating_sub(self.taken.load(Ordering::Relaxed));
                Some(Reading {
                    waiting: self.waiting.load(Ordering::Relaxed),
                    running: self.running.load(Ordering::Relaxed),
                    kv_usage: f64::from_bits(self.kv_usage.load(Ordering::Relaxed)),
                    age: Duration::from_nanos(age),
                })
            }
        }
    }

    /// Nanoseconds from the first scrape to `moment`.
    #[inline]
    fn since(&self, moment: Instant) -> Option<u64> {
        let since = moment.saturating_duration_since(*self.epoch.get()?);
        Some(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Gauges, Outline, Reading};

    #[test]
    #[expect(clippy::disallowed_methods, reason = "any moment will do")]
    fn what_was_noted_is_read() {
        let gauges = Gauges::default();
        let start = Instant::now();
        assert_eq!((gauges.outline(), gauges.reading(start)), (Outline::Pending, None));
        let second = Duration::from_secs(1);
        let reading = Reading { waiting: 1, running: 2, kv_usage: 0.25, age: second };
        for (taken, has_adapters) in [(start, false), (start + second, true)] {
            gauges.note(reading, taken, has_adapters);
            assert_eq!(gauges.reading(taken + second), Some(reading));
            assert_eq!(gauges.outline() == Outline::Adapters, has_adapters);
        }
        gauges.note_down();
        assert_eq!((gauges.outline(), gauges.reading(start)), (Outline::Down, None));
    }
}
