//! Memory for bodies that the picker holds, counted over all streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use prometheus_client::metrics::gauge::Gauge;

/// Bodies up to this length find room when long ones have filled theirs: a prompt of some 64,000 tokens.
const SHORT_BODY: usize = 256 << 10;

/// How many bytes of bodies may be held.
#[derive(Debug)]
pub struct Budget {
    max_bytes: usize,
    held: AtomicUsize,
    /// Shows what is held.
    gauge: Gauge,
}

/// What one stream holds; given back when dropped.
#[derive(Debug)]
#[must_use]
pub struct Reservation {
    budget: Arc<Budget>,
    n_bytes: usize,
}

/// The budget has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

impl Budget {
    #[must_use]
    pub fn new(max_bytes: usize, gauge: Gauge) -> Self {
        Self { max_bytes, held: AtomicUsize::new(0), gauge }
    }

    /// Length of the longest body that may ever find room. A quarter is kept for short bodies, so that a few clients with
    /// long ones cannot take the room of all.
    #[must_use]
    pub fn longest_body(&self) -> usize {
        (self.max_bytes - self.max_bytes / 4).max(SHORT_BODY.min(self.max_bytes))
    }

    /// Of nothing yet.
    pub fn reserve(self: &Arc<Self>) -> Reservation {
        Reservation { budget: Arc::clone(self), n_bytes: 0 }
    }

    fn max_bytes(&self, n_bytes: usize) -> usize {
        if n_bytes <= SHORT_BODY { self.max_bytes } else { self.longest_body() }
    }
}

impl Reservation {
    /// Takes `n_bytes` more.
    ///
    /// # Errors
    /// When the budget has no room for them; what was held before is held still.
    pub fn try_grow(&mut self, n_bytes: usize) -> Result<(), Full> {
        let max_bytes = self.budget.max_bytes(self.n_bytes.saturating_add(n_bytes));
        let grown = |held: usize| held.checked_add(n_bytes).filter(|held| *held <= max_bytes);
        self.budget.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).map_err(|_| Full)?;
        self.n_bytes += n_bytes;
        self.budget.gauge.inc_by(gauge_value(n_bytes));
        Ok(())
    }

    /// Another one of the same budget, of nothing yet.
    pub(crate) fn another(&self) -> Self {
        self.budget.reserve()
    }

    /// Gives all back.
    pub fn release(&mut self) {
        let n_bytes = std::mem::take(&mut self.n_bytes);
        if n_bytes > 0 {
            self.budget.held.fetch_sub(n_bytes, Ordering::Relaxed);
            self.budget.gauge.dec_by(gauge_value(n_bytes));
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.release();
    }
}

fn gauge_value(n_bytes: usize) -> i64 {
    n_bytes.try_into().unwrap_or(i64::MAX)
}
