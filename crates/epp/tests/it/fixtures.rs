//! A picker with model servers around it, and a proxy that talks to it like Envoy.

mod engine;
pub(crate) mod http2;
mod pod;
pub(crate) mod program;
mod proxy;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use epp::director::Options;
use epp::kv_events;
use epp::server::accept::Patience;
use epp::server::grpc::Timeouts;
use epp::server::tls::Security;
use epp::server::{BoundPorts, Server, Settings, Shutdown};
use epp::source::Config;
use epp::spans::Otlp;
use epp::tuning::Patch;
use ext_proc::compat::Compat;
use parking_lot::Mutex;
use picking::picker::INDEX_CAPACITY;
use pool_index::source::files;
use prefix_index::blocks::Bounds;
use prometheus_client::metrics::counter::Counter;
use scheduling::saturation::Thresholds;
use serde_json::Value;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tracing::subscriber::DefaultGuard;

pub(crate) use self::engine::{Engine, Form};
pub(crate) use self::pod::{IMAGE_TOKENS, Pages, Pod};
pub(crate) use self::proxy::{Answer, Call, Proxy, ending, http_headers, modes, post, reported};

/// Longest wait for something that must happen; after it the test fails.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// Longer than any test takes.
pub(crate) const TIMEOUTS: Timeouts =
    Timeouts { idle: Duration::from_secs(600), total: Duration::from_secs(600) };

const POOL: &str = "\
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata:
  name: vllm-qwen-pool
  annotations: {inference.networking.x-k8s.io/routing-strategy: STRATEGY ANNOTATIONS}
spec:
  targetPortNumber: 8000
  selector: {app: qwen}
  extensionRef: {name: inference-gateway-ext-proc}
";
const MODEL: &str = "\
---
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceModel
metadata: {name: inferencemodel-qwen}
spec:
  modelName: /model/qwen
  criticality: Critical
  poolRef: {group: inference.networking.x-k8s.io, kind: InferencePool, name: vllm-qwen-pool}
  targetModels: [TARGETS]
";
/// The targets of the tutorial's model.
const TARGETS: &str = "{name: /model/qwen, weight: 100}";

/// Configuration of a picker.
pub(crate) struct Scenario {
    strategy: &'static str,
    /// Further annotations of the pool, each with a comma in front.
    annotations: &'static str,
    models: String,
    n_pods: usize,
    max_body_bytes: usize,
    endpoints_per_pick: usize,
    compat: Compat,
    explains: bool,
    otlp: Option<Otlp>,
    drain_delay: Duration,
    patience: Patience,
    max_buffered_bytes: usize,
    body_timeouts: Timeouts,
}

/// A running picker.
pub(crate) struct Picker {
    pub(crate) ports: BoundPorts,
    pub(crate) pods: Vec<Pod>,
    pub(crate) log: Log,
    pub(crate) shutdown: Shutdown,
    pub(crate) server: JoinSet<anyhow::Result<()>>,
    models: String,
    pool_file: PathBuf,
    endpoints_file: PathBuf,
    _dir: TempDir,
    _subscriber: DefaultGuard,
}

/// The log so far.
#[derive(Clone, Default)]
pub(crate) struct Log {
    written: Arc<Mutex<Vec<u8>>>,
    /// Whoever logs this panics.
    fatal: Arc<Mutex<Option<&'static str>>>,
}

impl Scenario {
    /// The tutorial's pool under PREFIX_CACHE, with its model.
    pub(crate) fn new(n_pods: usize) -> Self {
        let models = MODEL.replace("TARGETS", TARGETS);
        Self {
            strategy: "PREFIX_CACHE",
            annotations: "",
            models,
            n_pods,
            max_body_bytes: 64 << 20,
            endpoints_per_pick: 1,
            compat: Compat::None,
            explains: false,
            otlp: None,
            drain_delay: Duration::ZERO,
            patience: Patience::default(),
            max_buffered_bytes: 1 << 30,
            body_timeouts: TIMEOUTS,
        }
    }

    pub(crate) fn max_buffered_bytes(self, max_buffered_bytes: usize) -> Self {
        Self { max_buffered_bytes, ..self }
    }

    pub(crate) fn body_timeouts(self, body_timeouts: Timeouts) -> Self {
        Self { body_timeouts, ..self }
    }

    pub(crate) fn patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    pub(crate) fn otlp(self, otlp: Option<Otlp>) -> Self {
        Self { otlp, ..self }
    }

    pub(crate) fn explains(self) -> Self {
        Self { explains: true, ..self }
    }

    pub(crate) fn drain_delay(self, drain_delay: Duration) -> Self {
        Self { drain_delay, ..self }
    }

    pub(crate) fn strategy(self, strategy: &'static str) -> Self {
        Self { strategy, ..self }
    }

    pub(crate) fn targets(self, targets: &str) -> Self {
        Self { models: MODEL.replace("TARGETS", targets), ..self }
    }

