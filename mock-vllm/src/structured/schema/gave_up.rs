//! Reasons why no value is found.

use super::SchemaError;

/// Reason why a branch was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GaveUp {
    Unsatisfiable,
    TooDeep,
    /// Ends the search.
    TooComplex,
}

impl From<GaveUp> for SchemaError {
    fn from(gave_up: GaveUp) -> Self {
        match gave_up {
            GaveUp::Unsatisfiable => Self::Unsatisfiable,
            GaveUp::TooDeep => Self::TooDeep,
            GaveUp::TooComplex => Self::TooComplex,
        }
    }
}
