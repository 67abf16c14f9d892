//! Decides whether a value is valid for a checked schema; it judges `oneOf`, `not` and contradictions.

use super::Schema;
use super::check::count;
use crate::structured::decimal::Decimal;
use serde_json::{Map, Number, Value};
use std::cell::Cell;
use std::cmp::Ordering;

/// Deepest nesting of schemas within one value; only a reference to itself reaches it.
const DEPTH_LIMIT: usize = 200;
/// Most comparisons of a schema with a value. After them nothing is accepted, because references can ask for
/// exponentially many.
const N_STEPS_LIMIT: u32 = 200_000;

pub(super) struct Validator<'s> {
    schema: &'s Schema,
    n_steps: Cell<u32>,
}

// === impl Validator ===

impl<'s> Validator<'s> {
    pub(super) fn new(schema: &'s Schema) -> Self {
        Self { schema, n_steps: Cell::new(0) }
    }

    pub(super) fn accepts(&self, schema: &Value, value: &Value) -> bool {
        self.is_valid(schema, value, 0)
    }

    /// Returns whether the limit is reached, so that nothing is accepted any more.
    pub(super) fn is_exhausted(&self) -> bool {
        self.n_steps.get() > N_STEPS_LIMIT
    }

    pub(super) fn satisfies(&self, keywords: &Map<String, Value>, value: &Value) -> bool {
        self.is_valid_object_schema(keywords, value, 0)
    }

    fn is_valid(&self, schema: &Value, value: &Value, depth: usize) -> bool {
        self.n_steps.set(self.n_steps.get().saturating_add(1));
        if depth > DEPTH_LIMIT || self.is_exhausted() {
            return false;
        }
        match schema {
            Value::Object(keywords) => self.is_valid_object_schema(keywords, value, depth),
            other => other == &Value::Bool(true),
        }
    }

    fn is_valid_object_schema(&self, keywords: &Map<String, Value>, value: &Value, depth: usize) -> bool {
        self.satisfies_compositions(keywords, value, depth)
            && keywords.get("type").is_none_or(|types| has_type(types, value))
            && keywords.get("const").is_none_or(|expected| equal(expected, value))
            && keywords
                .get("enum")
                .and_then(Value::as_array)
                .is_none_or(|values| values.iter().any(|v| equal(v, value)))
            && match value {
                Value::Null | Value::Bool(_) => true,
                Value::Number(number) => is_in_bounds(keywords, number),
                Value::String(text) => self.is_valid_text(keywords, text),
                Value::Array(items) => self.is_valid_array(keywords, items, depth),
                Value::Object(fields) => self.is_valid_object(keywords, fields, depth),
            }
    }

    fn satisfies_compositions(&self, keywords: &Map<String, Value>, value: &Value, depth: usize) -> bool {
        let list = |keyword: &str| keywords.get(keyword).and_then(Value::as_array);
        let is_valid = |schema: &Value| self.is_valid(schema, value, depth + 1);
        let reference = keywords.get("$ref").and_then(Value::as_str);
        reference.is_none_or(|reference| self.schema.resolve(reference).is_some_and(is_valid))
            && list("allOf").is_none_or(|schemas| schemas.iter().all(is_valid))
            && list("anyOf").is_none_or(|schemas| schemas.iter().any(is_valid))
            && list("oneOf")
                .is_none_or(|schemas| schemas.iter().filter(|schema| is_valid(schema)).take(2).count() == 1)
            && keywords.get("not").is_none_or(|schema| !is_valid(schema))
    }

    fn is_valid_text(&self, keywords: &Map<String, Value>, text: &str) -> bool {
        let n_chars = text.chars().count() as u64;
        let pattern = keywords.get("pattern").and_then(Value::as_str);
        is_count_in(keywords, n_chars, "minLength", "maxLength")
            && pattern.is_none_or(|source| {
                self.schema.patterns.get(source).is_some_and(|pattern| pattern.matches(text))
            })
    }

    fn is_valid_array(&self, keywords: &Map<String, Value>, items: &[Value], depth: usize) -> bool {
        is_count_in(keywords, items.len() as u64, "minItems", "maxItems")
            && (keywords.get("uniqueItems") != Some(&Value::Bool(true)) || are_unique(items))
            && items.iter().enumerate().all(|(item_idx, item)| {
                item_schema(keywords, item_idx).is_none_or(|schema| self.is_valid(schema, item, depth + 1))
            })
    }