    /// The pool's engine.
    pub(crate) fn annotations(self, annotations: &'static str) -> Self {
        Self { annotations, ..self }
    }

    pub(crate) fn compat(self, compat: Compat) -> Self {
        Self { compat, ..self }
    }

    /// Adds objects to the pool file, after the pool.
    pub(crate) fn objects(self, yaml: &str) -> Self {
        Self { models: self.models + yaml, ..self }
    }

    pub(crate) fn without_models(self) -> Self {
        Self { models: String::new(), ..self }
    }

    pub(crate) fn max_body_bytes(self, max_body_bytes: usize) -> Self {
        Self { max_body_bytes, ..self }
    }

    pub(crate) fn endpoints_per_pick(self, endpoints_per_pick: usize) -> Self {
        Self { endpoints_per_pick, ..self }
    }

    /// Starts pods and picker, and waits until every pod was scraped.
    pub(crate) async fn start(self) -> Picker {
        let Self { strategy, annotations, models, n_pods, max_body_bytes, endpoints_per_pick, .. } = self;
        let dir = TempDir::new().unwrap();
        let (pool_file, endpoints_file) = (dir.path().join("pool.yaml"), dir.path().join("endpoints.yaml"));
        let mut pods = Vec::new();
        for pod_idx in 0..n_pods {
            pods.push(Pod::start(format!("qwen-{pod_idx}")).await);
        }
        let (log, subscriber) = Log::start();
        write_pool(&pool_file, strategy, annotations, &models);
        write_endpoints(&endpoints_file, &pods);
        let mut settings = settings(&pool_file, &endpoints_file, max_body_bytes);
        settings.director.endpoints_per_pick = NonZeroUsize::new(endpoints_per_pick).unwrap();
        settings.director.compat = self.compat;
        settings.director.explains = self.explains;
        settings.otlp = self.otlp;
        settings.drain_delay = self.drain_delay;
        settings.patience = self.patience;
        settings.max_buffered_bytes = self.max_buffered_bytes;
        settings.body_timeouts = self.body_timeouts;
        let server = Server::bind(settings).await.unwrap();
        let (ports, shutdown) = (server.ports().unwrap(), Shutdown::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(server.run(shutdown.clone()));
        let picker = Picker {
            ports,
            pods,
            log,
            shutdown,
            server: tasks,
            models,
            pool_file,
            endpoints_file,
            _dir: dir,
            _subscriber: subscriber,
        };
        picker.wait_for_scrapes().await;
        picker
    }
}

impl Picker {
    pub(crate) async fn proxy(&self) -> Proxy {
        Proxy::connect(self.ports.grpc).await
    }

    /// Rewrites the pool and waits until the picker follows.
    pub(crate) async fn change_strategy(&self, strategy: &str) {
        let n_changes = || self.log.lines().iter().filter(|line| line.contains("Changing strategy")).count();
        let before = n_changes();
        write_pool(&self.pool_file, strategy, "", &self.models);
        until(async || n_changes() > before).await;
    }

    /// Writes the pool file in place, like a shell: it is empty until the text comes.
    pub(crate) fn rewrite_pools(&self, text: &str) {
        std::fs::write(&self.pool_file, text).unwrap();
    }

    /// The text of the pool file.
    pub(crate) fn pools(&self) -> String {
        std::fs::read_to_string(&self.pool_file).unwrap()
    }

    /// Replaces the endpoints file by a FIFO without a writer.
    pub(crate) fn replace_endpoints_by_fifo(&self) {
        std::fs::remove_file(&self.endpoints_file).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&self.endpoints_file).status();
        assert!(made.unwrap().success());
    }

    pub(crate) fn endpoints_file(&self) -> &Path {
        &self.endpoints_file
    }

    /// Removes all pools and models.
    pub(crate) fn remove_pools(&self) {
        replace(&self.pool_file, "");
    }

    /// Sets the policy annotation of the pool, under PREFIX_CACHE.
    pub(crate) fn annotate_policy(&self, policy: &str) {
        let annotation = format!(", inference.networking.x-k8s.io/routing-policy: '{policy}'");
        write_pool(&self.pool_file, "PREFIX_CACHE", &annotation, &self.models);
    }

    /// Rewrites the endpoints that remain, and waits until the picker follows.
    pub(crate) async fn keep_pods(&mut self, keep: impl Fn(&Pod) -> bool) {
        let logged = |what: &str| self.log.lines().iter().filter(|line| line.contains(what)).count();
        let removed = self.pods.iter().filter(|pod| !keep(pod)).count();
        let before = logged("Removing endpoint");
        self.pods.retain(keep);
        write_endpoints(&self.endpoints_file, &self.pods);
        until(async || logged("Removing endpoint") == before + removed).await;
    }

