//! Hook calls: one for a route, one for a cluster, and a translation of 200 routes, to one pool or to one pool each.

use std::sync::Arc;

use controller::facts::Facts;
use controller::hooks::Hooks;
use controller::metrics::Metrics;
use envoy_proto::envoygateway::extension::envoy_gateway_extension_server::EnvoyGatewayExtension as _;
use envoy_proto::envoygateway::extension::{
    ExtensionResource, PostClusterExtensionContext, PostClusterModifyRequest, PostRouteExtensionContext,
    PostRouteModifyRequest, PostTranslateModifyRequest,
};
use gateway_config::xds::Editor;
use pool_watch::watches::WatchState;
use prost::Message as _;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tonic::Request;

const N_ROUTES: usize = 200;

macro_rules! recorded {
    ($name:literal) => {
        &include_bytes!(concat!(
            "../../gateway-config/tests/fixtures/envoy-gateway-1.9.1/",
            $name,
            ".request.binpb"
        ))[..]
    };
}

fn main() {
    divan::main();
}

fn hooks() -> (Runtime, Hooks) {
    let runtime = Builder::new_current_thread().build().expect("a runtime");
    let (_, rx) = watch::channel(Some(Arc::new(Facts::default())));
    let metrics = Arc::new(Metrics::new(watch::channel(WatchState::default()).1));
    (runtime, Hooks::new(Editor::new(false), rx, metrics))
}

fn resources(idx: usize) -> Vec<ExtensionResource> {
    let text = format!(
        r#"{{"apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferencePool",
            "metadata": {{"name": "pool-{idx}", "namespace": "default"}},
            "spec": {{"targetPortNumber": 8000, "selector": {{"app": "qwen"}}, "extensionRef": {{"name": "ext-proc"}}}}}}"#
    );
    vec![ExtensionResource { unstructured_bytes: text.into() }]
}

fn route_request(idx: usize) -> PostRouteModifyRequest {
    let recorded = PostRouteModifyRequest::decode(recorded!("PostRouteModify")).expect("a request");
    let context = PostRouteExtensionContext { extension_resources: resources(idx), hostnames: Vec::new() };
    PostRouteModifyRequest { post_route_context: Some(context), ..recorded }
}

fn cluster_request(idx: usize) -> PostClusterModifyRequest {
    let recorded = PostClusterModifyRequest::decode(recorded!("PostClusterModify")).expect("a request");
    let context = PostClusterExtensionContext { backend_extension_resources: resources(idx) };
    PostClusterModifyRequest { post_cluster_context: Some(context), ..recorded }
}

#[divan::bench]
fn route(bencher: divan::Bencher<'_, '_>) {
    let (runtime, hooks) = hooks();
    bencher.with_inputs(|| route_request(0)).bench_values(|request| {
        runtime.block_on(hooks.post_route_modify(Request::new(request))).expect("an answer")
    });
}

#[divan::bench]
fn cluster(bencher: divan::Bencher<'_, '_>) {
    let (runtime, hooks) = hooks();
    bencher.with_inputs(|| cluster_request(0)).bench_values(|request| {
        runtime.block_on(hooks.post_cluster_modify(Request::new(request))).expect("an answer")
    });
}

/// A route configuration on the wire: `name` is field 1, its one virtual host field 2, the host's routes field 3.
fn route_configuration(name: &str, routes: &[bytes::Bytes]) -> bytes::Bytes {
    let mut host = Vec::new();
    for route in routes {
        prost::encoding::bytes::encode(3, route, &mut host);
    }
    let mut configuration = Vec::new();
    prost::encoding::string::encode(1, &name.to_owned(), &mut configuration);
    prost::encoding::bytes::encode(2, &host, &mut configuration);
    configuration.into()
}

#[divan::bench(args = [1, N_ROUTES])]
fn translation(bencher: divan::Bencher<'_, '_>, n_pools: usize) {
    let (runtime, hooks) = hooks();
    let mut sent = PostTranslateModifyRequest::decode(recorded!("PostTranslateModify")).expect("a request");
    let mut routes = Vec::new();
    for idx in 0..N_ROUTES {
        let route = hooks.post_route_modify(Request::new(route_request(idx % n_pools)));
        routes.extend(runtime.block_on(route).expect("an answer").into_inner().route);
        let cluster = hooks.post_cluster_modify(Request::new(cluster_request(idx % n_pools)));
        sent.clusters.extend(runtime.block_on(cluster).expect("an answer").into_inner().cluster);
    }
    sent.routes = vec![route_configuration("default/qwen-inference-gateway/llm-gw", &routes)];
    bencher.with_inputs(|| sent.clone()).bench_values(|request| {
        runtime.block_on(hooks.post_translate_modify(Request::new(request))).expect("an answer")
    });
}
