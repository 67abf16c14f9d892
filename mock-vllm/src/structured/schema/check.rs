//! Checks every schema that a value could meet once, so that making values can rely on its shape.

use super::{SchemaError, resolve};
use crate::structured::decimal::Decimal;
use crate::structured::pattern::{Anchoring, Pattern};
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};

/// Deepest nesting of schemas; `serde_json` reads no deeper.
const DEPTH_LIMIT: usize = 128;
/// Most schemas in one document, each reference counted once.
const N_SCHEMAS_LIMIT: usize = 20_000;
const MIN_LENGTH_LIMIT: u64 = 10_000;
const MIN_ITEMS_LIMIT: u64 = 1_000;
const MIN_PROPERTIES_LIMIT: u64 = 100;

pub(super) const TYPES: [&str; 7] = ["null", "boolean", "integer", "number", "string", "array", "object"];

/// Keywords of JSON Schema that assert but are not supported.
const UNSUPPORTED: [&str; 16] = [
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "patternProperties",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$dynamicRef",
    "$recursiveRef",
    "$anchor",
];

/// Schemas that are still to be checked, and what is known so far.
struct Survey<'s> {
    root: &'s Value,
    pending: Vec<Pending<'s>>,
    /// References that were followed already.
    followed: HashSet<&'s str>,
    patterns: HashMap<String, Pattern>,
}

struct Pending<'s> {
    schema: &'s Value,
    path: String,
    depth: usize,
}

/// Checks a schema and returns its compiled patterns by their source.
pub(super) fn check(root: &Value) -> Result<HashMap<String, Pattern>, SchemaError> {
    let first = Pending { schema: root, path: "#".to_owned(), depth: 0 };
    let mut survey =
        Survey { root, pending: vec![first], followed: HashSet::new(), patterns: HashMap::new() };
    let mut n_schemas = 0;
    while let Some(pending) = survey.pending.pop() {
        n_schemas += 1;
        if pending.depth > DEPTH_LIMIT || n_schemas > N_SCHEMAS_LIMIT {
            return Err(SchemaError::TooDeep);
        }
        match pending.schema {
            Value::Bool(_) => {}
            Value::Object(object) => survey.look_at(object, &pending.path, pending.depth)?,
            Value::Null | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                return Err(invalid(&pending.path, "a schema is an object or a boolean"));
            }
        }
    }
    Ok(survey.patterns)
}

// === impl Survey ===

