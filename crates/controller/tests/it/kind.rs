//! The program on a cluster of kind with many pools and pods: how soon it acts, and what it costs when nothing happens.
//! Nothing runs there: no node takes the pods.

use std::future::ready;
use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{ApiResource, ListParams, PostParams};
use kube::core::{DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use pool_watch::connect;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

const N_POOLS: usize = 200;
const PODS_PER_POOL: usize = 10;
/// Pools that are made while everything else is as it should be.
const N_CHANGES: usize = 10;
/// Objects that are made at a time.
const CONCURRENT: usize = 32;
/// Most of a core that the idle program may take, and most memory.
const MAX_IDLE_SHARE: f64 = 0.02;
const MAX_BYTES: usize = 100 << 20;
/// Longest time from a pool to its Service, for the fastest of the changes.
const MAX_DELAY: Duration = Duration::from_secs(1);
const IDLE_TIME: Duration = Duration::from_secs(20);
/// Longest wait for anything, on a machine that does other things.
const LIMIT: Duration = Duration::from_secs(400);
const HERE: &str = "envoy-gateway-system";
/// Says of a pod that no scheduler takes it.
const NOBODY: &str = "nobody";

/// A cluster of kind, which the test leaves deleted.
struct Kind {
    name: String,
    dir: TempDir,
}

/// The controller's program, which is killed when dropped.
struct Program {
    child: Child,
}

impl Kind {
    fn make() -> Self {
        let cluster =
            Self { name: format!("warmpath-large-{}", std::process::id()), dir: TempDir::new().unwrap() };
        run(
            "kind",
            &["create", "cluster", "--name", &cluster.name, "--kubeconfig", &cluster.kubeconfig()],
            "",
        );
        cluster
    }

    fn kubeconfig(&self) -> String {
        self.dir.path().join("kubeconfig").to_str().unwrap().to_owned()
    }

    fn kubectl(&self, arguments: &[&str], input: &str) {
        let kubeconfig = self.kubeconfig();
        run("kubectl", &[&["--kubeconfig", &kubeconfig][..], arguments].concat(), input);
    }

    async fn client(&self) -> Client {
        connect::client(connect::config(Some(self.kubeconfig().as_ref())).await.unwrap()).unwrap()
    }
}

impl Drop for Kind {
    fn drop(&mut self) {
        let _ = Command::new("kind").args(["delete", "cluster", "--name", &self.name]).output();
    }
}

impl Program {
    fn start(cluster: &Kind) -> Self {
        let host = ["--host", "127.0.0.1", "--metrics-host", "127.0.0.1"];
        let ports = ["--hooks-port", "0", "--metrics-port", "0", "--log-level", "warn"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_controller"));
        command.args(["--picker-image", "epp:1", "--kubeconfig", &cluster.kubeconfig()]);
        Self { child: command.args(host).args(ports).stdin(Stdio::null()).spawn().unwrap() }
    }

    fn proc_file(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap()
    }

    /// CPU time that the program has used.
    fn cpu(&self) -> Duration {
        let stat = self.proc_file("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// The most memory that it has had.
    fn peak_bytes(&self) -> usize {
        let status = self.proc_file("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }

    /// The share of a core that the program takes in a while.
    async fn share(&self) -> f64 {
        let (before, begun) = (self.cpu(), Instant::now());
        sleep(IDLE_TIME).await;
        (self.cpu() - before).as_secs_f64() / begun.elapsed().as_secs_f64()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(program: &str, arguments: &[&str], input: &str) {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

/// True for a program that ends well.
fn runs(program: &str, argument: &str) -> bool {
    let output = Command::new(program).arg(argument).output();
    output.is_ok_and(|output| output.status.success())
}

/// Waits for a condition, which must come.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let looking = async {
        while !holds().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, looking).await.unwrap_or_else(|_| panic!("{what}: not after {LIMIT:?}"));
}

async fn make<K>(api: &Api<K>, objects: impl IntoIterator<Item = Value>)
where
    K: Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let created = objects.into_iter().map(async |object| {
        let object: K = serde_json::from_value(object).unwrap();
        api.create(&PostParams::default(), &object).await
    });
    let created = stream::iter(created).buffer_unordered(CONCURRENT);
    created.try_for_each(|_| ready(Ok(()))).await.unwrap();
}

fn pool(name: &str) -> Value {
    json!({
        "apiVersion": "inference.networking.x-k8s.io/v1alpha2", "kind": "InferencePool",
        "metadata": { "name": name },
        "spec": {
            "targetPortNumber": 8000,
            "selector": { "app": name },
            "extensionRef": { "name": format!("{name}-ext-proc") },
        },
    })
}

fn pods() -> impl Iterator<Item = Value> {
    (0..N_POOLS * PODS_PER_POOL).map(|idx| {
        let app = format!("pool-{}", idx % N_POOLS);
        json!({
            "metadata": { "name": format!("pod-{idx}"), "labels": { "app": app } },
            "spec": { "schedulerName": NOBODY, "containers": [{ "name": "vllm", "image": "vllm:1" }] },
        })
    })
}

async fn count<K>(api: &Api<K>) -> usize
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    api.list_metadata(&ListParams::default()).await.unwrap().items.len()
}

#[tokio::test]
async fn a_large_cluster_is_followed_at_little_cost() {
    if test_skips::skips_slow() {
        return;
    }
    if cfg!(debug_assertions) {
        return test_skips::skipped("its figures are those of a build with optimisation: --release");
    }
    if !(cfg!(target_os = "linux") && runs("docker", "info") && runs("kind", "version")) {
        return test_skips::missing("there is no Linux, Docker or kind", "WARMPATH_REQUIRE_KIND");
    }
    let cluster = Kind::make();
    let crds = concat!(env!("CARGO_MANIFEST_DIR"), "/../../manifests/crds");
    cluster.kubectl(&["taint", "nodes", "--all", "warmpath=full:NoSchedule"], "");
    cluster.kubectl(&["create", "namespace", HERE], "");
    cluster.kubectl(&["apply", "--server-side", "-k", crds], "");
    cluster.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=120s"], "");
    let client = cluster.client().await;
    let kind = GroupVersionKind::gvk("inference.networking.x-k8s.io", "v1alpha2", "InferencePool");
    let pools: Api<DynamicObject> =
        Api::default_namespaced_with(client.clone(), &ApiResource::from_gvk(&kind));
    let (services, pods_api): (Api<Service>, Api<Pod>) =
        (Api::default_namespaced(client.clone()), Api::default_namespaced(client.clone()));
    let pickers: Api<Deployment> = Api::namespaced(client, HERE);
    let service = async |pool: &str| services.get_opt(&format!("{pool}-pods")).await.unwrap().is_some();
    make(&pools, (0..N_POOLS).map(|idx| pool(&format!("pool-{idx}")))).await;
    make(&pods_api, pods()).await;

    let program = Program::start(&cluster);
    until("a picker for each pool", async || count(&pickers).await == N_POOLS).await;
    let mut share = program.share().await;
    until("the program is idle", async || {
        share = program.share().await;
        share < MAX_IDLE_SHARE
    })
    .await;

    let mut delays = Vec::new();
    for idx in 0..N_CHANGES {
        let name = format!("new-{idx}");
        let begun = Instant::now();
        make(&pools, [pool(&name)]).await;
        until("the Service of a new pool", async || service(&name).await).await;
        delays.push(begun.elapsed());
    }
    delays.sort();
    assert_eq!(count(&pods_api).await, N_POOLS * PODS_PER_POOL);
    let bytes = program.peak_bytes();
    say(&format!(
        "{N_POOLS} pools, {} pods: {:.3} % of a core when idle, {} MiB at most, a new pool's Service after {:?} (median; {:?} to {:?})",
        N_POOLS * PODS_PER_POOL,
        share * 100.0,
        bytes >> 20,
        delays[N_CHANGES / 2],
        delays[0],
        delays[N_CHANGES - 1],
    ));
    assert!(bytes < MAX_BYTES, "{bytes}");
    assert!(delays[0] < MAX_DELAY, "{delays:?}");

    // Control: it is the program that makes Services.
    drop(program);
    make(&pools, [pool("later")]).await;
    sleep(delays[N_CHANGES - 1] * 5).await;
    assert!(!service("later").await);
    let _program = Program::start(&cluster);
    until("the Service of a pool that was made in the meantime", async || service("later").await).await;
}

/// Prints the figures, also if the test passes.
fn say(figures: &str) {
    let _ = writeln!(std::io::stderr(), "{figures}");
}
