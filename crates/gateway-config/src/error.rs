//! Reasons why objects or messages cannot be translated.

use inference_api::object::ObjectKey;
use thiserror::Error;

/// A field of an object that cannot be translated.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{kind} {key}: {path}: {message}")]
pub struct TranslateError {
    pub kind: &'static str,
    pub key: ObjectKey,
    /// Path of the field, such as `spec.rules[0].backendRefs[1].weight`.
    pub path: String,
    pub message: String,
}

/// A port or an address that the plan needs but the bindings lack: a mistake of the caller.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MissingBinding {
    #[error("listener {0} is bound to no port")]
    Listener(String),
    #[error("the picker of pool {0} has no address")]
    Picker(ObjectKey),
}

/// Bytes that should be a message of Envoy's, and are not.
#[cfg(feature = "xds")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a protobuf message")]
pub struct Malformed;
