//! Envoy Gateway's calls, over gRPC.

use std::sync::Arc;

use bytes::Bytes;
use controller::facts::Facts;
use controller::hooks::Hooks;
use envoy_proto::envoygateway::extension::envoy_gateway_extension_client::EnvoyGatewayExtensionClient;
use envoy_proto::envoygateway::extension::{
    ExtensionResource, PostEndpointsModifyRequest, PostHttpListenerModifyRequest, PostTranslateModifyRequest,
    PostVirtualHostModifyRequest,
};
use gateway_config::xds::Editor;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;
use tonic::transport::{Channel, Server};

use crate::fixtures::{
    alpha_pool, cluster_request, facts, metrics, route_request, translate_request, v1_pool,
};

/// A client of a server that knows these facts, and the sender of the next ones.
async fn served(
    known: Option<Facts>,
) -> (EnvoyGatewayExtensionClient<Channel>, watch::Sender<Option<Arc<Facts>>>) {
    let (tx, rx) = watch::channel(known.map(Arc::new));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = Hooks::new(Editor::new(false), rx, metrics()).into_service();
    let server = Server::builder().add_service(service);
    #[expect(clippy::disallowed_methods, reason = "the server ends with the test's runtime")]
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let client = EnvoyGatewayExtensionClient::connect(format!("http://{address}")).await.unwrap();
    (client, tx)
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn the_tutorials_pool_is_attached() {
    let (mut client, _world) = served(Some(facts())).await;
    let route = client.post_route_modify(route_request()).await.unwrap().into_inner().route.unwrap();
    assert!(contains(&route, "default/vllm-qwen-pool"));
    let cluster = client.post_cluster_modify(cluster_request()).await.unwrap().into_inner().cluster.unwrap();
    assert!(contains(&cluster, "vllm-qwen-pool-pods.default.svc"));

    let mut sent = translate_request();
    let plain = cluster_request().cluster.unwrap();
    let idx = sent.clusters.iter().position(|other| *other == plain).unwrap();
    sent.clusters[idx] = cluster;
    sent.secrets = vec![Bytes::from_static(b"\x0a\x01s")];
    let answer = client.post_translate_modify(sent.clone()).await.unwrap().into_inner();
    assert_eq!(answer.clusters.len(), sent.clusters.len() + 1);
    let picker = "epp-default-inference-gateway-ext-proc.envoy-gateway-system.svc";
    assert!(contains(answer.clusters.last().unwrap(), picker));
    assert_eq!(answer.secrets, sent.secrets);
    assert_eq!((answer.listeners.len(), answer.routes.len()), (3, 2));
}

#[tokio::test]
async fn hooks_wait_for_the_first_lists() {
    let (mut client, world_tx) = served(None).await;
    let error = client.post_route_modify(route_request()).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    world_tx.send_replace(Some(Arc::new(facts())));
    client.post_route_modify(route_request()).await.unwrap();
}

/// A route is left alone rather than all Gateways held back.
#[tokio::test]
async fn what_cannot_be_attached_stays_as_it_is() {
    let (mut client, _world) = served(Some(facts())).await;
    let resource = |text: String| ExtensionResource { unstructured_bytes: text.into() };
    let mut bad = alpha_pool();
    bad["spec"]["targetPortNumber"] = 0.into();
    let mut other = alpha_pool();
    other["metadata"]["name"] = "other".into();
    let cases = [
        vec![],
        vec![resource("not JSON".to_owned())],
        vec![resource(bad.to_string())],
        vec![resource(
            r#"{"apiVersion": "example.com/v1", "kind": "Filter", "metadata": {"name": "f"}}"#.to_owned(),
        )],
        vec![resource(alpha_pool().to_string()), resource(other.to_string())],
    ];
    for resources in cases {
        let mut request = route_request();
        request.post_route_context.as_mut().unwrap().extension_resources = resources.clone();
        let answer = client.post_route_modify(request).await.unwrap().into_inner();
        assert_eq!(answer.route, route_request().route, "{resources:?}");
        let mut request = cluster_request();
        request.post_cluster_context.as_mut().unwrap().backend_extension_resources = resources;
        let answer = client.post_cluster_modify(request).await.unwrap().into_inner();
        assert_eq!(answer.cluster, cluster_request().cluster);
    }
    // Control: one pool beside somebody else's filter is attached, also a newer one.
    for pool in [alpha_pool(), v1_pool()] {
        let mut request = route_request();
        request.post_route_context.as_mut().unwrap().extension_resources = vec![
            resource(
                r#"{"apiVersion": "example.com/v1", "kind": "Filter", "metadata": {"name": "f"}}"#.to_owned(),
            ),
            resource(pool.to_string()),
        ];
        let answer = client.post_route_modify(request).await.unwrap().into_inner();
        assert_ne!(answer.route, route_request().route);
    }
}

/// Facts with the HTTPRoute of the recorded messages, whose rule has these backends.
fn with_route(backends: &[Value]) -> Facts {
    let mut facts = facts();
    let route = json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": { "name": "qwen-backend", "namespace": "default" },
        "spec": { "parentRefs": [{ "name": "qwen-inference-gateway" }], "rules": [{ "backendRefs": backends }] },
    });
    facts.add(route).unwrap();
    facts
}

