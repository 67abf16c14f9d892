//! Memory budget for the bodies that the picker holds, over all streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Length up to which a body finds room after long ones have filled theirs: a prompt of some 64,000 tokens.
const SHORT_BODY: usize = 256 << 10;

/// The bytes of bodies that may be held.
#[derive(Debug)]
pub struct Budget {
    max_bytes: usize,
    held: AtomicUsize,
}

/// The bytes that one stream holds; released when dropped.
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
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, held: AtomicUsize::new(0) }
    }

    /// Length of the longest body that can ever find room. A quarter of the budget is kept for short bodies, so that a
    /// few clients with long ones cannot take all room.
    #[must_use]
    pub fn longest_body(&self) -> usize {
        (self.max_bytes - self.max_bytes / 4).max(SHORT_BODY.min(self.max_bytes))
    }

    /// Bytes that all streams hold now.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// A reservation of 0 bytes.
    pub fn reserve(self: &Arc<Self>) -> Reservation {
        Reservation { budget: Arc::clone(self), n_bytes: 0 }
    }

    fn max_bytes(&self, n_bytes: usize) -> usize {
        if n_bytes <= SHORT_BODY { self.max_bytes } else { self.longest_body() }
    }
}

impl Reservation {
    /// Reserves `n_bytes` more.
    ///
    /// # Errors
    /// If the budget has no room for them; the bytes reserved before stay reserved.
    pub fn try_grow(&mut self, n_bytes: usize) -> Result<(), Full> {
        let max_bytes = self.budget.max_bytes(self.n_bytes.saturating_add(n_bytes));
        let grown = |held: usize| held.checked_add(n_bytes).filter(|held| *held <= max_bytes);
        self.budget.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grown).map_err(|_| Full)?;
        self.n_bytes += n_bytes;
        Ok(())
    }

    /// A reservation of 0 bytes in the same budget.
    pub(crate) fn another(&self) -> Self {
        self.budget.reserve()
    }

    /// Releases all bytes.
    pub fn release(&mut self) {
        let n_bytes = std::mem::take(&mut self.n_bytes);
        if n_bytes > 0 {
            self.budget.held.fetch_sub(n_bytes, Ordering::Relaxed);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.release();
    }
}
