//! Waits until a cluster serves the tutorial: workloads are ready, pools have their pickers, Gateways have an
//! address and routes are accepted. An object that is not there asks for nothing, so that this holds after each step of
//! the tutorial.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use kube::api::DynamicObject;
use lab::cluster::Progress;
use lab::engine::Engine;
use load::client::Client;
use load::clock::Stopwatch;
use serde_json::Value;

use crate::api::{Access, DEFAULT, ENVOY_GATEWAY};
use crate::node;
use crate::wait::{self, Look};

/// Longest wait for everything.
pub const LIMIT: Duration = Duration::from_secs(240);
/// Longest wait for real engines: their images and their weights have tens of gigabytes.
const LOADING: Duration = Duration::from_secs(45 * 60);
/// Time that a load balancer of the cluster has to assign addresses.
const GRACE: Duration = Duration::from_secs(5);
const GATEWAY: (&str, &str, &str) = ("gateway.networking.k8s.io", "v1", "Gateway");
const ROUTE: (&str, &str, &str) = ("gateway.networking.k8s.io", "v1", "HTTPRoute");
const POOL: (&str, &str, &str) = ("inference.networking.x-k8s.io", "v1alpha2", "InferencePool");

/// A listener of a Gateway, at the Gateway's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub gateway: String,
    pub name: String,
    pub address: String,
    pub port: u16,
}

/// The source of addresses for Gateways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// The cluster assigns them.
    OfCluster,
    /// Nodes give their own to what has none, unless the cluster is faster.
    OfNodes,
}

/// Conditions under which a cluster settles.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    pub addresses: Addresses,
    pub engine: Engine,
}

impl Conditions {
    /// Longest wait for pods.
    #[must_use]
    pub fn limit(self) -> Duration {
        match self.engine {
            Engine::Mock => LIMIT,
            Engine::Vllm => LOADING,
        }
    }
}

/// Waits until everything that the objects ask for is there, and the listeners answer.
///
/// # Errors
/// When it takes too long.
pub async fn settle(access: &Access, conditions: Conditions, progress: &Progress) -> Result<()> {
    objects(access, conditions, progress).await?;
    let client = Client::default();
    let look = async || {
        for listener in listeners(access).await? {
            let url = format!("http://{}:{}/health", listener.address, listener.port);
            let answer = client.get(&url).await.map(|reply| reply.status.as_u16());
            match answer {
                Ok(404 | 500..) => {
                    return Ok(Look::Missing(format!("{url} answers {}", answer.unwrap_or(0))));
                }
                Err(error) => return Ok(Look::Missing(format!("{url} does not answer: {error:#}"))),
                Ok(_) => {}
            }
        }
        Ok(Look::Done(()))
    };
    wait::until(access, ("waiting for the listeners", conditions.limit()), progress, look).await
}

/// Waits until everything that the objects ask for is there. No request is sent, so that new pickers have picked nothing.
///
/// # Errors
/// When it takes too long.
pub async fn objects(access: &Access, conditions: Conditions, progress: &Progress) -> Result<()> {
    let waiting = Stopwatch::start();
    let look = async || {
        if conditions.addresses == Addresses::OfNodes && waiting.elapsed() > GRACE {
            node::give_addresses(access).await?;
        }
        let mut missing = Vec::new();
        for namespace in [DEFAULT, ENVOY_GATEWAY] {
            let deployments: Vec<Deployment> = access.list(namespace, "").await?;
            missing.extend(deployments.iter().filter_map(unready));
        }
        missing.extend(without_picker(access).await?);
        for (kind, list) in [("Gateway", GATEWAY), ("HTTPRoute", ROUTE)] {
            for object in access.custom(list, DEFAULT).await? {
                let name = object.metadata.name.as_deref().unwrap_or_default();
                missing.extend(unaccepted(kind, &object.data).map(|why| format!("{kind} {name}: {why}")));
            }
        }
        Ok(match missing.is_empty() {
            true => Look::Done(()),
            false => Look::Missing(missing.join(", ")),
        })
    };
    wait::until(access, ("waiting for the cluster", conditions.limit()), progress, look).await
}

