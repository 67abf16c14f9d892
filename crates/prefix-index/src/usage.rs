//! When an endpoint used what it holds, counted in its insertions.

/// The number of an insertion, for one endpoint. The count wraps; two uses can be compared while fewer than 2^31
/// insertions lie between them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use(u32);

/// What an insertion found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insertion {
    pub at: Use,
    /// When the deepest part of the chain that the endpoint held already was used before. `None`: it held nothing of it,
    /// or nobody knows.
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
