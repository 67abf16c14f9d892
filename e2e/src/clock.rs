//! The driver's one clock.
//! Everything else is handed a `Duration` or an `OffsetDateTime`, so that joins, statistics and reports can be tested
//! with invented times.

use std::time::{Duration, Instant, SystemTime};

use time::OffsetDateTime;

/// A moment that later moments are measured from.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    #[expect(clippy::disallowed_methods, reason = "the driver measures real latencies")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// The calendar time in UTC, for log lines and reports.
#[expect(clippy::disallowed_methods, reason = "reports and log lines carry calendar time")]
pub fn utc_now() -> OffsetDateTime {
    OffsetDateTime::from(SystemTime::now())
}
