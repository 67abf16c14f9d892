//! The images without Kubernetes: picker, mocks and Envoy on one network of Docker serve the tutorial's two rounds.
//!
//! ```text
//! client ──► Envoy :8081 ──ext_proc──► epp        a collector of spans, and Prometheus, if Docker has their images
//!              └──► mock-vllm × 2
//! ```

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use lab::cluster::manifests::Manifests;
use lab::envoy_install;
use lab::evidence::access_log::{self, AccessEntry};
use lab::evidence::picker::{self, Decision, LogLine, parse_decisions};
use lab::evidence::pod::{self, PodEntry};
use lab::patience::{self, Patience};
use lab::requests::{Form, Requests};
use load::client::Client;
use serde_json::{Value, json};
use tempfile::TempDir;
use testcontainers::core::{IntoContainerPort as _, WaitFor};
use testcontainers::runners::AsyncRunner as _;
use testcontainers::{ContainerAsync, ContainerRequest, GenericImage, ImageExt as _};
use tokio::sync::OnceCell;
use tokio::time::sleep;

const TAG: &str = env!("CARGO_PKG_VERSION");
const ENVOY: (&str, &str) = ("envoyproxy/envoy", "distroless-v1.39.1");
const COLLECTOR: (&str, &str) = ("otel/opentelemetry-collector", "0.128.0");
const PROMETHEUS: (&str, &str) = ("prom/prometheus", "v3.4.1");
/// Packs the Envoy of the lab's own, if Docker cannot have the published image.
const OWN_ENVOY: &str = "FROM gcr.io/distroless/cc-debian13:nonroot\nCOPY envoy /usr/local/bin/envoy\nENTRYPOINT [\"/usr/local/bin/envoy\"]\n";
const CONFIG: &str = include_str!("containers/envoy.yaml");
const PODS: usize = 2;
const POD_PORT: u16 = 8000;
/// The tutorial's engine, ten times as fast, with its record of requests in its log.
const ENGINE: &str = "serve /models/Qwen2.5-7B-Instruct --port 8000 --served-model-name /model/qwen --max-model-len 8192 \
                      --gpu-memory-utilization 0.95 --enforce-eager --enable-prefix-caching \
                      --enable-prompt-tokens-details --time-scale 10 --request-log /dev/stdout";
const PICKER: &str = "--pool-file /etc/epp/pool.yaml --endpoints-file /etc/epp/endpoints.yaml --host 0.0.0.0 --metrics-host 0.0.0.0";
/// The pool's annotation, and none in its place.
const PREFIX_CACHE: (&str, &str) = ("inference.networking.x-k8s.io/routing-strategy: \"PREFIX_CACHE\"", "{}");
/// Time between two looks at a log or a page.
const LOOK: Duration = Duration::from_millis(100);

type Container = ContainerAsync<GenericImage>;

fn docker(arguments: &[&str]) -> Output {
    Command::new("docker").args(arguments).output().unwrap()
}

/// True if Docker answers; the line of a test that is left out says why.
fn has_docker() -> bool {
    let answers = Command::new("docker").arg("info").output().is_ok_and(|output| output.status.success());
    if !answers {
        test_skips::missing("Docker does not answer", "WARMPATH_REQUIRE_KIND");
    }
    answers
}

/// True if Docker has an image or can pull it.
fn has_image((name, tag): (&str, &str)) -> bool {
    let image = format!("{name}:{tag}");
    docker(&["image", "inspect", &image]).status.success()
        || docker(&["pull", "--quiet", &image]).status.success()
}

/// Makes the images of this checkout's programs, and returns Envoy's name and tag; once for all tests.
async fn images() -> &'static (String, String) {
    static IMAGES: OnceCell<(String, String)> = OnceCell::const_new();
    let make = async || {
        let dir = TempDir::new().unwrap();
        let mut driver = Command::new(env!("CARGO_BIN_EXE_e2e-kubernetes"));
        let made = driver.arg("images").arg("--context-dir").arg(dir.path().join("images")).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        envoy_image().await
    };
    IMAGES.get_or_init(make).await
}

