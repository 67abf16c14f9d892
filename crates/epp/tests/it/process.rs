//! The program: health, metrics, ports, drain, command line.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use assert_cmd::assert::Assert;
use assert_cmd::cargo::cargo_bin_cmd;
use epp::server::{Server, Shutdown};
use epp::tuning::Knob;
use predicates::prelude::PredicateBooleanExt as _;
use predicates::str::contains;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::fixtures::{Scenario, post, settings, until};

const POOL: &str = "\
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferencePool
metadata: {name: p}
spec: {targetPortNumber: 8000, selector: {app: a}, extensionRef: {name: e}}
";

fn epp(arguments: &[&str]) -> Assert {
    cargo_bin_cmd!("epp").args(arguments).assert()
}

/// Text that the program prints on standard output.
fn printed(arguments: &[&str]) -> String {
    String::from_utf8(epp(arguments).success().get_output().stdout.clone()).unwrap()
}

async fn health(picker: &crate::fixtures::Picker, service: &str) -> Result<ServingStatus, Code> {
    health_at(picker.ports.health, service).await
}

async fn health_at(address: std::net::SocketAddr, service: &str) -> Result<ServingStatus, Code> {
    let endpoint = tonic::transport::Endpoint::new(format!("http://{address}")).unwrap();
    let mut client = HealthClient::new(endpoint.connect().await.map_err(|_| Code::Unavailable)?);
    let request = HealthCheckRequest { service: service.to_owned() };
    let response = client.check(request).await.map_err(|status| status.code())?;
    Ok(response.into_inner().status())
}

#[tokio::test]
async fn health_answers_for_upstreams_names() {
    let picker = Scenario::new(1).start().await;
    until(async || health(&picker, "").await == Ok(ServingStatus::Serving)).await;
    for service in ["", "liveness", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor"] {
        assert_eq!(health(&picker, service).await, Ok(ServingStatus::Serving), "{service}");
    }
    assert_eq!(health(&picker, "other").await, Err(Code::NotFound));
    // A proxy checks the health on the port of its streams.
    let grpc = health_at(picker.ports.grpc, "envoy.service.ext_proc.v3.ExternalProcessor").await;
    assert_eq!(grpc, Ok(ServingStatus::Serving));
}

#[tokio::test]
async fn readiness_is_lost_with_the_last_pool() {
    let picker = Scenario::new(1).start().await;
    until(async || health(&picker, "readiness").await == Ok(ServingStatus::Serving)).await;
    assert_eq!(crate::fixtures::get(picker.ports.metrics, "/readyz").await, "ok\n");
    picker.remove_pools();
    until(async || health(&picker, "readiness").await == Ok(ServingStatus::NotServing)).await;
    assert_eq!(health(&picker, "liveness").await, Ok(ServingStatus::Serving));
}

