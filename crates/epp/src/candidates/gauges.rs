//! What picks read of a scrape, without a lock: with thousands of endpoints, a lock for each is most of a decision's time.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering};
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

/// A moment in nanoseconds since the first one that was converted: their difference is one subtraction, where that of
/// [`Instant`]s is most of what it takes to read an endpoint's load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(i64);

/// The last reading. One that is written meanwhile may be read in part: then each number is of the last scrape or of the
/// one before, and both are true enough to pick by.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    outline: AtomicU8,
    waiting: AtomicU32,
    running: AtomicU32,
    kv_usage: AtomicU64,
    /// A [`Moment`].
    taken: AtomicI64,
}

impl Outline {
    const ALL: [Self; 4] = [Self::Pending, Self::Plain, Self::Adapters, Self::Down];
}

impl From<Instant> for Moment {
    fn from(instant: Instant) -> Self {
        static EPOCH: OnceLock<Instant> = OnceLock::new();
        let epoch = *EPOCH.get_or_init(|| instant);
        let nanos = |span: Duration| i64::try_from(span.as_nanos()).unwrap_or(i64::MAX);
        Self(match instant.checked_duration_since(epoch) {
            Some(after) => nanos(after),
            None => -nanos(epoch.saturating_duration_since(instant)),
        })
    }
}

impl Moment {
    #[inline]
    fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
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
    pub(super) fn note(&self, reading: Reading, taken: Moment, has_adapters: bool) {
        let Reading { waiting, running, kv_usage, age: _ } = reading;
        self.waiting.store(waiting, Ordering::Relaxed);
        self.running.store(running, Ordering::Relaxed);
        self.kv_usage.store(kv_usage.to_bits(), Ordering::Relaxed);
        self.taken.store(taken.0, Ordering::Relaxed);
        let outline = if has_adapters { Outline::Adapters } else { Outline::Plain };
        self.outline.store(outline as u8, Ordering::Release);
    }

    /// `None` unless the last scrape succeeded.
    #[inline]
    pub(super) fn reading(&self, now: Moment) -> Option<Reading> {
        match self.outline() {
            Outline::Pending | Outline::Down => None,
            Outline::Plain | Outline::Adapters => Some(Reading {
                waiting: self.waiting.load(Ordering::Relaxed),
                running: self.running.load(Ordering::Relaxed),
                kv_usage: f64::from_bits(self.kv_usage.load(Ordering::Relaxed)),
                age: now.since(Moment(self.taken.load(Ordering::Relaxed))),
            }),
        }
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
        assert_eq!((gauges.outline(), gauges.reading(start.into())), (Outline::Pending, None));
        let second = Duration::from_secs(1);
        let reading = Reading { waiting: 1, running: 2, kv_usage: 0.25, age: second };
        // Also of a moment before the one that all are counted from.
        for (taken, has_adapters) in [(start, false), (start + second, true), (start - second, false)] {
            gauges.note(reading, taken.into(), has_adapters);
            assert_eq!(gauges.reading((taken + second).into()), Some(reading));
            let ages = gauges.reading((taken - second).into()).map(|reading| reading.age);
            assert_eq!(ages, Some(Duration::ZERO));
            assert_eq!(gauges.outline() == Outline::Adapters, has_adapters);
        }
        gauges.note_down();
        assert_eq!((gauges.outline(), gauges.reading(start.into())), (Outline::Down, None));
    }
}