/// Returns Envoy's published image, or else one of the Envoy that the lab installs.
async fn envoy_image() -> (String, String) {
    if has_image(ENVOY) {
        return (ENVOY.0.to_owned(), ENVOY.1.to_owned());
    }
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let installed: PathBuf = match envoy_install::binary(cache) {
        binary if binary.is_file() => binary,
        _ => {
            envoy_install::install(cache).await.unwrap();
            envoy_install::binary(cache)
        }
    };
    let dir = TempDir::new().unwrap();
    std::fs::copy(installed, dir.path().join("envoy")).unwrap();
    std::fs::write(dir.path().join("Dockerfile"), OWN_ENVOY).unwrap();
    let (name, tag) = ("warmpath/envoy".to_owned(), envoy_install::VERSION.to_owned());
    let built =
        docker(&["build", "--quiet", "--tag", &format!("{name}:{tag}"), dir.path().to_str().unwrap()]);
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    (name, tag)
}

/// Containers on a network of their own, which goes with the last of them.
struct Containers {
    picker: Container,
    envoy: Container,
    pods: Vec<Container>,
}

/// Parts that differ between tests.
#[derive(Clone, Copy)]
struct Setting<'a> {
    network: &'a str,
    pool: &'a str,
    /// Receiver of spans.
    collector: Option<&'a str>,
}

fn ours(name: &str) -> GenericImage {
    GenericImage::new(format!("warmpath/{name}"), TAG.to_owned())
        .with_wait_for(WaitFor::message_on_stderr("Serving"))
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

/// Name of a container, by which others on its network find it.
fn named(network: &str, name: &str) -> String {
    format!("{network}-{name}")
}

impl Containers {
    async fn start(setting: Setting<'_>) -> Self {
        let Setting { network, pool, collector } = setting;
        images().await;
        let (mut pods, mut addresses) = (Vec::new(), Vec::new());
        for number in 0..PODS {
            let name = format!("qwen-{number}");
            let request = ours("mock-vllm").with_cmd(words(ENGINE)).with_env_var("POD_NAME", &name);
            let pod = request.with_network(network).with_container_name(named(network, &name)).start();
            let pod = pod.await.unwrap();
            addresses.push(SocketAddr::new(pod.get_bridge_ip_address().await.unwrap(), POD_PORT));
            pods.push(pod);
        }
        let endpoint = |(number, address): (usize, &SocketAddr)| {
            let name = format!("qwen-{number}");
            json!({"name": name, "namespace": "default", "address": address.to_string(), "labels": {"app": "qwen"}, "ready": true})
        };
        let endpoints: Vec<Value> = addresses.iter().enumerate().map(endpoint).collect();
        let mut request: ContainerRequest<GenericImage> = ours("epp")
            .with_exposed_port(9090.tcp())
            .with_cmd(words(PICKER))
            .with_copy_to("/etc/epp/pool.yaml", pool.as_bytes().to_vec())
            .with_copy_to("/etc/epp/endpoints.yaml", json!(endpoints).to_string().into_bytes());
        if let Some(collector) = collector {
            request = request.with_env_var("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{collector}:4317"));
        }
        let picker_name = named(network, "epp");
        let picker = request.with_network(network).with_container_name(&picker_name).start().await.unwrap();
        let envoy = start_envoy(network, &addresses, &picker_name).await;
        Self { picker, envoy, pods }
    }

    async fn page(container: &Container, port: u16, path: &str) -> String {
        let port = container.get_host_port_ipv4(port).await.unwrap();
        let reply = Client::default().get(&format!("http://127.0.0.1:{port}{path}")).await.unwrap();
        assert!(reply.status.is_success(), "{path}: {} {}", reply.status, reply.text());
        reply.text()
    }

    /// Sends both rounds of the tutorial, and returns what everybody has seen of them.
    async fn rounds(&self) -> Seen {
        let port = self.envoy.get_host_port_ipv4(8081).await.unwrap();
        let url = format!("http://127.0.0.1:{port}/v1/chat/completions");
        let requests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/doc/requests");
        let requests = Requests::new(requests);
        let mut cached = Vec::new();
        for round in [1, 2] {
            let body = requests.curl(Form::Bash, round).unwrap();
            let reply = Client::default().post(&url, &[], body).await.unwrap();
            cached.push(
                reply
                    .chat()
                    .unwrap_or_else(|error| panic!("{error}: {}", reply.text()))
                    .usage
                    .cached_tokens(),
            );
        }
        let mut patience = Patience::start(patience::LOGS);
        loop {
            let seen = self.seen(&cached).await;
            let n_seen = (seen.accesses.len(), seen.records.len(), seen.decisions.len());
            if n_seen == (2, 2, 2) || !patience.lasts(n_seen) {
                return seen;
            }
            sleep(LOOK).await;
        }
    }

    async fn seen(&self, cached: &[u32]) -> Seen {
        let mut records = Vec::new();
        for container in &self.pods {
            records.extend(pod::parse(&json_lines(&container.stdout_to_vec().await.unwrap())).unwrap());
        }
        let accesses = access_log::parse(&json_lines(&self.envoy.stdout_to_vec().await.unwrap())).unwrap();
        let decisions = Self::page(&self.picker, 9090, "/debug/decisions?after=0").await;
        let log = text(&self.picker.stderr_to_vec().await.unwrap());
        Seen {
            cached: cached.to_vec(),
            accesses,
            records,
            decisions: parse_decisions(decisions.as_bytes()).unwrap(),
            lines: picker::prefix_aware_lines(&log),
        }
    }
}

