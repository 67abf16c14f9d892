//! Reasons why no value is found.

use super::SchemaError;

/// Reason why a branch was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    Unsatisfiable,
    TooDeep,
    /// Ends the search.
    TooComplex,
}

impl From<Stop> for SchemaError {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Unsatisfiable => Self::Unsatisfiable,
            Stop::TooDeep => Self::TooDeep,
            Stop::TooComplex => Self::TooComplex,
        }
    }
}
