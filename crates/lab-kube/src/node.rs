//! Nodes: what they hold, and what those of kind lack and get: GPUs, and addresses for Services of type LoadBalancer.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Node, Service};
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use lab::cluster::Progress;
use serde_json::json;

use crate::api::{Access, ENVOY_GATEWAY};
use crate::wait::{self, Look};

/// Resource of which the tutorial's pods want one each.
const GPU: &str = "nvidia.com/gpu";
/// GPUs that a node without any advertises: more pods than a laptop can run.
const N_GPUS: u32 = 64;
/// Longest wait for a new cluster's API server.
const NEW: Duration = Duration::from_secs(60);
/// Label of the Services that Envoy Gateway makes for its proxies.
const OF_A_GATEWAY: &str = "gateway.envoyproxy.io/owning-gateway-name";

/// Waits until the API server tells of nodes. While another run still makes the cluster, it may refuse even the
/// administrator.
///
/// # Errors
/// When it takes too long.
pub async fn until_told(access: &Access, progress: &Progress) -> Result<()> {
    let api: Api<Node> = Api::all(access.client.clone());
    let look = async || {
        let nodes = api.list(&ListParams::default()).await.context("list the nodes")?.items;
        Ok(if nodes.is_empty() { Look::Missing("it has no node".to_owned()) } else { Look::Done(()) })
    };
    wait::until(access, ("waiting for the API server", NEW), progress, look).await
}

/// Has nodes without GPUs advertise some, so that the tutorial's pods can be placed; no device comes with them.
///
/// # Errors
/// When the API server refuses.
pub async fn advertise_gpus(access: &Access) -> Result<()> {
    let api: Api<Node> = Api::all(access.client.clone());
    for node in api.list(&ListParams::default()).await.context("list the nodes")?.items {
        let has_gpus =
            node.status.and_then(|status| status.allocatable).is_some_and(|all| all.contains_key(GPU));
        if has_gpus {
            continue;
        }
        let name = node.metadata.name.unwrap_or_default();
        let gpus = json!({ GPU: N_GPUS.to_string() });
        let patch = json!({ "status": { "capacity": gpus, "allocatable": gpus } });
        let patched = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        patched.with_context(|| format!("have {name} advertise GPUs"))?;
    }
    Ok(())
}

/// Returns the names of each image that a node has.
///
/// # Errors
/// When the API server does not answer.
pub async fn images(access: &Access) -> Result<Vec<Vec<String>>> {
    let api: Api<Node> = Api::all(access.client.clone());
    let nodes = api.list(&ListParams::default()).await.context("list the nodes")?.items;
    let images = nodes.into_iter().filter_map(|node| node.status?.images).flatten();
    Ok(images.filter_map(|image| image.names).collect())
}

/// Gives the node's own address to the proxies' Services that have none: the node serves their ports there.
///
/// # Errors
/// When the API server refuses, or no node has an address.
pub async fn give_addresses(access: &Access) -> Result<()> {
    let services: Vec<Service> = access.list(ENVOY_GATEWAY, OF_A_GATEWAY).await?;
    for service in services {
        let balancer = service.status.and_then(|status| status.load_balancer);
        if balancer.and_then(|balancer| balancer.ingress).is_some_and(|ingress| !ingress.is_empty()) {
            continue;
        }
        let name = service.metadata.name.unwrap_or_default();
        let patch =
            json!({ "status": { "loadBalancer": { "ingress": [ { "ip": node_address(access).await? } ] } } });
        let api = access.of::<Service>(ENVOY_GATEWAY);
        let patched = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        patched.with_context(|| format!("give {name} the node's address"))?;
    }
    Ok(())
}

async fn node_address(access: &Access) -> Result<String> {
    let api: Api<Node> = Api::all(access.client.clone());
    let nodes = api.list(&ListParams::default()).await.context("list the nodes")?.items;
    let mut addresses = nodes.into_iter().filter_map(|node| node.status?.addresses).flatten();
    let internal = addresses.find(|address| address.type_ == "InternalIP");
    internal.map(|address| address.address).context("no node has an address")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use lab::cluster::Progress;
    use serde_json::json;

    use super::until_told;
    use crate::stub::Stub;

    /// The stub answers 404 until it has a list.
    #[tokio::test]
    async fn an_api_server_that_refuses_at_first_is_asked_again() {
        let api = Stub::start().await;
        let access = api.access().await;
        let progress: Progress = Arc::new(|_| {});
        let told = until_told(&access, &progress);
        let later = async {
            while api.asked().len() < 2 {
                tokio::task::yield_now().await;
            }
            api.list("/api/v1/nodes", json!([]));
            while api.asked().len() < 4 {
                tokio::task::yield_now().await;
            }
            api.list("/api/v1/nodes", json!([{ "metadata": { "name": "node" } }]));
        };
        let (told, ()) = tokio::join!(told, later);
        told.unwrap();
    }
}