/// Waits until a Deployment runs as asked for.
///
/// # Errors
/// When it takes too long.
pub async fn deployment(access: &Access, namespace: &str, name: &str, progress: &Progress) -> Result<()> {
    let look = async || {
        let found = access.of::<Deployment>(namespace).get_opt(name).await?;
        Ok(match found.as_ref().map(unready) {
            None => Look::Missing("not there".to_owned()),
            Some(Some(why)) => Look::Missing(why),
            Some(None) => Look::Done(()),
        })
    };
    wait::until(access, (&format!("waiting for {name}"), LIMIT), progress, look).await
}

/// The listeners of all Gateways that have an address.
///
/// # Errors
/// When the API server does not answer.
pub async fn listeners(access: &Access) -> Result<Vec<Listener>> {
    let mut found = Vec::new();
    for gateway in access.custom(GATEWAY, DEFAULT).await? {
        let Some(address) = gateway.data["status"]["addresses"][0]["value"].as_str() else { continue };
        for listener in gateway.data["spec"]["listeners"].as_array().into_iter().flatten() {
            found.push(Listener {
                gateway: gateway.metadata.name.clone().unwrap_or_default(),
                name: listener["name"].as_str().unwrap_or_default().to_owned(),
                address: address.to_owned(),
                port: listener["port"].as_u64().and_then(|port| port.try_into().ok()).unwrap_or_default(),
            });
        }
    }
    Ok(found)
}

/// Returns what a Deployment still lacks.
pub(crate) fn unready(deployment: &Deployment) -> Option<String> {
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = deployment.status.as_ref();
    let is_seen = status.and_then(|status| status.observed_generation) >= deployment.metadata.generation;
    let count = |field: Option<Option<i32>>| field.flatten().unwrap_or(0);
    let updated = count(status.map(|status| status.updated_replicas));
    let ready = count(status.map(|status| status.ready_replicas)).min(updated);
    let all = count(status.map(|status| status.replicas));
    let is_done = is_seen && ready >= wanted && all == wanted;
    (!is_done).then(|| format!("{name} has {ready} of {wanted} pods ready"))
}

/// Pools that have neither a Service of their picker's name nor a managed picker.
pub(crate) async fn without_picker(access: &Access) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for pool in access.custom(POOL, DEFAULT).await? {
        let picker = pool.data["spec"]["extensionRef"]["name"].as_str().unwrap_or_default();
        if access.of::<Service>(DEFAULT).get_opt(picker).await?.is_some() {
            continue;
        }
        let managed = format!("epp-{DEFAULT}-{picker}");
        if access.of::<Deployment>(ENVOY_GATEWAY).get_opt(&managed).await?.is_none() {
            missing.push(format!("{} has no picker {managed}", name(&pool)));
        }
    }
    Ok(missing)
}

fn name(object: &DynamicObject) -> String {
    object.metadata.name.clone().unwrap_or_default()
}

/// Why a Gateway or a route does not serve yet, by its status.
fn unaccepted(kind: &str, object: &Value) -> Option<String> {
    if kind == "Gateway" {
        return bad_condition(&object["status"]["conditions"], &["Accepted", "Programmed"]);
    }
    let parents = object["status"]["parents"].as_array().map_or(&[] as &[Value], Vec::as_slice);
    if parents.is_empty() {
        return Some("no Gateway has taken it".to_owned());
    }
    parents.iter().find_map(|parent| bad_condition(&parent["conditions"], &["Accepted", "ResolvedRefs"]))
}