#[tokio::test]
async fn a_picker_is_ready_when_it_has_asked_its_endpoints() {
    let hung = TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = TempDir::new().unwrap();
    let (pool, endpoints) = (dir.path().join("pool.yaml"), dir.path().join("endpoints.yaml"));
    std::fs::write(&pool, POOL).unwrap();
    let address = hung.local_addr().unwrap();
    let endpoint = format!("- {{name: a-0, address: {address}, labels: {{app: a}}, ready: true}}\n");
    std::fs::write(&endpoints, endpoint).unwrap();
    let server = Server::bind(settings(&pool, &endpoints, 1000)).await.unwrap();
    let (ports, shutdown) = (server.ports().unwrap(), Shutdown::default());
    let mut tasks = JoinSet::new();
    tasks.spawn(server.run(shutdown.clone()));
    until(async || health_at(ports.health, "liveness").await == Ok(ServingStatus::Serving)).await;
    assert_eq!(health_at(ports.health, "readiness").await, Ok(ServingStatus::NotServing));
    // The picker gives up on a hanging pod after half a second.
    until(async || health_at(ports.health, "readiness").await == Ok(ServingStatus::Serving)).await;
    shutdown.abort.cancel();
    tasks.join_next().await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn streams_are_taken_during_the_drain_delay() {
    let mut picker = Scenario::new(1).drain_delay(Duration::from_millis(300)).start().await;
    until(async || health(&picker, "readiness").await == Ok(ServingStatus::Serving)).await;
    picker.shutdown.drain.cancel();
    until(async || health(&picker, "readiness").await == Ok(ServingStatus::NotServing)).await;
    let proxy = picker.proxy().await;
    let body = r#"{"model":"/model/qwen","prompt":"hello"}"#;
    let answer = proxy.full_duplex(&post("/v1/completions"), &[body.as_bytes(), b""]).await;
    assert_eq!(answer.body, body.as_bytes());
    drop(proxy);
    picker.server.join_next().await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn metrics_have_upstreams_names() {
    let picker = Scenario::new(2).start().await;
    let proxy = picker.proxy().await;
    picker.pods[0].set_load(4, 1, 0.5);
    picker.wait_for_scrapes().await;
    let body = r#"{"model":"/model/qwen","prompt":"hello"}"#;
    proxy.full_duplex(&post("/v1/completions"), &[body.as_bytes(), b""]).await;
    proxy.full_duplex(&post("/v1/completions"), &[body.replace("/model/qwen", "x").as_bytes(), b""]).await;
    let metrics = picker.metrics().await;
    for expected in [
        r#"inference_model_request_total{model_name="/model/qwen",target_model_name="/model/qwen"} 1"#,
        r#"inference_model_request_error_total{model_name="unlisted",target_model_name="unlisted",error_code="404"} 1"#,
        r#"inference_pool_ready_pods{name="vllm-qwen-pool",namespace="default"} 2"#,
        r#"inference_pool_average_queue_size{name="vllm-qwen-pool",namespace="default"} 2.0"#,
        r#"inference_pool_average_kv_cache_utilization{name="vllm-qwen-pool",namespace="default"} 0.25"#,
        r#"inference_pool_per_pod_queue_size{name="vllm-qwen-pool",namespace="default",model_server_pod="qwen-0"} 4"#,
        "inference_extension_scheduler_e2e_duration_seconds_count 2",
        "inference_extension_prefix_indexer_hit_ratio_count 1",
        r#"epp_refusals_total{outcome="model_not_found"} 1"#,
    ] {
        assert!(metrics.lines().any(|line| line == expected), "{expected} is not in\n{metrics}");
    }
    if cfg!(target_os = "linux") {
        let value =
            |name: &str| metrics.lines().find_map(|line| line.strip_prefix(name)?.parse::<f64>().ok());
        assert!(value("process_resident_memory_bytes ").unwrap() > 1e6, "{metrics}");
        assert!(
            value("process_cpu_seconds_total ").unwrap() > 0.0 && value("process_open_fds ").unwrap() > 5.0
        );
    }
    assert_eq!(crate::fixtures::get(picker.ports.metrics, "/healthz").await, "ok\n");
}

#[tokio::test]
async fn a_drain_lets_open_streams_end_and_takes_no_new_ones() {
    let mut picker = Scenario::new(1).start().await;
    let body = r#"{"model":"/model/qwen","prompt":"hello"}"#;
    let mut call = picker.proxy().await.open().await;
    call.send_headers(None, &post("/v1/completions"), None, false).await;
    let open = async || picker.metrics().await.lines().any(|line| line == "epp_streams 1");
    until(open).await;
    picker.shutdown.drain.cancel();
    until(async || health(&picker, "readiness").await == Ok(ServingStatus::NotServing)).await;
    assert_eq!(health(&picker, "liveness").await, Ok(ServingStatus::Serving));
    call.send_body(body.as_bytes(), true).await;
    assert_eq!(call.full_duplex_answer().await.body, body.as_bytes());
    call.finish_response().await;
    picker.server.join_next().await.unwrap().unwrap().unwrap();
    assert!(std::net::TcpStream::connect(picker.ports.grpc).is_err());
}

#[tokio::test]
async fn an_abort_ends_at_once_with_streams_open() {
    let mut picker = Scenario::new(1).start().await;
    let mut call = picker.proxy().await.open().await;
    call.send_headers(None, &post("/v1/completions"), None, false).await;
    until(async || picker.metrics().await.lines().any(|line| line == "epp_streams 1")).await;
    picker.shutdown.abort.cancel();
    picker.server.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(call.try_next().await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_taken_port_is_named_with_its_flag() {
    let dir = TempDir::new().unwrap();
    let (pool, endpoints) = (dir.path().join("pool.yaml"), dir.path().join("endpoints.yaml"));
    std::fs::write(&pool, POOL).unwrap();
    std::fs::write(&endpoints, "[]").unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let settings = settings(&pool, &endpoints, 1000);
    let error =
        Server::bind(epp::server::Settings { health_port: port, ..settings.clone() }).await.unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains(&format!("127.0.0.1:{port}")) && text.contains("--health-port"), "{text}");
    assert!(Server::bind(settings).await.is_ok());
}

#[test]
fn usage_errors_say_what_is_wrong() {
    let cases: [(&[&str], &str); 7] = [
        (&[], "--pool-file <FILE>"),
        (&["--pool-file", "x", "--threshold", "1.5"], "expected a number from 0 to 1"),
        (&["--pool-file", "x", "--spill-tokens=-1"], "expected a number from 0 to 1000000"),
        (&["--pool-file", "x", "--stall", "much"], "expected a number from 0 to 100"),
        (&["--pool-file", "x", "--scrape-interval", "50"], "as in 50ms"),
        (&["--pool-file", "x", "--pool", "name"], "expected NAMESPACE/NAME"),
        (&["--pool-file", "x", "--endpoint", "localhost:1"], "invalid socket address"),
    ];
    for (arguments, expected) in cases {
        epp(arguments).code(2).stderr(contains(expected));
    }
}

#[test]
fn the_short_help_has_the_flags_that_people_use_and_the_long_help_has_all() {
    let (short, long) = (printed(&["-h"]), printed(&["--help"]));
    for flag in
        ["--pool-file", "--endpoint ", "--grpc-port", "--metrics-host", "--policy-file", "--log-level"]
    {
        assert!(short.contains(flag) && long.contains(flag), "{flag}");
    }
    for flag in ["--body-idle-timeout", "--kv-threshold", "--cert-out", "--compat", "--saturation-kv-usage"] {
        assert!(!short.contains(flag) && long.contains(flag), "{flag}");
    }
}

#[test]
fn the_help_of_a_policy_value_names_the_built_in_value() {
    let long = printed(&["--help"]);
    let flags = ["threshold", "spill-tokens", "queue-tokens", "stall", "kv-tokens", "kv-threshold"];
    for (knob, flag) in Knob::ALL.into_iter().zip(flags) {
        let (_, text) = long.split_once(&format!("--{flag} <")).unwrap();
        let (text, _) = text.split_once(']').unwrap();
        assert!(text.ends_with(&format!("[default: {}", knob.built_in())), "{flag}: {text}");
    }
}

#[test]
fn a_file_that_is_not_there_is_an_error_before_any_port_is_bound() {
    epp(&["--pool-file", "/does/not/exist.yaml", "--grpc-port", "1"])
        .code(1)
        .stderr(contains("/does/not/exist.yaml").and(contains("--grpc-port").not()));
}

#[test]
fn the_version_is_told_with_the_revision() {
    let said = printed(&["--version"]);
    assert_eq!(said, format!("epp {}\n", env!("PROGRAM_VERSION")));
    assert!(said.starts_with(concat!("epp ", env!("CARGO_PKG_VERSION"))), "{said}");
    let git = Command::new("git").args(["ls-files", "--error-unmatch", "Cargo.toml"]).output();
    let has_history = git.is_ok_and(|output| output.status.success());
    let is_hash = |word: &str| word.len() >= 10 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let names_revision = said.split(|c: char| !c.is_ascii_alphanumeric()).any(is_hash);
    assert_eq!(names_revision, has_history, "{said}");
}
