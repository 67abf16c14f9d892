//! An object that the lab refuses.

use std::fmt;

use gateway_config::error::TranslateError;
use inference_api::object::ObjectKey;

/// An object that would change what the lab claims if it were left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) kind: String,
    pub(super) key: ObjectKey,
    /// Path of the field and what is wrong with it.
    pub(super) what: String,
}

impl From<TranslateError> for Refusal {
    fn from(TranslateError { kind, key, path, message }: TranslateError) -> Self {
        Self { kind: kind.to_owned(), key, what: format!("{path}: {message}") }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, key, what } = self;
        write!(f, "{kind} {key}: {what}")
    }
}
