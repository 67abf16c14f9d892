//! The metrics port: its address, its pages while others are rendered, and the times that flags accept.

use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use assert_cmd::assert::Assert;
use assert_cmd::cargo::cargo_bin_cmd;
use epp::director::Director;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::fixtures::{Scenario, until};
use crate::records::director;

const POOL: &str = "\
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata: {name: p}
spec: {targetPortNumber: 8000, selector: {app: a}, extensionRef: {name: e}}
";
/// A pool with the same name as the scenario's, and no pods.
const NAMESAKE: &str = "\
---
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata: {name: vllm-qwen-pool, namespace: other}
spec: {targetPortNumber: 8000, selector: {app: other}, extensionRef: {name: e}}
";

/// A process that is killed when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The bound addresses of ext_proc and metrics.
fn addresses(flags: &[&str]) -> [IpAddr; 2] {
    let dir = TempDir::new().unwrap();
    let (pool, port_file) = (dir.path().join("pool.yaml"), dir.path().join("ports.json"));
    std::fs::write(&pool, POOL).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_epp"));
    command.args(["--grpc-port", "0", "--health-port", "0", "--metrics-port", "0", "--pool-file"]).arg(pool);
    command.arg("--port-file").arg(&port_file).args(flags).stderr(Stdio::null());
    let mut running = Running(command.spawn().unwrap());
    while !port_file.exists() {
        assert_eq!(running.0.try_wait().unwrap(), None);
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let ports: Value = serde_json::from_slice(&std::fs::read(&port_file).unwrap()).unwrap();
    ["grpc", "metrics"].map(|port| ports[port].as_str().unwrap().parse::<SocketAddr>().unwrap().ip())
}

#[test]
fn the_host_of_requests_does_not_open_the_metrics_port() {
    let [grpc, metrics] = addresses(&["--host", "0.0.0.0"]);
    assert!(grpc.is_unspecified() && metrics.is_loopback(), "{grpc} {metrics}");
    // Control: the metrics port has its own host flag.
    let [grpc, metrics] = addresses(&["--metrics-host", "0.0.0.0"]);
    assert!(grpc.is_loopback() && metrics.is_unspecified(), "{grpc} {metrics}");
}

/// Runs a picker whose pool file does not exist: it ends with 1 if the flags are valid, and with 2 if not.
fn run(flag: &str, time: &str) -> Assert {
    cargo_bin_cmd!("epp").args(["--pool-file", "/does/not/exist.yaml", flag, time]).assert()
}

#[test]
fn times_are_written_as_for_the_engines() {
    for time in ["50ms", "2s", "1m30s", "1m 30s", "2min", "1h"] {
        run("--scrape-interval", time).code(1);
    }
    run("--drain-delay", "0s").code(1);
    for time in ["0s", "50", "ms", "-1s", "soon", "99999999999999999999s"] {
        run("--scrape-interval", time).code(2);
    }
}

#[tokio::test]
async fn decisions_come_in_parts() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let (n_requests, mut answer) = (20, String::new());
    for _ in 0..n_requests {
        proxy.chat(r#"{"model":"/model/qwen","messages":[{"role":"user","content":"hello"}]}"#).await;
    }
    let mut stream = tokio::net::TcpStream::connect(picker.ports.metrics).await.unwrap();
    let request = "GET /debug/decisions HTTP/1.1\r\nhost: picker\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("\r\ntransfer-encoding: chunked\r\n"), "{answer}");
    assert_eq!(picker.decisions(0).await.len(), n_requests);
    assert_eq!(picker.decisions(15).await[0]["seq"], 16);
}

#[tokio::test]
async fn gauges_tell_namespaces_apart_and_go_with_their_pool() {
    let picker = Scenario::new(1).objects(NAMESAKE).start().await;
    let ready = async || -> Vec<String> {
        let metrics = picker.metrics().await;
        let pools = metrics.lines().filter_map(|line| line.strip_prefix("inference_pool_ready_pods"));
        pools.map(str::to_owned).collect()
    };
    let mut pools = ready().await;
    pools.sort();
    let [default, other] = ["default 1", "other 0"].map(|pool| {
        let (namespace, n_pods) = pool.split_once(' ').unwrap();
        format!(r#"{{name="vllm-qwen-pool",namespace="{namespace}"}} {n_pods}"#)
    });
    assert_eq!(pools, [default, other]);
    picker.remove_pools();
    until(async || ready().await.is_empty()).await;
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test stands in for the server")]
fn each_page_is_whole_while_others_are_made() {
    const N_PODS: u16 = 300;
    let page = |director: &Director| director.metrics().encode(&director.standing(Instant::now()));
    let many = director(N_PODS, 0);
    let n_pods = |page: &str| {
        page.lines().filter(|line| line.starts_with("inference_pool_per_pod_queue_size{")).count()
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10 {
                    assert_eq!(n_pods(&page(&many)), usize::from(N_PODS));
                }
            });
        }
    });
    // Control: pods that do not exist are not shown.
    let few = director(2, 0);
    assert_eq!(n_pods(&page(&few)), 2);
}
