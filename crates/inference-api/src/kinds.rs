//! The kinds of objects that Warmpath knows, and how a JSON value becomes one of them.
//!
//! The readers differ in what they do about unknown fields; kinds, wire forms and checks are the same for both.

use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use crate::ai_gateway::AiGatewayRoute;
use crate::field::FieldError;
use crate::fields::Known;
use crate::gateway::{Gateway, GatewayClass, HttpRoute, Namespace, ReferenceGrant};
use crate::keys;
use crate::model_rewrite::{InferenceModelRewrite, RewriteV1Alpha2};
use crate::object::{DEFAULT_NAMESPACE, ObjectKey};
use crate::objective::{InferenceObjective, ObjectiveV1Alpha2};
use crate::pool::{InferenceModel, InferencePool, ModelV1Alpha2, PoolV1, PoolV1Alpha2};
use crate::traffic::{BackendTrafficPolicy, ClientTrafficPolicy};
use crate::workload::{
    ConfigMap, KeyValues, LeaderWorkerSet, Pod, Replicated, Secret, Service, Workload, WorkloadKind,
};

/// One object of a known kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    InferencePool(InferencePool),
    InferenceModel(InferenceModel),
    InferenceObjective(InferenceObjective),
    InferenceModelRewrite(InferenceModelRewrite),
    GatewayClass(GatewayClass),
    Gateway(Gateway),
    HttpRoute(HttpRoute),
    ReferenceGrant(ReferenceGrant),
    Namespace(Namespace),
    BackendTrafficPolicy(Box<BackendTrafficPolicy>),
    ClientTrafficPolicy(ClientTrafficPolicy),
    Workload(Box<Workload>),
    Service(Service),
    ConfigMap(KeyValues),
    Secret(KeyValues),
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

/// Versions of the Gateway API's kinds, which have one form.
const GATEWAY_VERSIONS: &[&str] = &["v1", "v1beta1", "v1alpha2"];

/// Every known kind: its group, its name and its versions.
const KINDS: [(&str, &str, &[&str]); 23] = [
    (keys::GROUP_X, "InferencePool", &["v1alpha2"]),
    (keys::GROUP, "InferencePool", &["v1"]),
    (keys::GROUP_X, "InferenceModel", &["v1alpha2"]),
    (keys::GROUP_X, "InferenceObjective", &["v1alpha2"]),
    (keys::LLM_D_GROUP, "InferenceObjective", &["v1alpha2"]),
    (keys::GROUP_X, "InferenceModelRewrite", &["v1alpha2"]),
    (keys::LLM_D_GROUP, "InferenceModelRewrite", &["v1alpha2"]),
    (keys::GATEWAY_GROUP, "GatewayClass", GATEWAY_VERSIONS),
    (keys::GATEWAY_GROUP, "Gateway", GATEWAY_VERSIONS),
    (keys::GATEWAY_GROUP, "HTTPRoute", GATEWAY_VERSIONS),
    (keys::AI_GATEWAY_GROUP, "AIGatewayRoute", &["v1beta1", "v1alpha1"]),
    (keys::GATEWAY_GROUP, "ReferenceGrant", GATEWAY_VERSIONS),
    ("", "Namespace", &["v1"]),
    (keys::ENVOY_GATEWAY_GROUP, "BackendTrafficPolicy", &["v1alpha1"]),
    (keys::ENVOY_GATEWAY_GROUP, "ClientTrafficPolicy", &["v1alpha1"]),
    ("apps", "Deployment", &["v1"]),
    ("apps", "ReplicaSet", &["v1"]),
    ("apps", "StatefulSet", &["v1"]),
    (keys::LWS_GROUP, "LeaderWorkerSet", &["v1"]),
    ("", "Pod", &["v1"]),
    ("", "Service", &["v1"]),
    ("", "ConfigMap", &["v1"]),
    ("", "Secret", &["v1"]),
];

/// Returns the versions in which the kind is known, if it is known at all.
#[must_use]
pub fn known_versions(api_version: &str, kind: &str) -> Option<&'static [&'static str]> {
    let (group, _) = group_and_version(api_version);
    let known = KINDS.iter().find(|(known_group, known, _)| (*known_group, *known) == (group, kind));
    known.map(|(_, _, versions)| *versions)
}

