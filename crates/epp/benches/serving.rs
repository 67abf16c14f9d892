//! Costs of a whole picker on this machine: decisions per second of its CPU time, with ext_proc over loopback as Envoy
//! speaks it; the latency of a decision at half of the target rate; the CPU time of a request by that of a server that
//! decides nothing; and the cost of scraping a hundred idle pods. It is the program itself; the proxy and the pods share
//! the machine's cores with it.
#![expect(clippy::print_stdout, reason = "the figures are what this program is for")]
#![expect(clippy::disallowed_methods, reason = "a bench reads the clock and spawns its clients")]

mod no_op;
mod proxy;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mimalloc::MiMalloc;
use prost::Message as _;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use self::proxy::{Proxy, Way};

/// The picker's allocator, also for the server that decides nothing.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

const POOL: &str = "\
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata: {name: p, annotations: {inference.networking.x-k8s.io/routing-strategy: PREFIX_CACHE}}
spec: {targetPortNumber: 8000, selector: {app: a}, extensionRef: {name: e}}
";
/// A page of vLLM, some 40 KB, which every scrape reads.
const METRICS: &str = include_str!("../../../mock-vllm/tests/fixtures/metrics/0.11_scenario.txt");
/// Metrics that a filter keeps.
const WANTED: [&str; 6] = [
    "vllm:num_requests_waiting",
    "vllm:num_requests_running",
    "vllm:kv_cache_usage_perc",
    "vllm:prompt_tokens_total",
    "vllm:cache_config_info",
    "process_start_time_seconds",
];
/// Length of a body in bytes, and the target rate in decisions per second of one core.
const SIZES: [(usize, u32); 3] = [(2_000, 4_000), (10_000, 2_500), (220_000, 300)];
const N_PODS: usize = 8;
const N_STREAMS: usize = 64;
const N_IDLE_PODS: usize = 100;
const RUN: Duration = Duration::from_secs(5);

/// Turns in which the picker and the server that decides nothing run.
const N_TURNS: u8 = 3;
/// Argument with which this program is that server, followed by the files of its pick and its ports.
const NO_OP: &str = "no-op";

/// A picker, or a server that decides nothing. It is killed when dropped.
struct Picker {
    child: Child,
    grpc: SocketAddr,
    _dir: TempDir,
}

