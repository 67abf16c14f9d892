//! Resolves a backendRef to the pods behind it.

use std::collections::BTreeMap;

use inference_api::gateway::{BackendRef, HttpRoute};
use inference_api::object::ObjectKey;
use inference_api::pool::{AppProtocol, FailureMode, PoolVersion};
use inference_api::port::TargetPort;
use inference_api::workload::ServicePort;
use inference_api::{keys, model_rewrite};

use crate::plan::index::Index;

/// The target of a rule. Its pods are those in the key's namespace that `selector` matches; an empty selector matches
/// none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Envoy balances: least request.
    Service { key: ObjectKey, selector: BTreeMap<String, String>, ports: Vec<PodPort> },
    /// The pool's picker balances.
    Pool {
        key: ObjectKey,
        selector: BTreeMap<String, String>,
        ports: Vec<PodPort>,
        app_protocol: AppProtocol,
        failure_mode: FailureMode,
        names: Names,
    },
}

impl Backend {
    #[must_use]
    pub fn key(&self) -> &ObjectKey {
        match self {
            Self::Service { key, .. } | Self::Pool { key, .. } => key,
        }
    }

    #[must_use]
    pub fn selector(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Service { selector, .. } | Self::Pool { selector, .. } => selector,
        }
    }

    /// Ports on which the pods serve: a pod is an endpoint on each of them.
    #[must_use]
    pub fn ports(&self) -> &[PodPort] {
        match self {
            Self::Service { ports, .. } | Self::Pool { ports, .. } => ports,
        }
    }
}

/// The names of a pool's models in its engines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// The engines use the names that clients use.
    Kept,
    /// An InferenceModel or an InferenceModelRewrite sends at least one model under another name.
    Changed,
}

/// A port of the pods, by number or by the name of a container's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodPort {
    Number(u16),
    Name(String),
}

/// A reference that leads to no pods, and the field that is to blame.
pub(super) enum Unresolved {
    /// The object does not exist, or the route may not refer to it: on a cluster requests get an error.
    Missing { field: &'static str, what: String },
    /// The reference asks for something that is not translated.
    Invalid { field: &'static str, what: String },
}

fn missing(field: &'static str, what: String) -> Unresolved {
    Unresolved::Missing { field, what }
}

/// Resolves a reference of `route` to a backend.
pub(super) fn resolve(
    backend: &BackendRef,
    route: &HttpRoute,
    index: &Index<'_>,
) -> Result<Backend, Unresolved> {
    let key = backend.key(&route.meta.namespace);
    let from = [keys::GATEWAY_GROUP, "HTTPRoute", route.meta.namespace.as_str()];
    if key.namespace != route.meta.namespace && !index.is_granted(from, (&backend.group, &backend.kind, &key))
    {
        let what = format!("no ReferenceGrant of namespace {} allows it", key.namespace);
        return Err(missing("namespace", what));
    }
    match (backend.group.as_str(), backend.kind.as_str()) {
        ("", "Service") => service(backend, key, index),
        (keys::GROUP_X, "InferencePool") => pool(key, PoolVersion::V1Alpha2, index),
        (keys::GROUP, "InferencePool") => pool(key, PoolVersion::V1, index),
        (group, kind) => Err(missing("kind", format!("the lab has no {kind} of group {group:?}"))),
    }
}

fn service(backend: &BackendRef, key: ObjectKey, index: &Index<'_>) -> Result<Backend, Unresolved> {
    let service = index
        .services
        .iter()
        .find(|service| service.meta.key() == key)
        .ok_or_else(|| missing("name", format!("there is no Service {key}")))?;
    let invalid = |what: String| Unresolved::Invalid { field: "port", what };
    let wanted = backend.port.ok_or_else(|| invalid("a Service needs a port".to_owned()))?;
    let ServicePort { name: _, protocol, port: _, target_port } = service
        .spec
        .ports
        .iter()
        .find(|port| port.port == wanted)
        .ok_or_else(|| missing("port", format!("Service {key} has no port {wanted}")))?;
    if let Some(protocol) = protocol.as_deref().filter(|protocol| *protocol != "TCP") {
        return Err(invalid(format!("port {wanted} of Service {key} is {protocol}, not TCP")));
    }
    let port = match target_port {
        None => PodPort::Number(wanted),
        Some(TargetPort::Number(number)) => PodPort::Number(*number),
        Some(TargetPort::Name(name)) => PodPort::Name(name.clone()),
    };
    Ok(Backend::Service { key, selector: service.spec.selector.clone(), ports: vec![port] })
}

/// Resolves a reference to a pool. The versions of pools are kinds of their own: each has its group.
fn pool(key: ObjectKey, version: PoolVersion, index: &Index<'_>) -> Result<Backend, Unresolved> {
    let mut namesakes = index.pools.iter().filter(|pool| pool.meta.key() == key);
    let pool = match namesakes.clone().find(|pool| pool.version == version) {
        Some(pool) => pool,
        None => {
            return Err(match namesakes.next() {
                None => missing("name", format!("there is no InferencePool {key}")),
                Some(other) => {
                    let group = other.version.group();
                    missing("group", format!("InferencePool {key} is of {group}, not {}", version.group()))
                }
            });
        }
    };
    if pool.picker.is_none() {
        let what = format!("InferencePool {key} names no picker: give it an endpointPickerRef");
        return Err(Unresolved::Invalid { field: "name", what });
    }
    let renames = model_rewrite::renames(&key, index.models.iter().copied(), index.rewrites.iter().copied());
    Ok(Backend::Pool {
        key,
        selector: pool.selector.clone(),
        ports: pool.target_ports.iter().map(|port| PodPort::Number(*port)).collect(),
        app_protocol: pool.app_protocol,
        failure_mode: pool.failure_mode(),
        names: if renames { Names::Changed } else { Names::Kept },
    })
}
