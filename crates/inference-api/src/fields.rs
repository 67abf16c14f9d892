//! The fields of an object: those that a struct knows are read, the others are left out and listed.
//!
//! A struct's own list of fields decides what is known.

use std::cell::RefCell;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::Value;

use crate::field::FieldError;

/// Name of the field that belongs to the server and to tools; nothing there asks for an effect.
const METADATA: &str = "metadata";
/// Fields of every object that name its kind, or that the server writes.
const OF_EVERY_OBJECT: [&str; 3] = ["apiVersion", "kind", "status"];

/// A field that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownField {
    /// Path such as `spec.selector.matchExpressions`.
    pub path: String,
    /// Names that are known in its place.
    pub known: &'static [&'static str],
}

/// Lets known fields through.
#[derive(Default)]
pub(crate) struct Known {
    unknown: RefCell<Vec<UnknownField>>,
}

impl Known {
    /// Deserialises the wire form `W` of an object.
    pub(crate) fn read<W: DeserializeOwned>(&self, value: Value) -> Result<W, FieldError> {
        let place = Place { path: String::new(), unknown: &self.unknown };
        Ok(serde_path_to_error::deserialize(Node { value, place })?)
    }

    /// The fields that were left out.
    pub(crate) fn into_unknown(self) -> Vec<UnknownField> {
        self.unknown.into_inner()
    }
}

/// A value of an object.
///
/// Structs, and what can contain them, are read here; everything else is read as serde reads it. A struct inside an
/// untagged enum would be read strictly, and no wire form has one.
struct Node<'a> {
    value: Value,
    place: Place<'a>,
}

/// Path of a value in its object.
struct Place<'a> {
    path: String,
    unknown: &'a RefCell<Vec<UnknownField>>,
}

// === impl Place ===

impl Place<'_> {
    fn field(&self, name: &str) -> Self {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Self { path, unknown: self.unknown }
    }

    fn element(&self, idx: usize) -> Self {
        Self { path: format!("{}[{idx}]", self.path), unknown: self.unknown }
    }

    /// Notes that the field `name` is left out.
    fn leave_out(&self, name: &str, value: &Value, known: &'static [&'static str]) {
        let is_empty = match value {
            Value::Null => true,
            Value::Object(map) => map.is_empty(),
            Value::Array(values) => values.is_empty(),
            Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        };
        let is_metadata = self.path.rsplit('.').next() == Some(METADATA);
        let is_of_every_object = self.path.is_empty() && OF_EVERY_OBJECT.contains(&name);
        if !is_empty && !is_metadata && !is_of_every_object {
            self.unknown.borrow_mut().push(UnknownField { path: self.field(name).path, known });
        }
    }
}

// === impl Node ===

impl<'de> Deserializer<'de> for Node<'_> {
    type Error = serde_json::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        let Self { value, place } = self;
        let Value::Object(map) = value else {
            return value.deserialize_any(visitor);
        };
        let set = map.into_iter().filter(|(name, value)| {
            let is_known = fields.contains(&name.as_str());
            if !is_known {
                place.leave_out(name, value, fields);
            }
            is_known && !value.is_null()
        });
        visitor.visit_map(MapDeserializer::new(set.map(|(name, value)| {
            let place = place.field(&name);
            (name, Node { value, place })
        })))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        let Self { value, place } = self;
        let Value::Object(map) = value else {
            return value.deserialize_any(visitor);
        };
        visitor.visit_map(MapDeserializer::new(map.into_iter().map(|(name, value)| {
            let place = place.field(&name);
            (name, Node { value, place })
        })))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        let Self { value, place } = self;
        let Value::Array(values) = value else {
            return value.deserialize_any(visitor);
        };
        let elements = values.into_iter().enumerate();
        visitor.visit_seq(SeqDeserializer::new(
            elements.map(|(idx, value)| Node { value, place: place.element(idx) }),
        ))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.value.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        self.value.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.value.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple
        tuple_struct identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, serde_json::Error> for Node<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}
