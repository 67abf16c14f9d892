//! Envoy Gateway's policies through a real Envoy: each setting shows its effect, and a rule without it does not.

#![expect(clippy::unwrap_used, reason = "a cluster that cannot be made fails its test")]

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use http::{HeaderName, StatusCode};
use lab::cluster::{Cluster, Options};
use load::client::{Client, Reply};
use serde_json::json;
use tokio::task::JoinSet;

use crate::stubs::{HANG, Lab, Workload, free_port};

/// Requests by which balancers are told apart.
const N_BALANCED: usize = 8;
/// Rules of the route, each named by the value of the header that leads to it.
const RULES: [&str; 6] = ["plain", "slow", "retry", "breaker", "turns", "sticky"];

#[derive(Clone)]
struct Gateway {
    address: SocketAddr,
    client: Arc<Client>,
}

fn policy(rule: &str, settings: &str) -> String {
    format!(
        "---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: BackendTrafficPolicy
metadata: {{name: {rule}}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r, sectionName: {rule}}}]
  {settings}
"
    )
}

fn manifests([port, patient_port]: [u16; 2]) -> String {
    let rule = |name: &&str| {
        format!(
            "  - name: {name}\n    matches: [{{headers: [{{name: kind, value: {name}}}]}}]\n    backendRefs: [{{name: s, port: 8000}}]\n"
        )
    };
    let rules: String = RULES.iter().map(rule).collect();
    let policies = [
        policy("slow", "timeout: {http: {requestTimeout: 200ms}}"),
        policy(
            "retry",
            "retry: {numRetries: 3, retryOn: {triggers: [retriable-status-codes], httpStatusCodes: [418]}, perRetry: {backOff: \
             {baseInterval: 10ms}}}",
        ),
        policy("breaker", "circuitBreaker: {maxParallelRequests: 1}"),
        policy("turns", "loadBalancer: {type: RoundRobin}"),
        policy(
            "sticky",
            "loadBalancer: {type: ConsistentHash, consistentHash: {type: Header, header: {name: user}}}",
        ),
    ];
    let container = "args: [Qwen/Qwen2.5-7B-Instruct, --served-model-name, m]";
    let pods = Workload { kind: "StatefulSet", name: "s", namespace: "default", replicas: 2, container };
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: g}}
spec:
  gatewayClassName: eg
  listeners: [{{name: http, protocol: HTTP, port: {port}}}, {{name: patient, protocol: HTTP, port: {patient_port}}}]
---
apiVersion: gateway.envoyproxy.io/v1alpha1
kind: ClientTrafficPolicy
metadata: {{name: c}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: g, sectionName: http}}]
  timeout: {{http: {{requestReceivedTimeout: 200ms}}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: r}}
spec:
  parentRefs: [{{name: g}}]
  rules:
{rules}---
apiVersion: v1
kind: Service
metadata: {{name: s}}
spec: {{selector: {{app: s}}, ports: [{{port: 8000}}]}}
{}{}",
        pods.manifest(),
        policies.concat()
    )
}

