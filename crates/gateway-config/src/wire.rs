//! A protobuf message as the fields that are on the wire, in their order, for edits that keep what they do not know.

use std::borrow::Cow;

use prost::encoding::{self, WireType};

use crate::error::Malformed;

/// The fields of a message. A field's value is the content of a length-delimited field, and the bytes of others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message<'a> {
    fields: Vec<Field<'a>>,
}

#[derive(Clone, Debug)]
struct Field<'a> {
    number: u32,
    wire_type: WireType,
    value: Cow<'a, [u8]>,
}

impl<'a> Message<'a> {
    pub(crate) fn decode(mut bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let (number, wire_type) = encoding::decode_key(&mut bytes).map_err(|_| Malformed)?;
            let len = match wire_type {
                WireType::Varint => {
                    let mut rest = bytes;
                    encoding::decode_varint(&mut rest).map_err(|_| Malformed)?;
                    bytes.len() - rest.len()
                }
                WireType::SixtyFourBit => 8,
                WireType::ThirtyTwoBit => 4,
                WireType::LengthDelimited => {
                    let len = encoding::decode_varint(&mut bytes).map_err(|_| Malformed)?;
                    usize::try_from(len).map_err(|_| Malformed)?
                }
                // Proto3 has no groups.
                WireType::StartGroup | WireType::EndGroup => return Err(Malformed),
            };
            let (value, rest) = bytes.split_at_checked(len).ok_or(Malformed)?;
            fields.push(Field { number, wire_type, value: Cow::Borrowed(value) });
            bytes = rest;
        }
        Ok(Self { fields })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for Field { number, wire_type, value } in &self.fields {
            encoding::encode_key(*number, *wire_type, &mut bytes);
            if *wire_type == WireType::LengthDelimited {
                encoding::encode_varint(value.len() as u64, &mut bytes);
            }
            bytes.extend_from_slice(value);
        }
        bytes
    }

    /// Values of the length-delimited field `number`, in order.
    pub(crate) fn all(&self, number: u32) -> impl Iterator<Item = &[u8]> {
        let is_wanted =
            move |field: &&Field<'_>| field.number == number && field.wire_type == WireType::LengthDelimited;
        self.fields.iter().filter(is_wanted).map(|field| &*field.value)
    }

    /// Value of the length-delimited field `number`; the last one counts.
    pub(crate) fn bytes(&self, number: u32) -> Option<&[u8]> {
        self.all(number).last()
    }

    /// Value of a string field; empty if it is not set, as in proto3.
    pub(crate) fn text(&self, number: u32) -> &str {
        self.bytes(number).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    pub(crate) fn has(&self, number: u32) -> bool {
        self.fields.iter().any(|field| field.number == number)
    }

    pub(crate) fn remove(&mut self, numbers: &[u32]) {
        self.fields.retain(|field| !numbers.contains(&field.number));
    }

    /// Removes the values of the length-delimited field `number` for which `is_unwanted` is true, and counts them.
    pub(crate) fn remove_if(
        &mut self,
        number: u32,
        is_unwanted: impl Fn(&[u8]) -> Result<bool, Malformed>,
    ) -> Result<usize, Malformed> {
        let n_before = self.fields.len();
        let mut kept = Vec::with_capacity(n_before);
        for field in self.fields.drain(..) {
            let is_candidate = field.number == number && field.wire_type == WireType::LengthDelimited;
            if !(is_candidate && is_unwanted(&field.value)?) {
                kept.push(field);
            }
        }
        self.fields = kept;
        Ok(n_before - self.fields.len())
    }

    /// Merges an encoded part of the same message, which comes last.
    pub(crate) fn merge(&mut self, part: &'a [u8]) -> Result<(), Malformed> {
        self.fields.extend(Self::decode(part)?.fields);
        Ok(())
    }

    /// Inserts a value of the repeated field `number` before its last one.
    pub(crate) fn insert_before_last(&mut self, number: u32, value: Vec<u8>) {
        let last = self.fields.iter().rposition(|field| field.number == number);
        let idx = last.unwrap_or(self.fields.len());
        let value = Cow::Owned(value);
        self.fields.insert(idx, Field { number, wire_type: WireType::LengthDelimited, value });
    }

    /// Inserts before each value of the length-delimited field `number` the one that `before` gives for it.
    pub(crate) fn insert_before_each(
        &mut self,
        number: u32,
        before: impl Fn(&[u8]) -> Result<Option<Vec<u8>>, Malformed>,
    ) -> Result<(), Malformed> {
        let mut fields = Vec::with_capacity(self.fields.len());
        for field in self.fields.drain(..) {
            if field.number == number
                && field.wire_type == WireType::LengthDelimited
                && let Some(value) = before(&field.value)?
            {
                fields.push(Field { value: Cow::Owned(value), ..field });
            }
            fields.push(field);
        }
        self.fields = fields;
        Ok(())
    }

    /// Replaces each value of the length-delimited field `number` for which `edit` gives another.
    pub(crate) fn edit(
        &mut self,
        number: u32,
        mut edit: impl FnMut(&[u8]) -> Result<Option<Vec<u8>>, Malformed>,
    ) -> Result<bool, Malformed> {
        let mut is_edited = false;
        for field in &mut self.fields {
            if field.number == number
                && field.wire_type == WireType::LengthDelimited
                && let Some(value) = edit(&field.value)?
            {
                field.value = Cow::Owned(value);
                is_edited = true;
            }
        }
        Ok(is_edited)
    }
}