async fn start_envoy(network: &str, pods: &[SocketAddr], picker: &str) -> Container {
    let (name, tag) = images().await;
    let endpoint = |pod: &SocketAddr| {
        let address = json!({"address": pod.ip().to_string(), "port_value": pod.port()});
        json!({"endpoint": {"address": {"socket_address": address}}})
    };
    let pods: Vec<Value> = pods.iter().map(endpoint).collect();
    let config = CONFIG.replace("PODS", &json!(pods).to_string()).replace("PICKER", picker);
    let image = GenericImage::new(name, tag)
        .with_exposed_port(8081.tcp())
        .with_wait_for(WaitFor::message_on_stderr("starting main dispatch loop"));
    let request = image
        .with_cmd(words("--config-path /etc/envoy/envoy.yaml --file-flush-interval-msec 100"))
        .with_copy_to("/etc/envoy/envoy.yaml", config.into_bytes());
    request.with_network(network).with_container_name(named(network, "envoy")).start().await.unwrap()
}

/// Records of the requests by each party, in the order of the requests.
#[derive(Debug)]
struct Seen {
    /// Tokens that the answers say were cached.
    cached: Vec<u32>,
    accesses: Vec<AccessEntry>,
    records: Vec<PodEntry>,
    decisions: Vec<Decision>,
    /// The picker's lines about prefix-aware routing.
    lines: Vec<LogLine>,
}

impl Seen {
    /// Addresses of the pods to which requests went, and of those that were picked.
    fn addresses(&self) -> (Vec<Option<&str>>, Vec<Option<&str>>) {
        let went = self.accesses.iter().map(|entry| entry.upstream_host.as_deref());
        let picked = self.decisions.iter().map(|decision| decision.endpoint.as_deref());
        (went.collect(), picked.collect())
    }
}

fn text(log: &[u8]) -> String {
    String::from_utf8_lossy(log).into_owned()
}

/// The records in a log.
fn json_lines(log: &[u8]) -> String {
    text(log).lines().filter(|line| line.starts_with('{')).map(|line| format!("{line}\n")).collect()
}

fn pool() -> String {
    Manifests::tutorial().files.remove("inference-pool.yaml").unwrap()
}

fn network(name: &str) -> String {
    format!("warmpath-{name}-{}", std::process::id())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_images_serve_the_tutorial_on_one_network() {
    if test_skips::skips_slow() || !has_docker() {
        return;
    }
    let (network, pool) = (network("tutorial"), pool());
    let containers = Containers::start(Setting { network: &network, pool: &pool, collector: None }).await;
    let seen = containers.rounds().await;
    assert_eq!(seen.cached, [0, 128], "{seen:#?}");
    let (went, picked) = seen.addresses();
    assert_eq!((went.len(), &went), (2, &picked), "Envoy follows the picker: {seen:#?}");
    assert!(went[0].is_some() && went[0] == went[1], "round 2 goes to the pod of round 1: {seen:#?}");
    let pods: Vec<&str> = seen.records.iter().map(|record| record.pod.as_str()).collect();
    assert_eq!(pods, [pods[0]; 2], "and that pod knows it: {seen:#?}");
    let [line] = seen.lines.as_slice() else { panic!("not one line: {seen:#?}") };
    assert!(picker::has_tutorial_shape(line, " 0.54 > 0.50"), "{}", line.text);
}

/// The control: the same containers, and a pool that does not ask for prefixes.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_annotation_the_same_images_route_nothing_by_prefix() {
    if test_skips::skips_slow() || !has_docker() {
        return;
    }
    let (network, pool) = (network("control"), pool());
    let (annotation, none) = PREFIX_CACHE;
    let plain = pool.replace(annotation, none);
    assert_ne!(plain, pool);
    let containers = Containers::start(Setting { network: &network, pool: &plain, collector: None }).await;
    let seen = containers.rounds().await;
    assert_eq!((seen.cached.len(), seen.decisions.len(), seen.lines.len()), (2, 2, 0), "{seen:#?}");
    assert!(!seen.decisions.iter().any(Decision::by_prefix), "{seen:#?}");
}

