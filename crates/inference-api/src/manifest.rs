//! Parses YAML manifests into objects; every error names the file, the document, the object and the field.

use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use crate::gateway::{BackendTrafficPolicy, Gateway, GatewayClass, HttpRoute};
use crate::keys;
use crate::object::ObjectKey;
use crate::pool::{InferenceModel, InferencePool, ModelV1Alpha2, PoolV1, PoolV1Alpha2};
use crate::workload::{Deployment, Service};

/// One object of a manifest.
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

/// Why a manifest was refused.
#[derive(Debug, Error)]
pub enum ManifestError {
    #[error("{file}: not valid YAML: {message}")]
    Yaml { file: String, message: String },
    #[error("{file}, document {document}: {message}")]
    Document { file: String, document: usize, message: String },
    #[error("{file}, document {document}: kind {kind} of {api_version} is not supported")]
    Kind { file: String, document: usize, api_version: String, kind: String },
    #[error("{file}, document {document}, {kind} {name}: {message}")]
    Object { file: String, document: usize, kind: String, name: String, message: String },
}

/// Parses a file of one or more YAML documents; empty documents are skipped.
///
/// # Errors
/// The first document that is not YAML, has a kind that Warmpath does not support, or has an unknown field. `file` only
/// appears in the message.
pub fn parse(yaml: &str, file: &str) -> Result<Vec<Object>, ManifestError> {
    let options = serde_saphyr::options! { strict_booleans: true };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(yaml, options)
        .map_err(|error| ManifestError::Yaml { file: file.to_owned(), message: error.to_string() })?;
    documents
        .into_iter()
        .enumerate()
        .filter(|(_, value)| !value.is_null())
        .map(|(idx, value)| parse_document(value, &Position { file, document: idx + 1 }))
        .collect()
}

struct Position<'a> {
    file: &'a str,
    document: usize,
}

fn parse_document(value: Value, position: &Position<'_>) -> Result<Object, ManifestError> {
    let field = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let (Some(api_version), Some(kind)) = (field("apiVersion"), field("kind")) else {
        return Err(ManifestError::Document {
            file: position.file.to_owned(),
            document: position.document,
            message: "no apiVersion or no kind: not a Kubernetes object".to_owned(),
        });
    };
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    match (group, version, kind.as_str()) {
        (keys::GROUP_X, "v1alpha2", "InferencePool") => {
            checked::<PoolV1Alpha2, _>(value, &kind, position).map(Object::InferencePool)
        }
        (keys::GROUP, "v1", "InferencePool") => {
            checked::<PoolV1, _>(value, &kind, position).map(Object::InferencePool)
        }
        (keys::GROUP_X, "v1alpha2", "InferenceModel") => {
            checked::<ModelV1Alpha2, _>(value, &kind, position).map(Object::InferenceModel)
        }
        (keys::GATEWAY_GROUP, "v1", "GatewayClass") => {
            typed(value, &kind, position).map(Object::GatewayClass)
        }
        (keys::GATEWAY_GROUP, "v1", "Gateway") => typed(value, &kind, position).map(Object::Gateway),
        (keys::GATEWAY_GROUP, "v1", "HTTPRoute") => typed(value, &kind, position).map(Object::HttpRoute),
        (keys::ENVOY_GATEWAY_GROUP, "v1alpha1", "BackendTrafficPolicy") => {
            typed(value, &kind, position).map(Object::BackendTrafficPolicy)
        }
        ("apps", "v1", "Deployment") => {
            typed(value, &kind, position).map(|object| Object::Deployment(Box::new(object)))
        }
        ("", "v1", "Service") => typed(value, &kind, position).map(Object::Service),
        _ => Err(ManifestError::Kind {
            file: position.file.to_owned(),
            document: position.document,
            api_version: api_version.clone(),
            kind,
        }),
    }
}

/// Deserialises the wire form `W` and checks it into `T`.
fn checked<W, T>(value: Value, kind: &str, position: &Position<'_>) -> Result<T, ManifestError>
where
    W: DeserializeOwned,
    T: TryFrom<W, Error = String>,
{
    let name = object_name(&value);
    let raw: W = typed(value, kind, position)?;
    T::try_from(raw).map_err(|message| object_error(position, kind, name, message))
}

fn typed<T: DeserializeOwned>(value: Value, kind: &str, position: &Position<'_>) -> Result<T, ManifestError> {
    let name = object_name(&value);
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        object_error(position, kind, name, field_message(&path, &error.into_inner().to_string()))
    })
}

/// Rewrites serde's "unknown field": the field may well exist in the API and only be unsupported here.
fn field_message(path: &str, message: &str) -> String {
    let message = match message.strip_prefix("unknown field ") {
        Some(rest) => format!("field is not supported: {rest}"),
        None => message.to_owned(),
    };
    if path == "." { message } else { format!("{path}: {message}") }
}

fn object_name(value: &Value) -> String {
    let meta = value.get("metadata");
    let text = |key: &str| meta.and_then(|meta| meta.get(key)).and_then(Value::as_str);
    format!(
        "{}/{}",
        text("namespace").unwrap_or(crate::object::DEFAULT_NAMESPACE),
        text("name").unwrap_or("(unnamed)")
    )
}

fn object_error(position: &Position<'_>, kind: &str, name: String, message: String) -> ManifestError {
    ManifestError::Object {
        file: position.file.to_owned(),
        document: position.document,
        kind: kind.to_owned(),
        name,
        message,
    }
}
