//! The binary form of rendered messages, by Envoy's descriptors.

use envoy_proto::XDS_DESCRIPTORS;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::Value;

/// Encodes rendered messages.
#[derive(Debug)]
pub(super) struct Parts {
    descriptors: DescriptorPool,
}

impl Parts {
    pub(super) fn new() -> Self {
        let descriptors = DescriptorPool::decode(XDS_DESCRIPTORS).expect("committed descriptors are valid");
        Self { descriptors }
    }

    /// The message `name` from protobuf's JSON form.
    ///
    /// # Panics
    /// If `value` has a field that the descriptors lack: what this crate renders, they have.
    pub(super) fn encode(&self, name: &str, value: &Value) -> Vec<u8> {
        let descriptor = self.descriptors.get_message_by_name(name).expect("a message that has descriptors");
        DynamicMessage::deserialize(descriptor, value)
            .expect("rendered messages have descriptors")
            .encode_to_vec()
    }
}