impl<'s> Survey<'s> {
    fn look_at(
        &mut self,
        schema: &'s Map<String, Value>,
        path: &str,
        depth: usize,
    ) -> Result<(), SchemaError> {
        for (keyword, value) in schema {
            if UNSUPPORTED.contains(&keyword.as_str()) {
                return Err(SchemaError::Unsupported { path: path.to_owned(), keyword: keyword.clone() });
            }
            let at = format!("{path}/{}", keyword.replace('~', "~0").replace('/', "~1"));
            match keyword.as_str() {
                "type" => check_type(value, &at)?,
                "enum" => ensure(
                    value.as_array().is_some_and(|values| !values.is_empty()),
                    &at,
                    "must be a list of values",
                )?,
                "required" => ensure(is_list_of_strings(value), &at, "must be a list of strings")?,
                "uniqueItems" => ensure(value.is_boolean(), &at, "must be a boolean")?,
                "format" => ensure(value.is_string(), &at, "must be a string")?,
                "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {
                    ensure(value.is_number(), &at, "must be a number")?;
                }
                "multipleOf" => {
                    ensure(is_positive(value), &at, "must be a number above 0 of at most 15 decimals")?
                }
                "minLength" => check_count(value, at, "minLength", MIN_LENGTH_LIMIT)?,
                "minItems" => check_count(value, at, "minItems", MIN_ITEMS_LIMIT)?,
                "minProperties" => check_count(value, at, "minProperties", MIN_PROPERTIES_LIMIT)?,
                "maxLength" | "maxItems" | "maxProperties" => {
                    ensure(count(value).is_some(), &at, "must be a whole number of at least 0")?;
                }
                "pattern" => self.add_pattern(value, at)?,
                "$ref" => self.follow(value, at, depth)?,
                "properties" => {
                    let schemas =
                        value.as_object().ok_or_else(|| invalid(&at, "must be an object of schemas"))?;
                    for (name, schema) in schemas {
                        let name = name.replace('~', "~0").replace('/', "~1");
                        self.add(schema, format!("{at}/{name}"), depth);
                    }
                }
                "items" if value.is_array() => self.add_list(value, &at, depth)?,
                "prefixItems" | "anyOf" | "oneOf" | "allOf" => self.add_list(value, &at, depth)?,
                "items" | "additionalItems" | "additionalProperties" | "not" => self.add(value, at, depth),
                // Definitions are checked when something refers to them; all others are annotations.
                _ => {}
            }
        }
        Ok(())
    }

    fn add(&mut self, schema: &'s Value, path: String, depth: usize) {
        self.pending.push(Pending { schema, path, depth: depth + 1 });
    }

    fn add_list(&mut self, value: &'s Value, path: &str, depth: usize) -> Result<(), SchemaError> {
        let schemas = value.as_array().ok_or_else(|| invalid(path, "must be a list of schemas"))?;
        ensure(!schemas.is_empty() || !path.ends_with("Of"), path, "must not be empty")?;
        for (schema_idx, schema) in schemas.iter().enumerate() {
            self.add(schema, format!("{path}/{schema_idx}"), depth);
        }
        Ok(())
    }

    fn follow(&mut self, value: &'s Value, path: String, depth: usize) -> Result<(), SchemaError> {
        let reference = value.as_str().ok_or_else(|| invalid(&path, "must be a string"))?;
        let Some(schema) = resolve(self.root, reference) else {
            return Err(SchemaError::UnresolvedRef { path, reference: reference.to_owned() });
        };
        if self.followed.insert(reference) {
            self.pending.push(Pending { schema, path: reference.to_owned(), depth: depth.min(1) });
        }
        Ok(())
    }

    fn add_pattern(&mut self, value: &Value, path: String) -> Result<(), SchemaError> {
        let source = value.as_str().ok_or_else(|| invalid(&path, "must be a string"))?;
        if self.patterns.contains_key(source) {
            return Ok(());
        }
        let pattern = Pattern::parse(source, Anchoring::Anywhere).map_err(|error| {
            let pattern = source.to_owned();
            SchemaError::Pattern { path, pattern, reason: error.to_string() }
        })?;
        self.patterns.insert(source.to_owned(), pattern);
        Ok(())
    }
}

/// Returns a whole number of at least 0; in JSON Schema 1.0 is one too.
pub(super) fn count(value: &Value) -> Option<u64> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole, positive and in range"
    )]
    let from_float =
        |float: f64| (float.fract() == 0.0 && (0.0..=9e15).contains(&float)).then_some(float as u64);
    value.as_u64().or_else(|| value.as_f64().and_then(from_float))
}

fn check_type(value: &Value, path: &str) -> Result<(), SchemaError> {
    let is_type = |value: &Value| value.as_str().is_some_and(|name| TYPES.contains(&name));
    let is_valid = match value {
        Value::Array(types) => !types.is_empty() && types.iter().all(is_type),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            is_type(value)
        }
    };
    ensure(is_valid, path, "must be a type or a list of types")
}

fn check_count(value: &Value, path: String, keyword: &'static str, limit: u64) -> Result<(), SchemaError> {
    match count(value) {
        Some(count) if count <= limit => Ok(()),
        Some(_) => Err(SchemaError::TooLarge { path, keyword, limit }),
        None => Err(invalid(&path, "must be a whole number of at least 0")),
    }
}

fn is_list_of_strings(value: &Value) -> bool {
    value.as_array().is_some_and(|names| names.iter().all(Value::is_string))
}

fn is_positive(value: &Value) -> bool {
    let Value::Number(number) = value else { return false };
    Decimal::from_number(number).is_some_and(|decimal| decimal.units > 0)
}

fn ensure(holds: bool, path: &str, reason: &'static str) -> Result<(), SchemaError> {
    if holds { Ok(()) } else { Err(invalid(path, reason)) }
}

fn invalid(path: &str, reason: &'static str) -> SchemaError {
    SchemaError::Invalid { path: path.to_owned(), reason }
}
