//! The tutorial's objects, and bindings for them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use gateway_config::attachment::{Maker, Responses};
use gateway_config::error::TranslateError;
use gateway_config::plan::Plan;
use gateway_config::render::{Bindings, PickerBinding};
use inference_api::lenient;
use inference_api::manifest;
use inference_api::object::ObjectKey;
use serde_json::Value;

pub(crate) const GATEWAY: &str = include_str!("../../../../manifests/doc/inference-gateway.yaml");
pub(crate) const POOL: &str = include_str!("../../../../manifests/doc/inference-pool.yaml");
pub(crate) const SERVICE: &str = include_str!("../../../../manifests/doc/vllm-service.yaml");

/// The tutorial's manifests as one text.
pub(crate) fn tutorial() -> String {
    [GATEWAY, POOL, SERVICE].join("---\n")
}

/// The tutorial's manifests with the first `from` replaced by `to`; `from` must occur.
pub(crate) fn edited(from: &str, to: &str) -> String {
    let text = tutorial();
    assert!(text.contains(from), "{from} is not in the manifests");
    text.replacen(from, to, 1)
}

pub(crate) fn plan(yaml: &str) -> Result<Plan, TranslateError> {
    let read = |value: Value| lenient::read(value).unwrap().object;
    let documents = manifest::documents(yaml, "test.yaml").unwrap().into_iter();
    let objects: Vec<_> = documents.filter(|value| !value.is_null()).map(read).collect();
    Plan::new(&objects)
}

/// Bindings with two pods, the picker on its usual port, and listeners on the manifest's ports.
pub(crate) fn bindings(plan: &Plan) -> Bindings {
    let local = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
    let picker = PickerBinding { addresses: vec![local(9002)], tls: None, maker: Maker::Warmpath };
    let pickers: BTreeMap<ObjectKey, PickerBinding> =
        plan.pools().into_iter().map(|pool| (pool.key.clone(), picker.clone())).collect();
    let pods = vec![local(18001), local(18002)];
    Bindings {
        listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
        listener_ports: plan.listeners.iter().map(|listener| (listener.xds_name(), listener.port)).collect(),
        endpoints: plan.clusters.iter().map(|cluster| (cluster.name.clone(), pods.clone())).collect(),
        pickers,
        admin: local(19000),
        xds_dir: "/run/xds".into(),
        access_log: "/run/logs/envoy-access.log".into(),
        explains: true,
        responses: Responses::Through,
    }
}
