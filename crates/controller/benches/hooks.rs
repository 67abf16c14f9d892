//! The controller on a cluster with 200 routes to 200 pools: calls of the hooks, and what it does when an object changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use controller::certificates::Authority;
use controller::cluster::{Cluster, Kind};
use controller::facts::{Facts, Place};
use controller::hooks::Hooks;
use controller::metrics::Metrics;
use controller::names;
use controller::plan::{Plan, View};
use controller::setup::Setup;
use envoy_proto::envoygateway::extension::envoy_gateway_extension_server::EnvoyGatewayExtension as _;
use envoy_proto::envoygateway::extension::{
    ExtensionResource, PostClusterExtensionContext, PostClusterModifyRequest, PostRouteExtensionContext,
    PostRouteModifyRequest, PostTranslateModifyRequest,
};
use gateway_config::xds::Editor;
use kube::runtime::watcher::Event;
use pool_index::index::{Change, Index, Objects};
use pool_watch::watches::WatchState;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tonic::Request;

const N_ROUTES: usize = 200;
/// Services of other people: the controller holds the key of each.
const N_SERVICES: usize = 2_000;
const HERE: &str = "envoy-gateway-system";

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

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn pool(idx: usize) -> Value {
    json!({
        "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
        "kind": "InferencePool",
        "metadata": { "name": format!("pool-{idx}"), "namespace": "default", "uid": format!("u-{idx}") },
        "spec": {
            "targetPortNumber": 8000,
            "selector": { "app": format!("qwen-{idx}") },
            "extensionRef": { "name": format!("ext-proc-{idx}") },
        },
    })
}

/// The pool of an index with its model and its route. The recorded requests are about the last route.
fn routed_pool(idx: usize) -> [Value; 3] {
    let name = format!("pool-{idx}");
    let route = if idx + 1 == N_ROUTES { "qwen-backend".to_owned() } else { format!("route-{idx}") };
    let backend = json!({ "group": "inference.networking.x-k8s.io", "kind": "InferencePool", "name": name });
    [
        pool(idx),
        json!({
            "apiVersion": "inference.networking.x-k8s.io/v1alpha2",
            "kind": "InferenceModel",
            "metadata": { "name": format!("model-{idx}"), "namespace": "default" },
            "spec": { "modelName": "/model/qwen", "poolRef": { "name": name } },
        }),
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": { "name": route, "namespace": "default" },
            "spec": { "parentRefs": [{ "name": "gw" }], "rules": [{ "backendRefs": [backend] }] },
        }),
    ]
}

/// The objects that the watches have delivered, and the authority.
fn cluster() -> (Cluster, Authority) {
    let secret = Authority::secret(&names::authority(HERE), None, now()).expect("an authority");
    let authority = Authority::read(&secret).expect("an authority");
    let gateway_api = "gateway.networking.k8s.io/v1";
    let mut objects = vec![
        secret,
        json!({
            "apiVersion": gateway_api, "kind": "GatewayClass", "metadata": { "name": "eg" },
            "spec": { "controllerName": "gateway.envoyproxy.io/gatewayclass-controller" },
        }),
        json!({
            "apiVersion": gateway_api, "kind": "Gateway", "metadata": { "name": "gw", "namespace": "default" },
            "spec": { "gatewayClassName": "eg", "listeners": [] },
        }),
    ];
    objects.extend((0..N_ROUTES).flat_map(routed_pool));
    objects.extend((0..N_SERVICES).map(|idx| {
        let metadata = json!({ "name": format!("service-{idx}"), "namespace": "default" });
        json!({ "apiVersion": "v1", "kind": "Service", "metadata": metadata })
    }));
    let mut cluster = Cluster::default();
    for object in objects {
        let kind = Kind::of(&object).expect("a kind that is followed");
        cluster.apply(kind, Event::Apply(serde_json::from_value(object).expect("an object")));
    }
    (cluster, authority)
}

fn facts(cluster: &Cluster, authority: &Authority) -> Facts {
    let place = Place { namespace: HERE.to_owned(), domain: "cluster.local".to_owned() };
    let facts = cluster.facts(&place, &authority.certificates);
    let counts = (facts.pools.len(), facts.models.len(), facts.routes.len(), facts.services.len());
    assert_eq!(counts, (N_ROUTES, N_ROUTES, N_ROUTES, N_SERVICES));
    facts
}

/// Makes hooks that have not seen a pool yet.
fn new_hooks() -> impl Fn() -> Hooks {
    let (cluster, authority) = cluster();
    let (_, rx) = watch::channel(Some(Arc::new(facts(&cluster, &authority))));
    let metrics = Arc::new(Metrics::new(watch::channel(WatchState::default()).1));
    move || Hooks::new(Editor::new(false), rx.clone(), Arc::clone(&metrics))
}

fn hooks() -> (Runtime, Hooks) {
    (runtime(), new_hooks()())
}

fn runtime() -> Runtime {
    Builder::new_current_thread().build().expect("a runtime")
}

fn resources(idx: usize) -> Vec<ExtensionResource> {
    vec![ExtensionResource { unstructured_bytes: pool(idx).to_string().into() }]
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
    bencher.with_inputs(|| route_request(N_ROUTES - 1)).bench_values(|request| {
        runtime.block_on(hooks.post_route_modify(Request::new(request))).expect("an answer")
    });
}

#[divan::bench]
fn cluster_of_a_pool(bencher: divan::Bencher<'_, '_>) {
    let (runtime, hooks) = hooks();
    bencher.with_inputs(|| cluster_request(N_ROUTES - 1)).bench_values(|request| {
        runtime.block_on(hooks.post_cluster_modify(Request::new(request))).expect("an answer")
    });
}

#[divan::bench]
fn cluster_of_a_new_pool(bencher: divan::Bencher<'_, '_>) {
    let (runtime, hooks) = (runtime(), new_hooks());
    bencher.with_inputs(|| (hooks(), cluster_request(N_ROUTES - 1))).bench_refs(|(hooks, request)| {
        let request = Request::new(std::mem::take(request));
        runtime.block_on(hooks.post_cluster_modify(request)).expect("an answer")
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
    let n_sent = sent.clusters.len();
    sent.routes = vec![route_configuration("default/qwen-inference-gateway/llm-gw", &routes)];
    bencher.with_inputs(|| sent.clone()).bench_values(|request| {
        let answer = runtime.block_on(hooks.post_translate_modify(Request::new(request)));
        let answer = answer.expect("an answer").into_inner();
        assert_eq!(answer.clusters.len(), n_sent + n_pools, "each pool's picker has a cluster");
        answer
    });
}

/// All that follows a change of an object, except for the writes: the facts, the models that are served, and the plan.
#[divan::bench]
fn reconcile(bencher: divan::Bencher<'_, '_>) {
    let (cluster, authority) = cluster();
    let setup = Setup { image: "epp:1".to_owned(), replicas: None, arguments: Vec::new(), explains: false };
    let (mut index, reader) = Index::new();
    bencher.bench_local(|| {
        let facts = facts(&cluster, &authority);
        let (pools, models) = (facts.pools.clone(), facts.models.clone());
        index.apply([Change::ReplaceObjects(Objects { pools, models, ..Objects::default() })]);
        let snapshot = reader.snapshot();
        let models: &BTreeMap<_, _> = &snapshot.models;
        let view = View { cluster: &cluster, facts: &facts, models, authority: &authority, now: now() };
        let plan = Plan::new(view, &setup);
        assert_eq!((plan.sign.len(), plan.patches.len()), (N_ROUTES, 3 * N_ROUTES));
        plan
    });
}
