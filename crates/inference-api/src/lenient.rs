//! Reads objects as an API server holds them: with fields of versions that Warmpath does not know, with nulls, and with
//! what the server itself has written.
//!
//! A struct's own list of fields decides what is known, so that the strict reader and this one share every wire form.
//! An object that cannot be taken is an error with its field, for the caller to turn into a condition or a metric.

use std::cell::RefCell;

use serde::de::value::{MapDeserializer, SeqDeserializer};
use serde::de::{DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::Value;

use crate::field::FieldError;
use crate::kinds::{self, Fields, Object, ReadError};

/// Path of the field that belongs to the server and to tools; nothing there asks for an effect.
const METADATA: &str = "metadata";

/// An object, and what it asks for in vain.
#[derive(Clone, Debug, PartialEq)]
pub struct Lenient {
    pub object: Object,
    /// Paths of the fields that were left out because Warmpath does not know them, in the object's order. Fields below
    /// such a field are not listed, nor is anything in `metadata`.
    pub unknown: Vec<String>,
}

/// Reads one object. Unknown fields are left out, and null means that a field is not set.
///
/// # Errors
/// If the value is not an object of a known kind, or breaks one of the API's rules.
pub fn read(value: Value) -> Result<Lenient, ReadError> {
    let mut known = Known::default();
    let object = kinds::read(value, &mut known)?;
    Ok(Lenient { object, unknown: known.unknown.into_inner() })
}

/// Lets known fields through.
#[derive(Default)]
struct Known {
    unknown: RefCell<Vec<String>>,
}

impl Fields for Known {
    fn read<W: DeserializeOwned>(&mut self, value: Value) -> Result<W, FieldError> {
        let place = Place { path: String::new(), unknown: &self.unknown };
        Ok(serde_path_to_error::deserialize(Node { value, place })?)
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
    unknown: &'a RefCell<Vec<String>>,
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
    fn leave_out(&self, name: &str) {
        if self.path != METADATA {
            self.unknown.borrow_mut().push(self.field(name).path);
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
                place.leave_out(name);
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