/// Sends a chat by a rule, with a fault of the pod's answer if it is not empty.
async fn chat(gateway: &Gateway, rule: &str, fault: &str) -> Reply {
    let body = json!({ "model": "m", "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 1 });
    let mut headers =
        vec![(HeaderName::from_static("kind"), rule), (HeaderName::from_static("user"), "somebody")];
    if !fault.is_empty() {
        headers.push((HeaderName::from_static("x-mock-vllm-fault"), fault));
    }
    let url = format!("http://{}/v1/chat/completions", gateway.address);
    gateway.client.post(&url, &headers, body.to_string().into()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_setting_of_a_policy_has_its_effect_and_only_where_it_is_set() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::real().await;
    let file = lab.dir.path().join("policies.yaml");
    std::fs::write(&file, manifests([free_port(), free_port()])).unwrap();
    let cluster =
        Cluster::start(Options::new(file, lab.dir.path().join("run")), lab.programs.clone(), lab.progress());
    let cluster = cluster.await.unwrap();
    let gateway = Gateway { address: cluster.gateway("http").unwrap(), client: Arc::new(Client::patient()) };

    // Requests that are given up are logged late, so what counts requests comes first.
    balancers(&cluster, &gateway).await;
    retries(&cluster, &gateway).await;
    timeouts(&gateway).await;
    circuit_breaker(&gateway).await;
    let addresses = ["http", "patient"].map(|listener| cluster.gateway(listener).unwrap());
    tokio::task::spawn_blocking(move || client_timeouts(addresses)).await.unwrap();
    cluster.stop().await.unwrap();
}

async fn timeouts(gateway: &Gateway) {
    let fault = "stall:delay=2s";
    assert_eq!(chat(gateway, "slow", fault).await.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(chat(gateway, "plain", fault).await.status, StatusCode::OK, "the control waits");
}

/// Each pod refuses one request.
async fn retries(cluster: &Cluster, gateway: &Gateway) {
    for (rule, expected) in [("plain", StatusCode::IM_A_TEAPOT), ("retry", StatusCode::OK)] {
        for pod in cluster.pods() {
            let url = format!("http://{}/debug/faults", pod.address);
            let body = json!({ "faults": ["status:code=418,times=1"] }).to_string();
            assert!(gateway.client.post(&url, &[], body.into()).await.unwrap().status.is_success());
        }
        assert_eq!(chat(gateway, rule, "").await.status, expected, "{rule}");
    }
}

/// While one request is being answered, another one by the same rule is refused.
async fn circuit_breaker(gateway: &Gateway) {
    for rule in ["plain", "breaker"] {
        let (held, end) = tokio::sync::oneshot::channel::<()>();
        let holder = gateway.clone();
        let mut holders = JoinSet::new();
        holders.spawn(async move {
            let hold = async {
                // A request of the other side may have come first.
                loop {
                    chat(&holder, rule, "stall:tokens=0").await;
                }
            };
            tokio::select! {
                () = hold => {}
                _ = end => {}
            }
        });
        let refused =
            async { while chat(gateway, rule, "").await.status != StatusCode::SERVICE_UNAVAILABLE {} };
        match rule {
            "breaker" => tokio::time::timeout(HANG, refused).await.expect("it is refused in the end"),
            _ => {
                for _ in 0..N_BALANCED {
                    assert_eq!(chat(gateway, rule, "").await.status, StatusCode::OK, "the control");
                }
            }
        }
        held.send(()).unwrap();
        holders.join_all().await;
    }
}

async fn balancers(cluster: &Cluster, gateway: &Gateway) {
    let counts = || -> Vec<usize> {
        let logs = cluster.pods().into_iter().map(|pod| pod.request_log);
        logs.map(|log| std::fs::read_to_string(log).unwrap_or_default().lines().count()).collect()
    };
    for (rule, n_pods) in [("sticky", 1), ("turns", 2)] {
        let before = counts();
        for _ in 0..N_BALANCED {
            assert_eq!(chat(gateway, rule, "").await.status, StatusCode::OK);
        }
        crate::stubs::until("the requests are logged", || {
            counts().iter().sum::<usize>() == before.iter().sum::<usize>() + N_BALANCED
        })
        .await;
        let used = counts().iter().zip(&before).filter(|(after, before)| after > before).count();
        assert_eq!(used, n_pods, "{rule}: {before:?} {:?}", counts());
    }
}

/// A request that never arrives whole is given up only where a policy says so.
fn client_timeouts([impatient, patient]: [SocketAddr; 2]) {
    let begin = |address| {
        let mut stream = TcpStream::connect(address).unwrap();
        let head =
            "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nkind: plain\r\ncontent-length: 99\r\n\r\n{";
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let (mut control, mut given_up) = (begin(patient), begin(impatient));
    given_up.set_read_timeout(Some(HANG)).unwrap();
    let mut reply = [0; 12];
    given_up.read_exact(&mut reply).unwrap();
    assert_eq!(&reply, b"HTTP/1.1 408");
    control.set_nonblocking(true).unwrap();
    assert_eq!(control.read(&mut reply).unwrap_err().kind(), ErrorKind::WouldBlock, "the control waits");
}
