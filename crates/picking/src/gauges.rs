//! The numbers of a scrape that picks read without a lock: with thousands of endpoints, locks would take most of a
//! decision's time.

use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::moment::Moment;

/// State of an endpoint in one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outline {
    /// No scrape has ended yet.
    Pending,
    /// Scraped, without LoRA adapters.
    Plain,
    /// Scraped, with LoRA adapters.
    Adapters,
    /// Nothing listens there.
    Down,
}

/// Numbers of a scrape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Reading {
    pub(crate) waiting: u32,
    pub(crate) running: u32,
    pub(crate) kv_usage: f64,
    /// Time since the scrape.
    pub(crate) age: Duration,
}

/// The last reading. While it is written, a reader may see numbers of this scrape and of the one before; both are
/// recent enough for a pick.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    outline: AtomicU8,
    waiting: AtomicU32,
    running: AtomicU32,
    kv_usage: AtomicU64,
    /// Bits of a [`Moment`].
    taken: AtomicI64,
}

impl Outline {
    const ALL: [Self; 4] = [Self::Pending, Self::Plain, Self::Adapters, Self::Down];
}

impl Gauges {
    #[inline]
    pub(crate) fn outline(&self) -> Outline {
        Outline::ALL[usize::from(self.outline.load(Ordering::Acquire)) % Outline::ALL.len()]
    }

    pub(crate) fn note_down(&self) {
        self.outline.store(Outline::Down as u8, Ordering::Release);
    }

    /// Notes the numbers of a scrape at `taken`.
    pub(crate) fn note(&self, reading: Reading, taken: Moment, has_adapters: bool) {
        let Reading { waiting, running, kv_usage, age: _ } = reading;
        self.waiting.store(waiting, Ordering::Relaxed);
        self.running.store(running, Ordering::Relaxed);
        self.kv_usage.store(kv_usage.to_bits(), Ordering::Relaxed);
        self.taken.store(taken.to_bits(), Ordering::Relaxed);
        let outline = if has_adapters { Outline::Adapters } else { Outline::Plain };
        self.outline.store(outline as u8, Ordering::Release);
    }

    /// The last reading; `None` unless the last scrape succeeded.
    #[inline]
    pub(crate) fn reading(&self, now: Moment) -> Option<Reading> {
        match self.outline() {
            Outline::Pending | Outline::Down => None,
            Outline::Plain | Outline::Adapters => Some(Reading {
                waiting: self.waiting.load(Ordering::Relaxed),
                running: self.running.load(Ordering::Relaxed),
                kv_usage: f64::from_bits(self.kv_usage.load(Ordering::Relaxed)),
                age: now.since(Moment::from_bits(self.taken.load(Ordering::Relaxed))),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Gauges, Outline, Reading};
    use crate::moment::Moment;

    #[test]
    fn what_was_noted_is_read() {
        let gauges = Gauges::default();
        let start = Moment::default();
        assert_eq!((gauges.outline(), gauges.reading(start)), (Outline::Pending, None));
        let second = Duration::from_secs(1);
        let reading = Reading { waiting: 1, running: 2, kv_usage: 0.25, age: second };
        let (before, after) = (Moment::before_epoch(second), Moment::after_epoch(second));
        // Also for a moment before the epoch.
        for (taken, later, has_adapters) in
            [(start, after, false), (after, Moment::after_epoch(2 * second), true), (before, start, false)]
        {
            gauges.note(reading, taken, has_adapters);
            assert_eq!(gauges.reading(later), Some(reading));
            let ages = gauges.reading(Moment::before_epoch(2 * second)).map(|reading| reading.age);
            assert_eq!(ages, Some(Duration::ZERO));
            assert_eq!(gauges.outline() == Outline::Adapters, has_adapters);
        }
        gauges.note_down();
        assert_eq!((gauges.outline(), gauges.reading(start)), (Outline::Down, None));
    }
}