/// Waits until `look` finds something.
async fn until<T>(what: &str, look: impl AsyncFn() -> Result<T, String>) -> T {
    let mut patience = Patience::start(patience::PROGRAMS);
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) if !patience.lasts(seen.clone()) => panic!("{what}: {seen}"),
            Err(_) => sleep(LOOK).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_gets_the_pickers_spans() {
    const RECEIVE: &str = "receivers: {otlp: {protocols: {grpc: {endpoint: 0.0.0.0:4317}}}}\n\
                           exporters: {debug: {verbosity: detailed}}\n\
                           service: {pipelines: {traces: {receivers: [otlp], exporters: [debug]}}}\n";
    if test_skips::skips_slow() || !has_docker() {
        return;
    }
    let (name, tag) = COLLECTOR;
    if !has_image(COLLECTOR) {
        return test_skips::skipped(&format!("Docker has no image {name}:{tag}, and cannot pull it"));
    }
    let (network, pool) = (network("spans"), pool());
    let own_name = named(&network, "collector");
    let collector = GenericImage::new(name, tag)
        .with_wait_for(WaitFor::message_on_stderr("Everything is ready"))
        .with_cmd(words("--config /etc/otelcol/ours.yaml"))
        .with_copy_to("/etc/otelcol/ours.yaml", RECEIVE.as_bytes().to_vec())
        .with_network(&network)
        .with_container_name(&own_name);
    let collector = collector.start().await.unwrap();
    let setting = Setting { network: &network, pool: &pool, collector: Some(&own_name) };
    let containers = Containers::start(setting).await;
    assert!(!text(&collector.stderr_to_vec().await.unwrap()).contains("Str(epp)"), "nothing was asked yet");
    containers.rounds().await;
    until("spans of the picker", async || {
        let log = text(&collector.stderr_to_vec().await.unwrap());
        if log.contains("service.name: Str(epp)") { Ok(()) } else { Err(log) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_reads_the_pickers_metrics() {
    if test_skips::skips_slow() || !has_docker() {
        return;
    }
    let (name, tag) = PROMETHEUS;
    if !has_image(PROMETHEUS) {
        return test_skips::skipped(&format!("Docker has no image {name}:{tag}, and cannot pull it"));
    }
    let (network, pool) = (network("metrics"), pool());
    let containers = Containers::start(Setting { network: &network, pool: &pool, collector: None }).await;
    let picker = named(&network, "epp");
    let scrape = format!(
        "scrape_configs:\n- {{job_name: epp, scrape_interval: 1s, static_configs: [{{targets: ['{picker}:9090']}}]}}\n"
    );
    let prometheus = GenericImage::new(name, tag)
        .with_exposed_port(9090.tcp())
        .with_wait_for(WaitFor::message_on_stderr("Server is ready to receive web requests"))
        .with_copy_to("/etc/prometheus/prometheus.yml", scrape.into_bytes())
        .with_network(&network);
    let prometheus = prometheus.start().await.unwrap();
    containers.rounds().await;
    until("the picks of two requests", async || {
        let page = Containers::page(&prometheus, 9090, "/api/v1/query?query=sum(epp_picks_total)").await;
        let answer: Value = serde_json::from_str(&page).unwrap();
        let value = answer["data"]["result"][0]["value"][1].as_str();
        if value == Some("2") { Ok(()) } else { Err(page) }
    })
    .await;
}
