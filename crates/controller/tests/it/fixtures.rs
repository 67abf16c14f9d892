//! Objects of the tutorial, and what Envoy Gateway 1.9.1 sent for them.

use std::sync::Arc;

use controller::facts::{Facts, Place};
use controller::metrics::Metrics;
use envoy_proto::envoygateway::extension::{
    PostClusterModifyRequest, PostRouteModifyRequest, PostTranslateModifyRequest,
};
use inference_api::kinds::Object;
use inference_api::lenient;
use inference_api::pool::InferencePool;
use pool_watch::watches::WatchState;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::sync::watch;

macro_rules! recorded {
    ($name:literal) => {
        &include_bytes!(concat!(
            "../../../gateway-config/tests/fixtures/envoy-gateway-1.9.1/",
            $name,
            ".request.binpb"
        ))[..]
    };
}

pub(crate) fn route_request() -> PostRouteModifyRequest {
    PostRouteModifyRequest::decode(recorded!("PostRouteModify")).unwrap()
}

pub(crate) fn cluster_request() -> PostClusterModifyRequest {
    PostClusterModifyRequest::decode(recorded!("PostClusterModify")).unwrap()
}

pub(crate) fn translate_request() -> PostTranslateModifyRequest {
    PostTranslateModifyRequest::decode(recorded!("PostTranslateModify")).unwrap()
}

pub(crate) fn place() -> Place {
    Place { namespace: "envoy-gateway-system".to_owned(), domain: "cluster.local".to_owned() }
}

/// A cluster with nothing in it.
pub(crate) fn facts() -> Facts {
    Facts { place: place(), authority: "CA".to_owned(), ..Facts::default() }
}

pub(crate) fn metrics() -> Arc<Metrics> {
    Arc::new(Metrics::new(watch::channel(WatchState::default()).1))
}

pub(crate) fn object(value: Value) -> Object {
    lenient::read(value).unwrap().object
}

pub(crate) fn pool(value: Value) -> InferencePool {
    match object(value) {
        Object::InferencePool(pool) => pool,
        other => panic!("{other:?} is no pool"),
    }
}

pub(crate) fn alpha_pool() -> Value {
    json!({
        "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
        "kind": "InferencePool",
        "metadata": { "name": "qwen", "namespace": "default", "uid": "1", "generation": 3 },
        "spec": {
            "targetPortNumber": 8000,
            "selector": { "app": "qwen" },
            "extensionRef": { "name": "ext-proc", "portNumber": 9009 },
        },
    })
}

pub(crate) fn v1_pool() -> Value {
    json!({
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": { "name": "qwen", "namespace": "default", "uid": "1", "generation": 3 },
        "spec": {
            "targetPorts": [{ "number": 8000 }, { "number": 8001 }],
            "selector": { "matchLabels": { "app": "qwen" } },
            "endpointPickerRef": { "name": "ext-proc", "port": { "number": 9009 }, "failureMode": "FailOpen" },
        },
    })
}
