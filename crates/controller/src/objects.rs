//! The objects that pools ask for, as they are applied: only the fields that the controller owns.

use inference_api::keys;
use inference_api::object::ObjectKey;
use inference_api::pool::{InferencePool, PoolVersion};
use serde_json::{Value, json};

use crate::facts::Facts;
use crate::names;
use crate::resolve;
use crate::sweep;

/// Label with the name of the pool.
pub const POOL_LABEL: &str = "inference.networking.x-k8s.io/pool";
/// Longest value of a label.
const MAX_LABEL_LEN: usize = 63;

/// A Service of somebody else's has the name that a pool needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Service {service} exists already, so InferencePool {pool} has no endpoints: rename one of them")]
pub struct NameTaken {
    pub pool: ObjectKey,
    pub service: ObjectKey,
}

/// The headless Service that resolves to the ready pods of `pool`, by which the proxies know them. The API server removes
/// it with its pool. It notes how somebody else's picker takes bodies, so that a controller that starts knows it.
///
/// # Errors
/// If somebody else's Service has its name: applying it would take that over.
pub fn pods_service(pool: &InferencePool, facts: &Facts) -> Result<Value, NameTaken> {
    let key = pool.key();
    let service = names::pods_service(&key);
    if facts.services.contains(&service) {
        return Err(NameTaken { pool: key, service });
    }
    let port = |port: &u16| json!({ "name": format!("port-{port}"), "port": port, "targetPort": port, "protocol": "TCP" });
    let ports: Vec<Value> = pool.target_ports.iter().map(port).collect();
    let mut labels = json!({ sweep::MANAGED_BY: sweep::MANAGER });
    if key.name.len() <= MAX_LABEL_LEN {
        labels[POOL_LABEL] = json!(key.name);
    }
    let mut metadata = json!({ "name": service.name, "namespace": service.namespace, "labels": labels });
    if let Some(owner) = owner(pool) {
        metadata["ownerReferences"] = json!([owner]);
    }
    if let Some(mode) = facts.body_modes.get(&service).filter(|_| resolve::is_of_others(pool, facts)) {
        metadata["annotations"] = json!({ keys::PICKER_BODY_MODE: mode.as_str() });
    }
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "publishNotReadyAddresses": false,
            "selector": pool.selector,
            "ports": ports,
        },
    }))
}

/// A Secret without what is in it: enough to say which one.
#[must_use]
pub fn secret(key: &ObjectKey) -> Value {
    json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": key.name, "namespace": key.namespace } })
}

/// The API version of a pool.
#[must_use]
pub fn api_version(pool: &InferencePool) -> String {
    let version = match pool.version {
        PoolVersion::V1Alpha2 => "v1alpha2",
        PoolVersion::V1 => "v1",
    };
    format!("{}/{version}", pool.version.group())
}

/// The reference by which the API server removes an object of the pool's namespace with its pools; `None` for a pool that
/// is not from an API server.
pub(crate) fn owner(pool: &InferencePool) -> Option<Value> {
    let uid = pool.meta.uid.as_ref()?;
    Some(json!({
        "apiVersion": api_version(pool),
        "kind": "InferencePool",
        "name": pool.meta.name,
        "uid": uid,
    }))
}
