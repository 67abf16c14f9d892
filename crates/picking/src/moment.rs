//! The time of decisions, as numbers that are cheap to compare.

use std::time::Duration;

/// A moment in nanoseconds since an epoch that the driver chooses. The difference of two is one subtraction; that of
/// two [`Instant`](std::time::Instant)s would be most of the cost of reading an endpoint's load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(i64);

impl Moment {
    #[must_use]
    pub fn after_epoch(span: Duration) -> Self {
        Self(nanos(span))
    }

    #[must_use]
    pub fn before_epoch(span: Duration) -> Self {
        Self(-nanos(span))
    }

    /// The moment with these [`Self::to_bits`].
    #[inline]
    pub(crate) fn from_bits(bits: i64) -> Self {
        Self(bits)
    }

    #[inline]
    pub(crate) fn to_bits(self) -> i64 {
        self.0
    }

    /// Time since `earlier`; zero if `earlier` is later.
    #[inline]
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

fn nanos(span: Duration) -> i64 {
    i64::try_from(span.as_nanos()).unwrap_or(i64::MAX)
}
