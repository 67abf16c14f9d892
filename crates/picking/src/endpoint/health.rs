//! An endpoint's health: whether something listens there, and whether its last scrape still counts.
//!
//! An endpoint that is down is not picked while others of its pool are up. An endpoint in doubt may be picked, but its
//! load is not fresh.

use std::sync::atomic::Ordering;

use super::{Cache, EndpointState, Report};
use crate::gauges::Outline;

/// Number of doubts about an endpoint at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubts(u32);

impl EndpointState {
    /// Returns true if the endpoint may be picked: something listens there, as far as is known.
    #[inline]
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        self.gauges.outline() != Outline::Down
    }

    /// Notes that a scrape or a request failed: earlier scrapes do not count until one succeeds that begins later.
    pub fn distrust(&self) {
        self.doubts.fetch_add(1, Ordering::Relaxed);
    }

    /// The doubts so far. A successful scrape that begins now settles them.
    #[must_use]
    pub fn doubts(&self) -> Doubts {
        Doubts(self.doubts.load(Ordering::Relaxed))
    }

    #[inline]
    pub(super) fn is_distrusted(&self) -> bool {
        self.doubts.load(Ordering::Relaxed) != self.settled_doubts.load(Ordering::Relaxed)
    }

    /// Notes that nothing listens at the address.
    #[must_use]
    pub(crate) fn report_down(&self) -> Cache {
        let mut report = self.report.lock();
        let was_up = matches!(*report, Report::Sample(_));
        *report = Report::Down;
        self.gauges.note_down();
        if was_up { Cache::Lost } else { Cache::Kept }
    }

    /// Returns true if a scrape has ended, successfully or not.
    #[must_use]
    pub fn was_asked(&self) -> bool {
        self.is_distrusted() || !matches!(*self.report.lock(), Report::Pending)
    }

    /// Settles the doubts that were there when a scrape began that succeeded.
    pub(super) fn settle(&self, Doubts(n_doubts): Doubts) {
        self.settled_doubts.store(n_doubts, Ordering::Relaxed);
    }
}
