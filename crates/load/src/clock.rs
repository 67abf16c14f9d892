//! The only clock of the driver's crates.
//! All other code gets a `Duration` or an `OffsetDateTime`, so that joins, statistics and reports can be tested with
//! invented times.

use std::time::{Duration, Instant, SystemTime};

use time::OffsetDateTime;

/// Measures the time since it was started.
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

/// Returns date and time in UTC, for log lines and reports.
#[expect(clippy::disallowed_methods, reason = "reports and log lines carry calendar time")]
pub fn utc_now() -> OffsetDateTime {
    OffsetDateTime::from(SystemTime::now())
}
