//! Pods as endpoints. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use inference_api::object::ObjectKey;
use k8s_openapi::api::core::v1::Pod;
use pool_index::address;
use pool_index::index::{EndpointRecord, Membership};
use pool_index::snapshot::KvAddresses;

/// State that decides whether a pod is an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodState {
    pub labels: BTreeMap<String, String>,
    /// Address on the pod network, once the pod has one.
    pub ip: Option<IpAddr>,
    /// True if the pod is Ready and is not being deleted.
    pub is_ready: bool,
}

// === impl PodState ===

impl PodState {
    #[must_use]
    pub fn new(pod: Pod) -> Self {
        let Pod { metadata, spec: _, status } = pod;
        let status = status.unwrap_or_default();
        let is_ready = status.conditions.iter().flatten();
        let is_ready =
            is_ready.clone().any(|condition| condition.type_ == "Ready" && condition.status == "True");
        Self {
            labels: metadata.labels.unwrap_or_default(),
            ip: status.pod_ip.and_then(|ip| ip.parse().ok()),
            is_ready: is_ready && metadata.deletion_timestamp.is_none(),
        }
    }

    /// The records of the pod's `ports`; none while it has no address that could be an endpoint's.
    pub fn records<'a>(
        &'a self,
        key: &'a ObjectKey,
        ports: &'a BTreeSet<u16>,
    ) -> impl Iterator<Item = EndpointRecord> {
        let addresses =
            self.ip.into_iter().flat_map(|ip| ports.iter().map(move |port| SocketAddr::new(ip, *port)));
        addresses.filter_map(|address| address::check(address).ok()).map(|address| EndpointRecord {
            key: key.clone(),
            address,
            kv: KvAddresses::default(),
            membership: Membership::LabelsAndPort(self.labels.clone()),
            ready: self.is_ready,
        })
    }
}
