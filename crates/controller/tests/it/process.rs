//! The whole controller against an API server: what it makes, what it takes away, and what it survives.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use controller::certificates::Authority;
use controller::routes::MARK;
use controller::server::{BoundPorts, Server, Settings};
use controller::setup::Setup;
use envoy_proto::envoygateway::extension::envoy_gateway_extension_client::EnvoyGatewayExtensionClient;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::api_server::ApiServer;
use crate::fixtures::{alpha_pool, route_request};

const POOLS: &str = "inference.networking.x-k8s.io/v1alpha2/inferencepools";
const ROUTES: &str = "gateway.networking.k8s.io/v1/httproutes";
pub(crate) const HERE: &str = "envoy-gateway-system";
const PICKER: &str = "epp-default-ext-proc";

/// A controller, and what it runs with.
pub(crate) struct Running {
    pub(crate) api: ApiServer,
    ports: BoundPorts,
    stop: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
    _dir: TempDir,
}

impl Running {
    pub(crate) async fn start(api: ApiServer, secure_names: Option<Vec<String>>) -> Self {
        let dir = TempDir::new().unwrap();
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, api.kubeconfig()).unwrap();
        let host = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let settings = Settings {
            kubeconfig: Some(kubeconfig),
            namespace: HERE.to_owned(),
            setup: Setup {
                image: "epp:1".to_owned(),
                replicas: None,
                arguments: Vec::new(),
                explains: false,
            },
            host,
            hooks_port: 0,
            secure_names,
            metrics_host: host,
            metrics_port: 0,
        };
        let server = Server::bind(settings).await.unwrap();
        let (ports, stop) = (server.ports().unwrap(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(server.run(stop.clone()));
        Self { api, ports, stop, tasks, _dir: dir }
    }

    pub(crate) async fn stop(mut self) -> ApiServer {
        self.stop.cancel();
        self.tasks.join_next().await.unwrap().unwrap().unwrap();
        self.api
    }

    async fn get(&self, path: &str) -> String {
        get(self.ports.metrics, path).await
    }

    /// The route of the tutorial after the hook.
    async fn hooked(&self) -> Vec<u8> {
        let address = format!("http://{}", self.ports.hooks);
        let mut client = EnvoyGatewayExtensionClient::connect(address).await.unwrap();
        client.post_route_modify(route_request()).await.unwrap().into_inner().route.unwrap().to_vec()
    }
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    text
}

/// Waits for a condition, which must come.
pub(crate) async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let looking = async {
        while !holds().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(60), looking).await.unwrap();
}