fn backend(name: &str, weight: u32) -> Value {
    json!({ "group": "inference.networking.x-k8s.io", "kind": "InferencePool", "name": name, "weight": weight })
}

/// Envoy Gateway shows the pools of a rule without their weights: those are in the HTTPRoute.
#[tokio::test]
async fn a_rule_with_several_pools_has_a_cluster_for_each() {
    let mut second = alpha_pool();
    second["metadata"]["name"] = "second".into();
    let resources: Vec<ExtensionResource> = [alpha_pool(), second]
        .map(|pool| ExtensionResource { unstructured_bytes: pool.to_string().into() })
        .to_vec();
    let service = json!({ "name": "qwen", "port": 8000, "weight": 1 });
    let known = with_route(&[backend("qwen", 7), service, backend("second", 3)]);
    let (mut client, known_tx) = served(Some(known)).await;
    let mut route = route_request();
    route.post_route_context.as_mut().unwrap().extension_resources = resources.clone();
    let mut cluster = cluster_request();
    cluster.post_cluster_context.as_mut().unwrap().backend_extension_resources = resources;
    let edited = client.post_route_modify(route.clone()).await.unwrap().into_inner().route.unwrap();
    for idx in [0, 2] {
        assert!(contains(&edited, &format!("httproute/default/qwen-backend/rule/0/backend/{idx}")));
    }
    let marked = client.post_cluster_modify(cluster.clone()).await.unwrap().into_inner().cluster.unwrap();
    let mut sent = translate_request();
    let plain = cluster_request().cluster.unwrap();
    let idx = sent.clusters.iter().position(|other| *other == plain).unwrap();
    sent.clusters[idx] = marked;
    let answer = client.post_translate_modify(sent.clone()).await.unwrap().into_inner();
    for pods in ["qwen-pods.default.svc", "second-pods.default.svc"] {
        assert_eq!(answer.clusters.iter().filter(|cluster| contains(cluster, pods)).count(), 1);
    }
    // Controls: a route that is not known yet, or that names only pools which Envoy Gateway does not show.
    for unknown in [facts(), with_route(&[backend("a", 1), backend("b", 1)])] {
        known_tx.send_replace(Some(Arc::new(unknown)));
        let answer = client.post_route_modify(route.clone()).await.unwrap().into_inner();
        assert_eq!(answer.route, route.route);
        let answer = client.post_cluster_modify(cluster.clone()).await.unwrap().into_inner();
        assert_eq!(answer.cluster, cluster.cluster);
    }
}

#[tokio::test]
async fn bytes_that_are_no_message_are_an_invalid_argument() {
    let (mut client, _world) = served(Some(facts())).await;
    let bad = Bytes::from_static(b"\x0a\xff");
    let mut route = route_request();
    route.route = Some(bad.clone());
    assert_eq!(client.post_route_modify(route).await.unwrap_err().code(), Code::InvalidArgument);
    let mut cluster = cluster_request();
    cluster.cluster = Some(bad.clone());
    assert_eq!(client.post_cluster_modify(cluster).await.unwrap_err().code(), Code::InvalidArgument);
    let translation = PostTranslateModifyRequest { listeners: vec![bad], ..translate_request() };
    assert_eq!(client.post_translate_modify(translation).await.unwrap_err().code(), Code::InvalidArgument);
}

/// Hooks that the manifests do not ask for answer with what they got, if somebody asks for them.
#[tokio::test]
async fn other_hooks_change_nothing() {
    let (mut client, _world) = served(Some(facts())).await;
    let bytes = Some(Bytes::from_static(b"\x0a\x01x"));
    let listener = PostHttpListenerModifyRequest { listener: bytes.clone() };
    assert_eq!(client.post_http_listener_modify(listener).await.unwrap().into_inner().listener, bytes);
    let host = PostVirtualHostModifyRequest { virtual_host: bytes.clone() };
    assert_eq!(client.post_virtual_host_modify(host).await.unwrap().into_inner().virtual_host, bytes);
    let endpoints = PostEndpointsModifyRequest { load_assignment: bytes.clone() };
    assert_eq!(client.post_endpoints_modify(endpoints).await.unwrap().into_inner().load_assignment, bytes);
}

/// More than the 4 MiB that gRPC takes by default.
#[tokio::test]
async fn large_translations_are_taken() {
    let (mut client, _world) = served(Some(facts())).await;
    let mut sent = translate_request();
    let cluster = sent.clusters[0].clone();
    sent.clusters = vec![cluster; 20_000];
    client = client.max_decoding_message_size(usize::MAX);
    let answer = client.post_translate_modify(sent).await.unwrap().into_inner();
    assert_eq!(answer.clusters.len(), 20_000);
}
