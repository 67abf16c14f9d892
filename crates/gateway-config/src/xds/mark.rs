//! The mark in the metadata of a route or a cluster: which pools it belongs to. A second one is in routes that an edit has
//! made.

use envoy_proto::google::protobuf::{Struct, value};
use prost::Message as _;
use serde_json::{Value, json};

use crate::error::Malformed;
use crate::wire::Message;
use crate::xds::Pool;
use crate::xds::field::map;

/// Namespace of the mark in the metadata.
const NAMESPACE: &str = "warmpath";
/// Key of the mark of a cluster's pool, or of the names of a route's pools.
pub(super) const POOL: &str = "pool";
/// Key of the mark of a cluster that the translation divides.
pub(super) const DIVISION: &str = "division";
/// Separator of names, which cannot have it.
const SEPARATOR: &str = ",";
/// Namespace that routes have if an edit has made them.
const MADE: &str = "warmpath.made";
/// `envoy.config.core.v3.Metadata.filter_metadata`, a map.
const FILTER_METADATA: u32 = 1;

/// Metadata with the mark `text`, a JSON string, under `key`.
pub(super) fn render(key: &str, text: &Value) -> Value {
    json!({ "filter_metadata": { NAMESPACE: { key: text } } })
}

/// The mark of a route that leads to these pools.
pub(super) fn pools<'a>(pools: impl IntoIterator<Item = &'a Pool>) -> Value {
    let names: Vec<String> = pools.into_iter().map(|pool| pool.key.to_string()).collect();
    json!(names.join(SEPARATOR))
}

/// Names of the pools in the mark of a route.
pub(super) fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split(SEPARATOR)
}

/// Metadata of a route that an edit makes.
pub(super) fn render_made() -> Value {
    json!({ "filter_metadata": { MADE: {} } })
}

/// True if an edit has made the message whose field `number` is the metadata.
pub(super) fn is_made(message: &Message<'_>, number: u32) -> Result<bool, Malformed> {
    for metadata in message.all(number) {
        for entry in Message::decode(metadata)?.all(FILTER_METADATA) {
            if Message::decode(entry)?.text(map::KEY) == MADE {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The mark under `key` in the metadata, which is the field `number` of the message.
pub(super) fn read(message: &Message<'_>, number: u32, key: &str) -> Result<Option<String>, Malformed> {
    let mut found = None;
    for metadata in message.all(number) {
        for entry in Message::decode(metadata)?.all(FILTER_METADATA) {
            let entry = Message::decode(entry)?;
            if entry.text(map::KEY) == NAMESPACE {
                let bytes = entry.bytes(map::VALUE).unwrap_or_default();
                let mut fields = Struct::decode(bytes).map_err(|_| Malformed)?.fields;
                if let Some(value::Kind::StringValue(text)) = fields.remove(key).and_then(|value| value.kind)
                {
                    found = Some(text);
                }
            }
        }
    }
    Ok(found)
}

/// Removes an earlier mark from the metadata, which is the field `number` of the message.
pub(super) fn remove(message: &mut Message<'_>, number: u32) -> Result<(), Malformed> {
    message.edit(number, |metadata| {
        let mut metadata = Message::decode(metadata)?;
        let n_removed = metadata
            .remove_if(FILTER_METADATA, |entry| Ok(Message::decode(entry)?.text(map::KEY) == NAMESPACE))?;
        Ok((n_removed > 0).then(|| metadata.encode()))
    })?;
    Ok(())
}
