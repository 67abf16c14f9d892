//! Pauses between attempts to reach an API server.

use std::time::Duration;

use kube::runtime::utils::Backoff;

/// First pause: an API server that restarts behind a balancer answers again at once.
const FIRST: Duration = Duration::from_millis(100);
/// Longest pause, and so the delay with which a picker notices that the API server is back.
pub(crate) const LONGEST: Duration = Duration::from_secs(5);

/// Doubles from [`FIRST`] to [`LONGEST`].
#[derive(Debug)]
pub(crate) struct Retry {
    next: Duration,
}

// === impl Retry ===

impl Default for Retry {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST);
        Some(pause)
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {
        *self = Self::default();
    }
}
