//! Reads objects as people and API servers have them: with fields that Warmpath does not know, with nulls, and with what
//! the server itself has written.
//!
//! A struct's own list of fields decides what is known. Unknown fields are listed; the reader of files refuses them.
//! An object that cannot be taken is an error with its field, for the caller to turn into a condition or a metric.

use serde_json::Value;

use crate::fields::{Known, UnknownField};
use crate::kinds::{self, Object, ReadError};

/// An object, and what it asks for in vain.
#[derive(Clone, Debug, PartialEq)]
pub struct Lenient {
    pub object: Object,
    /// Fields that were left out because Warmpath does not know them, in the object's order. Fields below such a field
    /// are not listed, nor is anything in `metadata`, nor what is empty and so asks for nothing.
    pub unknown: Vec<UnknownField>,
}

/// Reads one object. Unknown fields are left out, and null means that a field is not set.
///
/// # Errors
/// If the value is not an object of a known kind, or breaks one of the API's rules.
pub fn read(value: Value) -> Result<Lenient, ReadError> {
    let known = Known::default();
    let object = kinds::read(value, &known)?;
    Ok(Lenient { object, unknown: known.into_unknown() })
}
