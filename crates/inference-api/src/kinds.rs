//! The kinds of objects that Warmpath knows, and how a JSON value becomes one of them.
//!
//! The readers differ in the fields that they let through; kinds, wire forms and checks are the same for both.

use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use crate::field::FieldError;
use crate::gateway::{BackendTrafficPolicy, Gateway, GatewayClass, HttpRoute};
use crate::keys;
use crate::object::{DEFAULT_NAMESPACE, ObjectKey};
use crate::pool::{InferenceModel, InferencePool, ModelV1Alpha2, PoolV1, PoolV1Alpha2};
use crate::workload::{Deployment, Service};

/// One object of a known kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    InferencePool(InferencePool),
    InferenceModel(InferenceModel),
    GatewayClass(GatewayClass),
    Gateway(Gateway),
    HttpRoute(HttpRoute),
    BackendTrafficPolicy(BackendTrafficPolicy),
    Deployment(Box<Deployment>),
    Service(Service),
}

/// An object that cannot be taken, and the field that is to blame.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{kind} {key}: {error}")]
pub struct ObjectError {
    pub kind: String,
    pub key: ObjectKey,
    pub error: FieldError,
}

/// Why a value is not an object of a known kind.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ReadError {
    #[error("no apiVersion or no kind: not a Kubernetes object")]
    NoKind,
    #[error("kind {kind} of {api_version} is not supported")]
    Kind { api_version: String, kind: String },
    #[error(transparent)]
    Object(#[from] ObjectError),
}

/// A reader's treatment of fields.
pub(crate) trait Fields {
    /// Deserialises the wire form `W` of an object.
    fn read<W: DeserializeOwned>(&mut self, value: Value) -> Result<W, FieldError>;
}

/// Turns the value into an object of the kind that it names.
pub(crate) fn read(value: Value, fields: &mut impl Fields) -> Result<Object, ReadError> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let (Some(api_version), Some(kind)) = (text("apiVersion"), text("kind")) else {
        return Err(ReadError::NoKind);
    };
    let key = key(&value);
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let object = match (group, version, kind.as_str()) {
        (keys::GROUP_X, "v1alpha2", "InferencePool") => {
            checked::<PoolV1Alpha2, _>(value, fields).map(Object::InferencePool)
        }
        (keys::GROUP, "v1", "InferencePool") => {
            checked::<PoolV1, _>(value, fields).map(Object::InferencePool)
        }
        (keys::GROUP_X, "v1alpha2", "InferenceModel") => {
            checked::<ModelV1Alpha2, _>(value, fields).map(Object::InferenceModel)
        }
        (keys::GATEWAY_GROUP, "v1", "GatewayClass") => fields.read(value).map(Object::GatewayClass),
        (keys::GATEWAY_GROUP, "v1", "Gateway") => fields.read(value).map(Object::Gateway),
        (keys::GATEWAY_GROUP, "v1", "HTTPRoute") => fields.read(value).map(Object::HttpRoute),
        (keys::ENVOY_GATEWAY_GROUP, "v1alpha1", "BackendTrafficPolicy") => {
            fields.read(value).map(Object::BackendTrafficPolicy)
        }
        ("apps", "v1", "Deployment") => fields.read(value).map(|object| Object::Deployment(Box::new(object))),
        ("", "v1", "Service") => fields.read(value).map(Object::Service),
        _ => return Err(ReadError::Kind { api_version: api_version.clone(), kind }),
    };
    object.map_err(|error| ObjectError { kind, key, error }.into())
}

/// Deserialises the wire form `W` and checks it into `T`.
fn checked<W, T>(value: Value, fields: &mut impl Fields) -> Result<T, FieldError>
where
    W: DeserializeOwned,
    T: TryFrom<W, Error = FieldError>,
{
    fields.read::<W>(value).and_then(T::try_from)
}

fn key(value: &Value) -> ObjectKey {
    let meta = value.get("metadata");
    let text = |key: &str| meta.and_then(|meta| meta.get(key)).and_then(Value::as_str);
    ObjectKey::new(text("namespace").unwrap_or(DEFAULT_NAMESPACE), text("name").unwrap_or("(unnamed)"))
}

// === impl Object ===

impl Object {
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::InferencePool(_) => "InferencePool",
            Self::InferenceModel(_) => "InferenceModel",
            Self::GatewayClass(_) => "GatewayClass",
            Self::Gateway(_) => "Gateway",
            Self::HttpRoute(_) => "HTTPRoute",
            Self::BackendTrafficPolicy(_) => "BackendTrafficPolicy",
            Self::Deployment(_) => "Deployment",
            Self::Service(_) => "Service",
        }
    }

    #[must_use]
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::InferencePool(object) => object.meta.key(),
            Self::InferenceModel(object) => object.meta.key(),
            Self::GatewayClass(object) => object.meta.key(),
            Self::Gateway(object) => object.meta.key(),
            Self::HttpRoute(object) => object.meta.key(),
            Self::BackendTrafficPolicy(object) => object.meta.key(),
            Self::Deployment(object) => object.meta.key(),
            Self::Service(object) => object.meta.key(),
        }
    }
}