    pub(crate) async fn decisions(&self, after: u64) -> Vec<Value> {
        let text = get(self.ports.metrics, &format!("/debug/decisions?after={after}")).await;
        let mut list: Value = serde_json::from_str(&text).unwrap();
        match list["decisions"].take() {
            Value::Array(decisions) => decisions,
            other => panic!("not a list: {other}"),
        }
    }

    pub(crate) async fn metrics(&self) -> String {
        get(self.ports.metrics, "/metrics").await
    }

    /// Waits until every pod was scraped twice more.
    pub(crate) async fn wait_for_scrapes(&self) {
        let before: Vec<usize> = self.pods.iter().map(Pod::n_scrapes).collect();
        until(async || self.pods.iter().zip(&before).all(|(pod, before)| pod.n_scrapes() >= before + 2))
            .await;
    }
}

impl Log {
    /// Takes what this thread logs while the guard lives.
    pub(crate) fn start() -> (Self, DefaultGuard) {
        let log = Self::default();
        let subscriber = epp::log::subscriber(&"info".parse().unwrap(), wall_clock, log.clone());
        (log, tracing::subscriber::set_default(subscriber))
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        String::from_utf8(self.written.lock().clone()).unwrap().lines().map(str::to_owned).collect()
    }

    /// Injects a fault: from now on, whoever logs `text` panics.
    pub(crate) fn set_fatal(&self, text: Option<&'static str>) {
        *self.fatal.lock() = text;
    }

    /// The part of each `Do prefix-aware routing!` line after the message.
    pub(crate) fn prefix_lines(&self) -> Vec<String> {
        let fields =
            |line: String| line.split_once("\tDo prefix-aware routing!\t").map(|(_, rest)| rest.to_owned());
        self.lines().into_iter().filter_map(fields).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.written.lock().extend_from_slice(bytes);
        let fatal = *self.fatal.lock();
        if let Some(fatal) = fatal {
            assert!(!String::from_utf8_lossy(bytes).contains(fatal), "a line that is fatal");
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(crate) fn settings(pool_file: &Path, endpoints: &Path, max_body_bytes: usize) -> Settings {
    Settings {
        source: Config::Files(files::Config {
            pool_files: vec![pool_file.to_owned()],
            endpoints_file: Some(endpoints.to_owned()),
            static_endpoints: Vec::new(),
        }),
        policy_file: None,
        host: IpAddr::V4(Ipv4Addr::LOCALHOST),
        grpc_port: 0,
        health_port: 0,
        metrics_host: IpAddr::V4(Ipv4Addr::LOCALHOST),
        metrics_port: 0,
        security: Security::default(),
        patience: Patience::default(),
        otlp: None,
        n_dropped_lines: Counter::default(),
        peers: Vec::new(),
        scrape_interval: Duration::from_millis(10),
        kv_ports: kv_events::follow::KvPorts { events: 1, replay: None },
        tokenize_timeout: Duration::from_secs(1),
        grace_period: Duration::from_secs(5),
        drain_delay: Duration::ZERO,
        max_body_bytes,
        max_buffered_bytes: 1 << 30,
        body_timeouts: TIMEOUTS,
        director: options(),
    }
}

pub(crate) fn options() -> Options {
    Options {
        pool: None,
        policy: Patch::default(),
        max_metrics_age: Duration::from_secs(60),
        index_capacity: INDEX_CAPACITY,
        kv_bounds: Bounds::default(),
        compat: Compat::None,
        explains: false,
        // No test depends on how fast the machine scrapes.
        saturation: Thresholds { metrics_age: Duration::from_secs(60), ..Thresholds::default() },
        endpoints_per_pick: NonZeroUsize::MIN,
        n_decisions: 1000,
        seed: 7,
        peers: None,
    }
}

/// Polls until `condition` holds; fails after [`SOON`].
pub(crate) async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let poll = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, poll).await.expect("the condition never held");
}

/// The body of a 200 answer.
pub(crate) async fn get(address: SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    // The body of an answer to HTTP/1.0 is sent as it is and ends with the connection.
    let request = format!("GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200"), "{head}");
    body.to_owned()
}

fn write_pool(path: &Path, strategy: &str, annotations: &str, models: &str) {
    let pool = POOL.replace("STRATEGY", strategy).replace("ANNOTATIONS", annotations);
    replace(path, &(pool + models));
}

fn write_endpoints(path: &Path, pods: &[Pod]) {
    let line = |pod: &Pod| {
        format!(
            "- {{name: {}, namespace: default, address: '{}', labels: {{app: qwen}}}}\n",
            pod.name, pod.address
        )
    };
    let text: String = pods.iter().map(line).collect();
    replace(path, if text.is_empty() { "[]\n" } else { &text });
}

/// Replaces a file atomically, like an editor.
fn replace(path: &Path, text: &str) {
    let part = path.with_extension("part");
    std::fs::write(&part, text).unwrap();
    std::fs::rename(part, path).unwrap();
}

#[expect(clippy::disallowed_methods, reason = "the log is stamped with the wall clock")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}
