//! Times at which an endpoint used what it holds, counted in its insertions.

/// The number of an endpoint's insertion. The count wraps around; two uses are comparable if fewer than 2^31 insertions
/// lie between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use(u32);

/// Result of an insertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insertion {
    pub at: Use,
    /// Previous use of the deepest part of the chain that the endpoint already held. `None` if it held nothing of the
    /// chain, or the time is unknown.
    pub previous: Option<Use>,
}

// === impl Use ===

impl Use {
    #[must_use]
    pub fn is_after(self, other: Self) -> bool {
        self.0 != other.0 && self.0.wrapping_sub(other.0) < u32::MAX / 2
    }

    pub(crate) fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}
