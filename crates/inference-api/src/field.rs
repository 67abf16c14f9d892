//! A field of an object that cannot be taken, and why.

use std::fmt;

use thiserror::Error;

/// Fault of one field.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub struct FieldError {
    /// Path such as `spec.targetPorts[0].number`; empty for the object as a whole.
    pub field: String,
    pub what: String,
}

// === impl FieldError ===

impl FieldError {
    pub(crate) fn new(field: impl Into<String>, what: impl Into<String>) -> Self {
        Self { field: field.into(), what: what.into() }
    }
}

impl<E: fmt::Display> From<serde_path_to_error::Error<E>> for FieldError {
    fn from(error: serde_path_to_error::Error<E>) -> Self {
        let path = error.path().to_string();
        let field = if path == "." { String::new() } else { path };
        Self::new(field, error.into_inner().to_string())
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, what } = self;
        if field.is_empty() { f.write_str(what) } else { write!(f, "{field}: {what}") }
    }
}