fn bad_condition(conditions: &Value, wanted: &[&str]) -> Option<String> {
    wanted.iter().find_map(|wanted| {
        let mut conditions = conditions.as_array().into_iter().flatten();
        match conditions.find(|condition| condition["type"] == *wanted) {
            Some(condition) if condition["status"] == "True" => None,
            Some(condition) => {
                let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
                Some(format!("not {wanted}: {} {}", text("reason"), text("message")))
            }
            None => Some(format!("not {wanted}")),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::apps::v1::Deployment;
    use lab::cluster::Progress;
    use lab::engine::Engine;
    use serde_json::{Value, json};

    use super::{Addresses, Conditions, objects, settle, unaccepted, unready};
    use crate::stub::Stub;

    fn deployment(generation: i64, status: Value) -> Option<String> {
        let object = json!({
            "metadata": { "name": "qwen", "generation": generation },
            "spec": { "replicas": 5, "selector": {}, "template": {} },
            "status": status,
        });
        unready(&serde_json::from_value::<Deployment>(object).unwrap())
    }

    #[test]
    fn a_deployment_is_ready_when_all_its_new_pods_are() {
        let all = json!({ "observedGeneration": 2, "replicas": 5, "updatedReplicas": 5, "readyReplicas": 5 });
        assert_eq!(deployment(2, all.clone()), None);
        let missing = |ready: u32| Some(format!("qwen has {ready} of 5 pods ready"));
        assert_eq!(deployment(3, all.clone()), missing(5), "the newest edit is not seen yet");
        let mut rolling = all.clone();
        rolling["updatedReplicas"] = json!(2);
        assert_eq!(deployment(2, rolling), missing(2), "old pods do not count");
        let mut surplus = all;
        surplus["replicas"] = json!(6);
        assert_eq!(deployment(2, surplus), missing(5), "an old pod is still there");
        assert_eq!(deployment(1, json!({})), missing(0));
    }

    #[test]
    fn a_route_needs_a_gateway_and_a_backend() {
        let route = |conditions: Value| json!({ "status": { "parents": [ { "conditions": conditions } ] } });
        let condition = |kind: &str, status: &str| json!({ "type": kind, "status": status, "reason": "R", "message": "m" });
        let good = route(json!([condition("Accepted", "True"), condition("ResolvedRefs", "True")]));
        assert_eq!(unaccepted("HTTPRoute", &good), None);
        let bad = route(json!([condition("Accepted", "True"), condition("ResolvedRefs", "False")]));
        assert_eq!(unaccepted("HTTPRoute", &bad).unwrap(), "not ResolvedRefs: R m");
        assert_eq!(unaccepted("HTTPRoute", &json!({})).unwrap(), "no Gateway has taken it");
        let gateway = json!({ "status": { "conditions": [condition("Accepted", "True")] } });
        assert_eq!(unaccepted("Gateway", &gateway).unwrap(), "not Programmed");
    }

    /// The first request would be the first pick of a new picker.
    #[tokio::test]
    async fn a_wait_for_objects_sends_nothing_to_the_listeners() {
        let (api, listener) = (Stub::start().await, Stub::start().await);
        listener.list("/health", json!([]));
        let conditions =
            ["Accepted", "Programmed"].map(|kind| json!({ "type": kind, "status": "True" })).to_vec();
        let gateway = json!({
            "metadata": { "name": "gw" },
            "spec": { "listeners": [{ "name": "http", "port": listener.address.port() }] },
            "status": { "addresses": [{ "value": "127.0.0.1" }], "conditions": conditions },
        });
        api.list("/apis/gateway.networking.k8s.io/v1/namespaces/default/gateways", json!([gateway]));
        for namespace in ["default", "envoy-gateway-system"] {
            api.list(&format!("/apis/apps/v1/namespaces/{namespace}/deployments"), json!([]));
        }
        let (access, progress): (_, Progress) = (api.access().await, Arc::new(|_| {}));
        let conditions = Conditions { addresses: Addresses::OfCluster, engine: Engine::Mock };
        objects(&access, conditions, &progress).await.unwrap();
        assert_eq!(listener.asked(), [""; 0]);
        // Control: the wait for the listeners asks them.
        settle(&access, conditions, &progress).await.unwrap();
        assert_eq!(listener.asked(), ["/health"]);
    }
}