    fn is_valid_object(
        &self,
        keywords: &Map<String, Value>,
        fields: &Map<String, Value>,
        depth: usize,
    ) -> bool {
        let required = keywords.get("required").and_then(Value::as_array);
        is_count_in(keywords, fields.len() as u64, "minProperties", "maxProperties")
            && required.is_none_or(|names| {
                names.iter().all(|name| name.as_str().is_some_and(|name| fields.contains_key(name)))
            })
            && fields.iter().all(|(name, field)| {
                property_schema(keywords, name).is_none_or(|schema| self.is_valid(schema, field, depth + 1))
            })
    }
}

/// Returns the schema of a property in one schema.
pub(super) fn property_schema<'s>(keywords: &'s Map<String, Value>, name: &str) -> Option<&'s Value> {
    let named = keywords.get("properties").and_then(|properties| properties.get(name));
    named.or_else(|| keywords.get("additionalProperties"))
}

/// Returns the schema of an item in one schema, for both spellings of tuples.
pub(super) fn item_schema(keywords: &Map<String, Value>, item_idx: usize) -> Option<&Value> {
    match keywords.get("items") {
        Some(Value::Array(prefix)) => prefix.get(item_idx).or_else(|| keywords.get("additionalItems")),
        items => {
            let prefix = keywords.get("prefixItems").and_then(Value::as_array);
            prefix.and_then(|prefix| prefix.get(item_idx)).or(items)
        }
    }
}

/// Compares like JSON Schema: 1 equals 1.0, and objects have no order.
pub(super) fn equal(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => compare(left, right) == Ordering::Equal,
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| equal(left, right))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(name, left)| right.get(name).is_some_and(|right| equal(left, right)))
        }
        (left, right) => left == right,
    }
}

fn compare(left: &Number, right: &Number) -> Ordering {
    match (Decimal::from_number(left), Decimal::from_number(right)) {
        (Some(left), Some(right)) => left.compare(right),
        (None, _) | (_, None) => {
            let float = |number: &Number| number.as_f64().unwrap_or_default();
            float(left).total_cmp(&float(right))
        }
    }
}

fn is_in_bounds(keywords: &Map<String, Value>, number: &Number) -> bool {
    let bound = |keyword: &str| match keywords.get(keyword) {
        Some(Value::Number(bound)) => Some(compare(number, bound)),
        Some(Value::Null | Value::Bool(_) | Value::String(_) | Value::Array(_) | Value::Object(_)) | None => {
            None
        }
    };
    let step = keywords.get("multipleOf").and_then(Value::as_number).and_then(Decimal::from_number);
    bound("minimum").is_none_or(Ordering::is_ge)
        && bound("maximum").is_none_or(Ordering::is_le)
        && bound("exclusiveMinimum").is_none_or(Ordering::is_gt)
        && bound("exclusiveMaximum").is_none_or(Ordering::is_lt)
        && step
            .is_none_or(|step| Decimal::from_number(number).is_some_and(|number| number.is_multiple_of(step)))
}

fn has_type(types: &Value, value: &Value) -> bool {
    let is_type = |name: &Value| match (name.as_str().unwrap_or_default(), value) {
        ("null", Value::Null)
        | ("boolean", Value::Bool(_))
        | ("number", Value::Number(_))
        | ("string", Value::String(_))
        | ("array", Value::Array(_))
        | ("object", Value::Object(_)) => true,
        ("integer", Value::Number(number)) => {
            number.is_i64() || number.is_u64() || Decimal::from_number(number).is_some_and(Decimal::is_whole)
        }
        _ => false,
    };
    types.as_array().map_or_else(|| is_type(types), |types| types.iter().any(is_type))
}

fn is_count_in(keywords: &Map<String, Value>, n: u64, min: &str, max: &str) -> bool {
    let bound = |keyword: &str| keywords.get(keyword).and_then(count);
    bound(min).is_none_or(|min| n >= min) && bound(max).is_none_or(|max| n <= max)
}

fn are_unique(items: &[Value]) -> bool {
    items.iter().enumerate().all(|(item_idx, item)| !items[..item_idx].iter().any(|other| equal(item, other)))
}
