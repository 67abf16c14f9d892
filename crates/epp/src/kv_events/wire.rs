//! Decodes batches of KV events in msgpack, in both of vLLM's forms: events as arrays that grew at their end (0.8 to
//! 0.11), and as maps (since 0.12).
//!
//! Blocks outside the GPU, and those of a second cache group, save no prefill of a plain model: they are left out.

use bytes::Bytes;
use prefix_index::blocks::{BlockEvent, EngineHash, Stored, media_key};
use rmpv::Value;

/// Deepest nesting of a batch: its events, a block's extra keys, an image's pair.
const MAX_DEPTH: usize = 16;
/// Fields of an event in the array form, after its type.
const STORED: [&str; 9] = [
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
];
const REMOVED: [&str; 3] = ["block_hashes", "medium", "group_idx"];

/// Reason why a message is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    #[error("{0} frames, not a topic, a number and a batch")]
    Frames(usize),
    #[error("a number of {0} bytes, not 8")]
    Number(usize),
    #[error("not msgpack: {0}")]
    Syntax(String),
    #[error("not a batch of events")]
    NotABatch,
    #[error("an event without {0}")]
    Missing(&'static str),
}

/// A message as it was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Number of the message in its process, from 0.
    pub number: u64,
    pub batch: Bytes,
}

/// An event in either form.
struct Event<'a> {
    fields: &'a [Value],
    names: &'static [&'static str],
    map: Option<&'a [(Value, Value)]>,
}

impl Message {
    /// Creates a message from its frames: a topic, a number of 8 bytes (big endian) and a batch.
    ///
    /// # Errors
    /// If these are not the frames.
    pub fn new(frames: &[Bytes]) -> Result<Self, WireError> {
        let [_, number, batch] = frames else { return Err(WireError::Frames(frames.len())) };
        Ok(Self { number: number_of(number)?, batch: batch.clone() })
    }
}

pub(super) fn number_of(bytes: &Bytes) -> Result<u64, WireError> {
    let bytes: [u8; 8] = bytes.as_ref().try_into().map_err(|_| WireError::Number(bytes.len()))?;
    Ok(u64::from_be_bytes(bytes))
}

/// The events of a batch `[time, [event, …], rank]`. Unknown types are left out, because later engines may have more.
///
/// # Errors
/// If `batch` is not a batch, or an event lacks a required field.
pub fn events(batch: &[u8]) -> Result<Vec<BlockEvent>, WireError> {
    let batch = rmpv::decode::read_value_with_max_depth(&mut &*batch, MAX_DEPTH)
        .map_err(|error| WireError::Syntax(error.to_string()))?;
    let events = batch.as_array().and_then(|batch| batch.get(1)?.as_array()).ok_or(WireError::NotABatch)?;
    events.iter().filter_map(|event| read(event).transpose()).collect()
}

fn read(event: &Value) -> Result<Option<BlockEvent>, WireError> {
    let kind = match event {
        Value::Map(map) => field(map, "type"),
        Value::Array(fields) => fields.first(),
        _ => None,
    };
    let kind = kind.and_then(Value::as_str).ok_or(WireError::NotABatch)?;
    let of = |names| match event {
        Value::Map(map) => Event { fields: &[], names, map: Some(map) },
        other => Event { fields: other.as_array().map_or(&[], |fields| &fields[1..]), names, map: None },
    };
    match kind {
        "AllBlocksCleared" => Ok(Some(BlockEvent::Cleared)),
        "BlockRemoved" => {
            let event = of(&REMOVED);
            Ok(event.counts().then(|| event.hashes().map(BlockEvent::Removed)).transpose()?)
        }
        "BlockStored" => {
            let event = of(&STORED);
            Ok(event.counts().then(|| event.stored().map(BlockEvent::Stored)).transpose()?)
        }
        _ => Ok(None),
    }
}

impl<'a> Event<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        let value = match self.map {
            Some(map) => field(map, name),
            None => self.fields.get(self.names.iter().position(|known| *known == name)?),
        };
        value.filter(|value| !value.is_nil())
    }

    /// Returns true if the event is about the GPU's blocks of the first group.
    fn counts(&self) -> bool {
        let is_gpu = |medium: &Value| medium.as_str().is_none_or(|medium| medium.eq_ignore_ascii_case("gpu"));
        self.get("medium").is_none_or(is_gpu)
            && self.get("group_idx").and_then(Value::as_u64).is_none_or(|group| group == 0)
    }

    fn hashes(&self) -> Result<Vec<EngineHash>, WireError> {
        let hashes = self.get("block_hashes").and_then(Value::as_array);
        let hashes = hashes.ok_or(WireError::Missing("block_hashes"))?;
        hashes.iter().map(|value| hash(value).ok_or(WireError::Missing("block_hashes"))).collect()
    }

    fn stored(&self) -> Result<Stored, WireError> {
        let integer = |value: &Value| value.as_u64().and_then(|integer| u32::try_from(integer).ok());
        let tokens = self.get("token_ids").and_then(Value::as_array);
        let tokens: Option<Vec<u32>> =
            tokens.and_then(|tokens| tokens.iter().map(integer).collect::<Option<_>>());
        let block_size = self.get("block_size").and_then(integer).filter(|size| *size > 0);
        let extras = self.get("extra_keys").and_then(Value::as_array).map(Vec::as_slice);
        // A request's model does not show the number of an adapter, so an adapter with only a number never matches.
        let adapter = match (self.get("lora_name").and_then(Value::as_str), self.get("lora_id")) {
            (Some(name), _) => Some(name.to_owned()),
            (None, Some(id)) => Some(format!("adapter number {id}")),
            (None, None) => None,
        };
        Ok(Stored {
            hashes: self.hashes()?,
            parent: self.get("parent_block_hash").and_then(hash),
            tokens: tokens.ok_or(WireError::Missing("token_ids"))?,
            block_size: block_size.ok_or(WireError::Missing("block_size"))?,
            extras: extras.unwrap_or_default().iter().map(keys).collect(),
            adapter,
        })
    }
}

fn field<'a>(map: &'a [(Value, Value)], name: &str) -> Option<&'a Value> {
    map.iter().find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| value)
}

fn hash(value: &Value) -> Option<EngineHash> {
    match value {
        Value::Integer(integer) => {
            let integer = integer.as_u64().or_else(|| integer.as_i64().map(i64::cast_unsigned));
            integer.map(EngineHash::of_integer)
        }
        Value::Binary(bytes) => Some(EngineHash::of_bytes(bytes)),
        Value::String(text) => Some(EngineHash::of_bytes(text.as_bytes())),
        _ => None,
    }
}

/// A block's extra keys: texts, or the hash and the offset of an image, sound or video.
fn keys(value: &Value) -> Vec<String> {
    let key = |key: &Value| match key.as_array().map(Vec::as_slice) {
        Some([hash, offset]) => media_key(hash.as_str().unwrap_or_default(), offset),
        Some(_) | None => key.as_str().map_or_else(|| key.to_string(), str::to_owned),
    };
    value.as_array().map_or_else(Vec::new, |keys| keys.iter().map(key).collect())
}