/// Decisions of a run, and the CPU time and the wall time in seconds that they took.
struct Cost {
    decisions: f64,
    busy: f64,
    elapsed: f64,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let [_, name, pick, ports] = &args[..]
        && name == NO_OP
    {
        return no_op::serve(Path::new(pick), Path::new(ports));
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("the runtime starts");
    runtime.block_on(async {
        let (pods, _tasks) = start_pods(N_PODS).await;
        for way in [Way::Through, Way::Past] {
            by_no_op(&pods, way).await;
        }
        for (n_bytes, rate) in SIZES {
            let picker = Picker::start(&pods);
            let Cost { decisions, busy, elapsed } = saturated(&picker, n_bytes, Way::Past).await;
            println!(
                "{n_bytes} bytes: {:.0} decisions per second of CPU time ({:.0} per second, {:.2} cores), {:.0} MiB",
                decisions / busy,
                decisions / elapsed,
                busy / elapsed,
                picker.memory_mib()
            );
            at_rate(&picker, n_bytes, rate / 2).await;
        }
        let (pods, _tasks) = start_pods(N_IDLE_PODS).await;
        idle(&Picker::start(&pods)).await;
    });
}

/// Compares the CPU time of a request with that of the same messages without a decision, in turns. The scrapes of an idle
/// picker are no part of it.
async fn by_no_op(pods: &[SocketAddr], way: Way) {
    let (n_bytes, _) = SIZES[0];
    let picker = Picker::start(pods);
    let pick = Proxy::connect(picker.grpc, way).await.pick(&bodies(n_bytes)[0]).await;
    let no_op = Picker::no_op(&pick.encode_to_vec());
    let idle = [idle_share(&picker, RUN).await, 0.0];
    let mut micros = [0.0, 0.0];
    for _ in 0..N_TURNS {
        for ((sum, server), idle) in micros.iter_mut().zip([&picker, &no_op]).zip(idle) {
            let Cost { decisions, busy, elapsed } = saturated(server, n_bytes, way).await;
            *sum += (busy - idle * elapsed) / decisions * 1e6 / f64::from(N_TURNS);
        }
    }
    let [own, bare] = micros;
    println!(
        "{n_bytes} bytes, responses {}: {own:.0} µs of CPU time for a request, {:.2} times the {bare:.0} µs without a \
         decision",
        way.name(),
        own / bare
    );
}

/// Runs as many streams as possible, each request after the last one is answered.
async fn saturated(picker: &Picker, n_bytes: usize, way: Way) -> Cost {
    let bodies = bodies(n_bytes);
    let proxy = Proxy::connect(picker.grpc, way).await;
    let end = Instant::now() + RUN;
    let (before, start) = (picker.cpu_seconds(), Instant::now());
    let mut clients = JoinSet::new();
    for client in 0..N_STREAMS {
        let (proxy, bodies) = (proxy.clone(), Arc::clone(&bodies));
        clients.spawn(async move {
            let mut n_decisions = 0;
            while Instant::now() < end {
                let body = &bodies[(client + n_decisions * N_STREAMS) % bodies.len()];
                proxy.exchange(body).await;
                n_decisions += 1;
            }
            n_decisions
        });
    }
    let n_decisions: usize = clients.join_all().await.into_iter().sum();
    let (busy, elapsed) = (picker.cpu_seconds() - before, start.elapsed().as_secs_f64());
    Cost { decisions: u32::try_from(n_decisions).map_or(0.0, f64::from), busy, elapsed }
}

/// Sends requests at a constant rate, even if earlier ones are not answered.
async fn at_rate(picker: &Picker, n_bytes: usize, rate: u32) {
    let bodies = bodies(n_bytes);
    let proxy = Proxy::connect(picker.grpc, Way::Past).await;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    let mut requests = JoinSet::new();
    let n_requests = rate * u32::try_from(RUN.as_secs()).unwrap_or(1);
    for idx in 0..n_requests {
        ticks.tick().await;
        let (proxy, bodies) = (proxy.clone(), Arc::clone(&bodies));
        requests.spawn(async move { proxy.exchange(&bodies[idx as usize % bodies.len()]).await });
    }
    let mut latencies = requests.join_all().await;
    latencies.sort();
    let at = |share: f64| {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a position in the list")]
        let idx = (latencies.len() as f64 * share) as usize;
        latencies[idx.min(latencies.len() - 1)].as_secs_f64() * 1e3
    };
    println!(
        "{n_bytes} bytes at {rate} per second: from the end of the body to the pick p50 {:.2} ms, p99 {:.2} ms",
        at(0.5),
        at(0.99)
    );
}

async fn idle(picker: &Picker) {
    let share = idle_share(picker, RUN * 2).await;
    println!(
        "idle with {N_IDLE_PODS} pods: {:.1} % of a core, {:.0} MiB",
        share * 100.0,
        picker.memory_mib()
    );
}

/// Share of a core that the picker needs without requests.
async fn idle_share(picker: &Picker, time: Duration) -> f64 {
    // The first scrapes take longer.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (before, start) = (picker.cpu_seconds(), Instant::now());
    tokio::time::sleep(time).await;
    (picker.cpu_seconds() - before) / start.elapsed().as_secs_f64()
}

/// 512 chats that share their beginnings, as conversations do.
fn bodies(n_bytes: usize) -> Arc<Vec<Bytes>> {
    let body = |idx: usize| {
        let mut text = String::from(r#"{"model":"m","messages":["#);
        for turn in 0.. {
            let role = if turn % 2 == 0 { "user" } else { "assistant" };
            // Conversations differ after the first turn.
            let own = if turn == 0 { idx % 8 } else { idx };
            let content = format!("turn {turn} of conversation {own}: {}", "word ".repeat(30));
            let message = format!(r#"{{"role":"{role}","content":"{content}"}}"#);
            if text.len() + message.len() + 2 > n_bytes {
                break;
            }
            text.extend((turn > 0).then_some(','));
            text += &message;
        }
        Bytes::from(text + "]}")
    };
    Arc::new((0..512).map(body).collect())
}

/// Servers that answer every request with the page, or with the metrics that the request asks for.
async fn start_pods(n_pods: usize) -> (Vec<SocketAddr>, JoinSet<()>) {
    let answer = |page: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{page}", page.len());
    let is_wanted = |line: &&str| WANTED.iter().any(|name| line.contains(name));
    let filtered = METRICS.lines().filter(is_wanted).fold(String::new(), |page, line| page + line + "\n");
    let pages: Arc<[String; 2]> = [answer(METRICS), answer(&filtered)].into();
    let (mut addresses, mut tasks) = (Vec::new(), JoinSet::new());
    for _ in 0..n_pods {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        addresses.push(listener.local_addr().expect("it is bound"));
        let pages = Arc::clone(&pages);
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let pages = Arc::clone(&pages);
                tokio::spawn(async move {
                    let mut request = [0; 1024];
                    while stream.read(&mut request).await.is_ok_and(|n_bytes| n_bytes > 0) {
                        let page = &pages[usize::from(request.starts_with(b"GET /metrics/?"))];
                        if stream.write_all(page.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
    }
    (addresses, tasks)
}

impl Picker {
    fn start(pods: &[SocketAddr]) -> Self {
        let dir = TempDir::new().expect("there is a temporary directory");
        let (pool, ports) = (dir.path().join("pool.yaml"), dir.path().join("ports.json"));
        std::fs::write(&pool, POOL).expect("the file can be written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_epp"));
        command.args([
            "--grpc-port",
            "0",
            "--health-port",
            "0",
            "--metrics-port",
            "0",
            "--log-level",
            "warn",
        ]);
        command.arg("--pool-file").arg(&pool).arg("--port-file").arg(&ports);
        command.args(pods.iter().flat_map(|pod| ["--endpoint".to_owned(), pod.to_string()]));
        Self::spawn(command, dir, &ports)
    }

    /// Starts this program as a server that decides nothing and sends this pick.
    fn no_op(pick: &[u8]) -> Self {
        let dir = TempDir::new().expect("there is a temporary directory");
        let (recorded, ports) = (dir.path().join("pick"), dir.path().join("ports.json"));
        std::fs::write(&recorded, pick).expect("the file can be written");
        let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
        command.arg(NO_OP).arg(&recorded).arg(&ports);
        Self::spawn(command, dir, &ports)
    }

    fn spawn(mut command: Command, dir: TempDir, ports: &Path) -> Self {
        let child = command.stdout(Stdio::null()).spawn().expect("the server starts");
        let text = loop {
            match std::fs::read_to_string(ports) {
                Ok(text) => break text,
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let ports: serde_json::Value = serde_json::from_str(&text).expect("the ports are JSON");
        let grpc = ports["grpc"].as_str().and_then(|address| address.parse().ok()).expect("an address");
        Self { child, grpc, _dir: dir }
    }

    /// User and system time of all threads since the start.
    fn cpu_seconds(&self) -> f64 {
        /// `getconf CLK_TCK` on Linux.
        const TICKS_PER_SECOND: f64 = 100.0;
        let stat = self.proc_file("stat");
        // Fields after the name in parentheses: state is field 3, the times are 14 and 15.
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let ticks = fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok());
        ticks.sum::<f64>() / TICKS_PER_SECOND
    }

    fn memory_mib(&self) -> f64 {
        let status = self.proc_file("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
        kib.unwrap_or_default() / 1024.0
    }

    /// A file of the process in /proc; empty if it does not exist.
    fn proc_file(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap_or_default()
    }
}

impl Drop for Picker {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _reaped = self.child.wait();
    }
}
