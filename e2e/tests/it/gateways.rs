//! Several Gateways, hostnames, namespaces and ports of a pod through a real Envoy: who is attached answers, and who is not
//! does not.

use http::{HeaderName, StatusCode};
use lab::cluster::Pod;
use load::client::Client;
use serde_json::{Value, json};

use crate::stubs::{Lab, Workload, free_port};

/// Chats through a pool of two ports until both must have been picked: fewer than one run in a million misses one.
const N_CHATS: usize = 20;

/// A pool of this namespace and its pod, whose model has the pool's name. The pool has these ports of the pod.
fn pool(name: &str, namespace: &str, ports: &[u16]) -> String {
    let container =
        format!("args: [m, --served-model-name, {name}, shared, '--data-parallel-size={}']", ports.len());
    Workload { kind: "Deployment", name, namespace, replicas: 1, container: &container }.with_pool(ports)
}

/// A route of a Gateway to a pool.
fn route(
    name: &str,
    namespace: &str,
    (listener, hostname): (&str, &str),
    (pool, of): (&str, &str),
) -> String {
    let hostnames =
        if hostname.is_empty() { String::new() } else { format!("hostnames: ['{hostname}']\n  ") };
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  {hostnames}parentRefs: [{{name: {listener}, namespace: default}}]
  rules:
  - matches: [{{headers: [{{name: to, value: {name}}}]}}]
    backendRefs: [{{group: inference.networking.k8s.io, kind: InferencePool, name: {pool}, namespace: {of}}}]
"
    )
}

fn gateway(name: &str, hostname: &str, from: &str) -> String {
    let port = free_port();
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}}}
spec:
  gatewayClassName: eg
  listeners: [{{name: {name}, protocol: HTTP, port: {port}{hostname}, allowedRoutes: {{namespaces: {{from: {from}}}}}}}]
"
    )
}

/// A grant for routes of the namespace `default`.
const GRANT: &str = "---
apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: routes, namespace: granted}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: default}]
  to: [{group: inference.networking.k8s.io, kind: InferencePool}]
";

fn manifests() -> String {
    [
        gateway("named", ", hostname: '*.example.com'", "Same"),
        gateway("open", "", "All"),
        route("a", "default", ("named", "a.example.com"), ("near", "default")),
        route("any", "default", ("named", ""), ("near", "default")),
        route("elsewhere", "default", ("named", "a.example.org"), ("near", "default")),
        route("stranger", "granted", ("named", ""), ("far", "granted")),
        route("guest", "granted", ("open", ""), ("far", "granted")),
        route("allowed", "default", ("open", ""), ("far", "granted")),
        route("forbidden", "default", ("open", ""), ("secret", "closed")),
        route("ranks", "default", ("open", ""), ("ranks", "default")),
        GRANT.to_owned(),
        pool("near", "default", &[8000]),
        pool("far", "granted", &[8000]),
        pool("secret", "closed", &[8000]),
        pool("ranks", "default", &[8000, 8001]),
    ]
    .concat()
}

#[tokio::test]
async fn who_is_attached_answers_and_nobody_else() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::real().await;
    let cluster = lab.start_text("gateways", &manifests()).await;
    let client = Client::default();
    let chat = async |(listener, host, to): (&str, &str, &str)| {
        let url = format!("http://{}/v1/chat/completions", cluster.gateway(listener).unwrap());
        let headers = [(HeaderName::from_static("to"), to), (http::header::HOST, host)];
        let message = json!({ "role": "user", "content": "hi" });
        let body = json!({ "model": "shared", "messages": [message], "max_tokens": 1 });
        let reply = client.post(&url, &headers, body.to_string().into()).await.unwrap();
        let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
        (reply.status, body["model"].as_str().unwrap_or_default().to_owned())
    };
    let ok = |pool: &str| (StatusCode::OK, pool.to_owned());
    let refused = |status: StatusCode| (status, String::new());
    for (target, expected) in [
        (("named", "a.example.com", "a"), ok("near")),
        (("named", "b.example.com", "a"), refused(StatusCode::NOT_FOUND)),
        (("named", "b.example.com", "any"), ok("near")),
        // The listener's hostname does not match these.
        (("named", "example.com", "any"), refused(StatusCode::NOT_FOUND)),
        (("named", "a.example.org", "any"), refused(StatusCode::NOT_FOUND)),
        (("named", "a.example.org", "elsewhere"), refused(StatusCode::NOT_FOUND)),
        // Each Gateway has its own routes, and takes them from the namespaces that it allows.
        (("open", "a.example.com", "a"), refused(StatusCode::NOT_FOUND)),
        (("named", "a.example.com", "stranger"), refused(StatusCode::NOT_FOUND)),
        (("open", "any.host", "guest"), ok("far")),
        // A pool of another namespace must be granted.
        (("open", "any.host", "allowed"), ok("far")),
        (("open", "any.host", "forbidden"), refused(StatusCode::INTERNAL_SERVER_ERROR)),
    ] {
        assert_eq!(chat(target).await, expected, "{target:?}");
    }
    for _ in 0..N_CHATS {
        assert_eq!(chat(("open", "any.host", "ranks")).await, ok("ranks"));
    }
    let n_served = |pool: &str| {
        let pods = cluster.pods();
        let of_pool = pods.iter().filter(|pod| pod.deployment.starts_with(pool));
        let log = |pod: &Pod| std::fs::read_to_string(&pod.request_log).unwrap_or_default();
        of_pool.filter(|pod| !log(pod).is_empty()).count()
    };
    assert_eq!((n_served("ranks"), n_served("near")), (2, 1), "an endpoint for each port");
    cluster.stop().await.unwrap();
}