fn routed() -> [(&'static str, Value); 4] {
    let class = json!({ "metadata": { "name": "eg" }, "spec": { "controllerName": "gateway.envoyproxy.io/gatewayclass-controller" } });
    let gateway = json!({
        "metadata": { "name": "gw", "namespace": "default" },
        "spec": { "gatewayClassName": "eg", "listeners": [{ "name": "http", "port": 80, "protocol": "HTTP" }] },
    });
    let route = json!({
        "metadata": { "name": "r", "namespace": "default", "annotations": { "mine": "1" } },
        "spec": {
            "parentRefs": [{ "name": "gw" }],
            "rules": [{ "backendRefs": [{ "group": "inference.networking.x-k8s.io", "kind": "InferencePool", "name": "qwen" }] }],
        },
    });
    [
        ("gateway.networking.k8s.io/v1/gatewayclasses", class),
        ("gateway.networking.k8s.io/v1/gateways", gateway),
        (ROUTES, route),
        (POOLS, alpha_pool()),
    ]
}

/// An API server with a pool that a Gateway leads to.
async fn with_a_pool() -> ApiServer {
    let api = ApiServer::start().await;
    for (collection, object) in routed() {
        api.apply(collection, &object);
    }
    api
}

fn mark(api: &ApiServer) -> Value {
    api.get(ROUTES, "default", "r").unwrap()["metadata"]["annotations"][MARK].clone()
}

#[tokio::test]
async fn a_pool_gets_what_it_asks_for_and_loses_it() {
    if test_skips::skips_slow() {
        return;
    }
    let running = Running::start(with_a_pool().await, None).await;
    let api = running.api.clone();
    let made = [
        ("v1/secrets", HERE, "warmpath-authority"),
        ("v1/secrets", HERE, PICKER),
        ("v1/serviceaccounts", HERE, PICKER),
        ("v1/services", HERE, PICKER),
        ("apps/v1/deployments", HERE, PICKER),
        ("rbac.authorization.k8s.io/v1/roles", "default", PICKER),
        ("rbac.authorization.k8s.io/v1/rolebindings", "default", PICKER),
        ("v1/services", "default", "qwen-pods"),
    ];
    let exists =
        |(collection, namespace, name): (&str, &str, &str)| api.get(collection, namespace, name).is_some();
    until(async || made.into_iter().all(exists)).await;
    until(async || {
        api.get(POOLS, "default", "qwen").unwrap()["status"]["parent"][0]["parentRef"]["name"] == "gw"
    })
    .await;
    until(async || mark(&api).is_string()).await;
    assert_eq!(api.get(ROUTES, "default", "r").unwrap()["metadata"]["annotations"]["mine"], "1");
    until(async || running.get("/readyz").await.starts_with("HTTP/1.1 200")).await;
    assert!(String::from_utf8_lossy(&running.hooked().await).contains("default/vllm-qwen-pool"));
    until(async || running.get("/metrics").await.contains("controller_managed_pickers 1")).await;

    // The pool goes: its picker goes, in time, and the authority stays.
    api.delete(POOLS, "default", "qwen");
    until(async || made[1..].iter().all(|object| !exists(*object))).await;
    assert!(exists(made[0]));
    until(async || mark(&api).is_null()).await;
}

#[tokio::test]
async fn a_second_controller_finds_nothing_to_do() {
    let running = Running::start(with_a_pool().await, None).await;
    let api = running.api.clone();
    until(async || mark(&api).is_string() && api.get("apps/v1/deployments", HERE, PICKER).is_some()).await;
    // Nothing more is written once everything is as it should be.
    until(async || {
        api.take_writes();
        sleep(Duration::from_millis(500)).await;
        api.take_writes().is_empty()
    })
    .await;
    let api = running.stop().await;
    let running = Running::start(api, None).await;
    until(async || running.get("/readyz").await.starts_with("HTTP/1.1 200")).await;
    running.hooked().await;
    assert_eq!(running.api.take_writes(), []);
    // Control: what somebody has changed is set right again.
    let mut role = running.api.get("rbac.authorization.k8s.io/v1/roles", "default", PICKER).unwrap();
    let rules = std::mem::replace(&mut role["rules"], json!([]));
    running.api.apply("rbac.authorization.k8s.io/v1/roles", &role);
    let role = || running.api.get("rbac.authorization.k8s.io/v1/roles", "default", PICKER).unwrap();
    until(async || role()["rules"] == rules).await;
}

/// A plan that is made before a watch shows what was written asks for it again.
#[tokio::test]
async fn what_watches_show_late_is_written_once() {
    let api = with_a_pool().await;
    api.set_lag(Duration::from_millis(200));
    let running = Running::start(api, None).await;
    let mut writes = Vec::new();
    until(async || {
        writes.extend(running.api.take_writes());
        running.api.get("apps/v1/deployments", HERE, PICKER).is_some() && mark(&running.api).is_string()
    })
    .await;
    sleep(Duration::from_secs(1)).await;
    writes.extend(running.api.take_writes());
    let applied = |name: &str| writes.iter().filter(|(_, path)| path.ends_with(name)).count();
    assert_eq!(
        [applied("/secrets/epp-default-ext-proc"), applied("/services/qwen-pods")],
        [1, 1],
        "{writes:?}"
    );
}

#[tokio::test]
async fn hooks_are_answered_while_the_api_server_is_away() {
    if test_skips::skips_slow() {
        return;
    }
    let running = Running::start(with_a_pool().await, None).await;
    until(async || running.get("/readyz").await.starts_with("HTTP/1.1 200")).await;
    let before = running.hooked().await;
    running.api.set_down(true);
    until(async || running.get("/metrics").await.contains("controller_kubernetes_failing 1")).await;
    assert_eq!(running.hooked().await, before);
    assert!(running.get("/readyz").await.starts_with("HTTP/1.1 200"));
    // Changes in the meantime are taken up afterwards: somebody's picker replaces the managed one.
    let service = json!({ "metadata": { "name": "ext-proc", "namespace": "default" }, "spec": {} });
    running.api.apply("v1/services", &service);
    let marked = mark(&running.api);
    running.api.set_down(false);
    until(async || mark(&running.api) != marked).await;
    until(async || running.api.get("apps/v1/deployments", HERE, PICKER).is_none()).await;
}

#[tokio::test]
async fn nothing_is_served_before_the_first_lists() {
    let api = with_a_pool().await;
    api.set_down(true);
    let running = Running::start(api, None).await;
    assert!(running.get("/healthz").await.starts_with("HTTP/1.1 200"));
    until(async || running.get("/metrics").await.contains("controller_kubernetes_failing 1")).await;
    let answer = running.get("/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("waiting"), "{answer}");
    // A call waits instead of failing.
    let call = running.hooked();
    tokio::pin!(call);
    assert!(timeout(Duration::from_millis(300), &mut call).await.is_err());
    running.api.set_down(false);
    timeout(Duration::from_secs(60), call).await.unwrap();
}

#[tokio::test]
async fn hooks_over_tls_are_trusted_by_the_authority() {
    let running = Running::start(with_a_pool().await, Some(vec!["hooks.test".to_owned()])).await;
    until(async || running.get("/readyz").await.starts_with("HTTP/1.1 200")).await;
    let secret = running.api.get("v1/secrets", HERE, "warmpath-authority").unwrap();
    let authority = Authority::read(&secret).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority.certificates.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let handshake = async |name: &'static str| {
        let socket = TcpStream::connect(running.ports.hooks).await.unwrap();
        connector.connect(ServerName::try_from(name).unwrap(), socket).await.is_ok()
    };
    until(async || handshake("hooks.test").await).await;
    assert!(!handshake("another.test").await);
}
