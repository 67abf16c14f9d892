//! A JSON Schema for which values can be made: checked once, then sampled with the caller's randomness.
//!
//! Supported: `type` (also a list), `enum`, `const`, `properties`, `required`, `additionalProperties`, `minProperties`,
//! `maxProperties`, `items`, `prefixItems` (and the older `items: []` with `additionalItems`), `minItems`, `maxItems`,
//! `uniqueItems`, `minimum`, `maximum`, `exclusiveMinimum`, `exclusiveMaximum`, `multipleOf`, `minLength`, `maxLength`,
//! `pattern`, `format`, `anyOf`, `oneOf`, `allOf`, `not`, and `$ref` into the same document. Other keywords that assert
//! are rejected by name. A `format` is obeyed unless a `pattern` beside it has no such texts. Keywords that only
//! annotate are ignored, and so is OpenAPI's `nullable`: null is never made for it.

mod compose;
mod number;
mod gave_up;
mod validate;
mod check;

use super::pattern::Pattern;
use compose::Composer;
use rand::Rng;
use serde_json::Value;
use std::collections::HashMap;
use validate::Validator;

/// Draws of a value that fails the schema, which only `oneOf` and `not` can cause.
const N_ATTEMPTS: usize = 8;

#[derive(Clone, Debug)]
pub struct Schema {
    root: Value,
    /// Patterns by their source.
    patterns: HashMap<String, Pattern>,
}

/// Error of a schema. Paths are JSON pointers into the schema; the root is `#`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    #[error("{path}: {reason}")]
    Invalid { path: String, reason: &'static str },
    #[error("{path}: keyword {keyword} is not supported")]
    Unsupported { path: String, keyword: String },
    #[error("{path}: cannot find {reference} in the schema")]
    UnresolvedRef { path: String, reference: String },
    #[error("{path}: pattern {pattern:?} is not supported: {reason}")]
    Pattern { path: String, pattern: String, reason: String },
    #[error("{path}: {keyword} asks for more than {limit}")]
    TooLarge { path: String, keyword: &'static str, limit: u64 },
    #[error("the schema is nested too deeply or recurses without an end")]
    TooDeep,
    #[error("the schema asks for too large a value")]
    TooComplex,
    #[error("no value satisfies the schema")]
    Unsatisfiable,
}

// === impl Schema ===

impl Schema {
    /// Checks a schema.
    ///
    /// # Errors
    /// Fails if `root` is not a schema, or has keywords, references or sizes that are not supported.
    pub fn parse(root: &Value) -> Result<Self, SchemaError> {
        let patterns = check::check(root)?;
        Ok(Self { root: root.clone(), patterns })
    }

    /// Returns the schema of any object, which `json_object` asks for.
    pub fn any_object() -> Self {
        Self { root: serde_json::json!({"type": "object"}), patterns: HashMap::new() }
    }

    /// Makes a valid value, equal for equal schema and randomness. Properties are in the schema's order.
    ///
    /// # Errors
    /// Fails if there is no valid value, or if none was found within bounds of size, depth and work.
    pub fn generate(&self, rng: &mut dyn Rng) -> Result<Value, SchemaError> {
        let mut last_error = SchemaError::Unsatisfiable;
        for _ in 0..N_ATTEMPTS {
            match Composer::new(self, &mut *rng).compose(&self.root) {
                Ok(value) if self.accepts(&value) => return Ok(value),
                Ok(_) | Err(SchemaError::Unsatisfiable) => {}
                Err(SchemaError::TooComplex) => return Err(SchemaError::TooComplex),
                Err(error) => last_error = error,
            }
        }
        Err(last_error)
    }

    /// Returns whether a value is valid. `format` is not checked.
    pub fn accepts(&self, value: &Value) -> bool {
        Validator::new(self).accepts(&self.root, value)
    }

    /// Returns the schema that `$ref` names; only fragments that are JSON pointers are known.
    fn resolve(&self, reference: &str) -> Option<&Value> {
        resolve(&self.root, reference)
    }
}

fn resolve<'s>(root: &'s Value, reference: &str) -> Option<&'s Value> {
    let pointer = reference.strip_prefix('#')?;
    root.pointer(pointer).or_else(|| root.pointer(&percent_decode(pointer)?))
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let hex = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}