fn group_and_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// Turns the value into an object of the kind that it names.
pub(crate) fn read(value: Value, fields: &Known) -> Result<Object, ReadError> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
    let (Some(api_version), Some(kind)) = (text("apiVersion"), text("kind")) else {
        return Err(ReadError::NoKind);
    };
    let key = key(&value);
    let (group, version) = group_and_version(&api_version);
    if known_versions(&api_version, &kind).is_none_or(|versions| !versions.contains(&version)) {
        return Err(ReadError::Kind { api_version, kind });
    }
    let object = match (group, kind.as_str()) {
        (keys::GROUP_X, "InferencePool") => {
            checked::<PoolV1Alpha2, _>(value, fields).map(Object::InferencePool)
        }
        (keys::GROUP, "InferencePool") => checked::<PoolV1, _>(value, fields).map(Object::InferencePool),
        (_, "InferenceModel") => checked::<ModelV1Alpha2, _>(value, fields).map(Object::InferenceModel),
        (_, "InferenceObjective") => {
            checked::<ObjectiveV1Alpha2, _>(value, fields).map(Object::InferenceObjective)
        }
        (_, "InferenceModelRewrite") => {
            checked::<RewriteV1Alpha2, _>(value, fields).map(Object::InferenceModelRewrite)
        }
        (_, "GatewayClass") => fields.read(value).map(Object::GatewayClass),
        (_, "Gateway") => fields.read(value).map(Object::Gateway),
        (_, "HTTPRoute") => fields.read(value).map(Object::HttpRoute),
        (_, "AIGatewayRoute") => {
            fields.read(value).map(|read: AiGatewayRoute| Object::HttpRoute(read.into()))
        }
        (_, "ReferenceGrant") => fields.read(value).map(Object::ReferenceGrant),
        (_, "Namespace") => fields.read(value).map(Object::Namespace),
        (_, "BackendTrafficPolicy") => {
            fields.read(value).map(|read| Object::BackendTrafficPolicy(Box::new(read)))
        }
        (_, "ClientTrafficPolicy") => fields.read(value).map(Object::ClientTrafficPolicy),
        (_, "Service") => fields.read(value).map(Object::Service),
        (_, "ConfigMap") => fields.read(value).map(|read: ConfigMap| Object::ConfigMap(read.into())),
        (_, "Secret") => fields.read(value).map(|read: Secret| Object::Secret(read.into())),
        (_, _) => workload(&kind, value, fields),
    };
    object.map_err(|error| ObjectError { kind, key, error }.into())
}

fn workload(kind: &str, value: Value, fields: &Known) -> Result<Object, FieldError> {
    let replicated = match kind {
        "LeaderWorkerSet" => return fields.read(value).map(|read: LeaderWorkerSet| boxed(read.into())),
        "Pod" => return fields.read(value).map(|read: Pod| boxed(read.into())),
        "ReplicaSet" => WorkloadKind::ReplicaSet,
        "StatefulSet" => WorkloadKind::StatefulSet,
        _ => WorkloadKind::Deployment,
    };
    fields.read(value).map(|read: Replicated| boxed(read.into_workload(replicated)))
}

fn boxed(workload: Workload) -> Object {
    Object::Workload(Box::new(workload))
}

/// Deserialises the wire form `W` and checks it into `T`.
fn checked<W, T>(value: Value, fields: &Known) -> Result<T, FieldError>
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
    /// The name of the kind; `Workload` for pods of a kind that is not known.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::InferencePool(_) => "InferencePool",
            Self::InferenceModel(_) => "InferenceModel",
            Self::InferenceObjective(_) => "InferenceObjective",
            Self::InferenceModelRewrite(_) => "InferenceModelRewrite",
            Self::GatewayClass(_) => "GatewayClass",
            Self::Gateway(_) => "Gateway",
            Self::HttpRoute(route) => route.kind.as_str(),
            Self::ReferenceGrant(_) => "ReferenceGrant",
            Self::Namespace(_) => "Namespace",
            Self::BackendTrafficPolicy(_) => "BackendTrafficPolicy",
            Self::ClientTrafficPolicy(_) => "ClientTrafficPolicy",
            Self::Workload(workload) => workload.kind.known().unwrap_or("Workload"),
            Self::Service(_) => "Service",
            Self::ConfigMap(_) => "ConfigMap",
            Self::Secret(_) => "Secret",
        }
    }

    #[must_use]
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::InferencePool(object) => object.meta.key(),
            Self::InferenceModel(object) => object.meta.key(),
            Self::InferenceObjective(object) => object.meta.key(),
            Self::InferenceModelRewrite(object) => object.meta.key(),
            Self::GatewayClass(object) => object.meta.key(),
            Self::Gateway(object) => object.meta.key(),
            Self::HttpRoute(object) => object.meta.key(),
            Self::ReferenceGrant(object) => object.meta.key(),
            Self::Namespace(object) => object.meta.key(),
            Self::BackendTrafficPolicy(object) => object.meta.key(),
            Self::ClientTrafficPolicy(object) => object.meta.key(),
            Self::Workload(object) => object.meta.key(),
            Self::Service(object) => object.meta.key(),
            Self::ConfigMap(object) | Self::Secret(object) => object.meta.key(),
        }
    }
}
