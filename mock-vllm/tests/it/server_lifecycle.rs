//! Disconnects, the request log, and metrics over a request's life.

use crate::server_fixtures::{TestPod, start};
use crate::tutorial::{ROUND1, round2_bash};
use serde_json::Value;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use vllm_engine::engine::EngineStats;

/// Timeout, far longer than anything here takes: it bounds a failing test and is not an expectation.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// 7,000 tokens at 38 ms take 27 wall seconds at this scale, so that a test sees the middle of it.
pub(crate) const LONG: &str = "--time-scale 10";

pub(crate) async fn wait_for(pod: &TestPod, condition: impl Fn(&EngineStats) -> bool) -> EngineStats {
    let wait = async {
        loop {
            let gauges = pod.pod.metrics.lock().gauges();
            if condition(&gauges) {
                return gauges;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the engine gets there")
}

pub(crate) async fn open(pod: &TestPod, stream: bool) -> TcpStream {
    ask(pod, "hi", stream).await
}

async fn ask(pod: &TestPod, content: &str, stream: bool) -> TcpStream {
    let body = format!(
        r#"{{"messages":[{{"role":"user","content":"{content}"}}],"max_tokens":7000,"ignore_eos":true,"stream":{stream}}}"#
    );
    let mut socket = TcpStream::connect(pod.address).await.unwrap();
    // Two chunks, like a gateway sends a body that it streams.
    let (first, second) = body.split_at(10);
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\n\r\n{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
        first.len(),
        second.len()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    socket
}

/// Reads until `n` tokens have arrived.
pub(crate) async fn read_tokens(socket: &mut TcpStream, n: usize) {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    while text.matches("\"delta\":{\"content\"").count() < n {
        let n_read = tokio::time::timeout(PATIENCE, socket.read(&mut buffer)).await.unwrap().unwrap();
        assert!(n_read > 0, "the pod closed the connection: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..n_read]));
    }
}

#[tokio::test]
async fn a_client_that_goes_frees_its_blocks_and_one_that_stays_keeps_them() {
    // 7,000 tokens take over two minutes.
    let pod = start("--time-scale 2 --max-model-len 30000").await;
    let mut stays = open(&pod, true).await;
    read_tokens(&mut stays, 1).await;
    let alone = wait_for(&pod, |gauges| gauges.running == 1).await;
    // The prompt alone has over 600 blocks. The other request needs up to 440 more, however long the test takes.
    let mut goes = ask(&pod, &"hi ".repeat(10_000), true).await;
    read_tokens(&mut goes, 3).await;
    let both = wait_for(&pod, |gauges| gauges.running == 2).await;
    assert!(both.free_blocks + 600 < alone.free_blocks, "{both:?} {alone:?}");
    // While the client is connected and reads, nothing is freed.
    read_tokens(&mut stays, 5).await;
    assert_eq!(pod.pod.metrics.lock().gauges().running, 2);
    drop(goes);
    let after = wait_for(&pod, |gauges| gauges.running == 1).await;
    assert!(after.free_blocks > both.free_blocks);
    read_tokens(&mut stays, 5).await;
    assert_eq!(pod.pod.metrics.lock().gauges().running, 1);
    // vLLM's API server forgets a request whose client left, before it could count it.
    let aborted =
        r#"vllm:request_success_total{engine="0",finished_reason="abort",model_name="/model/qwen"} 0.0"#;
    assert!(pod.get("/metrics").await.body.contains(aborted));
}

#[tokio::test]
async fn a_client_that_goes_before_a_plain_answer_frees_its_blocks() {
    let pod = start(LONG).await;
    let socket = open(&pod, false).await;
    let held = wait_for(&pod, |gauges| gauges.running == 1).await;
    assert!(held.kv_usage > 0.0);
    drop(socket);
    let after = wait_for(&pod, |gauges| gauges.running == 0).await;
    assert_eq!(after.kv_usage, 0.0);
}

#[tokio::test]
async fn every_request_leaves_one_line_before_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("requests.jsonl");
    let pod = start(&format!("--pod-name qwen-0 --request-log {}", path.display())).await;
    let lines = || -> Vec<Value> {
        let text = std::fs::read_to_string(&path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let answer = pod.post("/v1/chat/completions", ROUND1).await;
    let id = serde_json::from_str::<Value>(answer.frames()[0]).unwrap()["id"].as_str().unwrap().to_owned();
    assert_eq!(lines().len(), 1);
    pod.post("/v1/chat/completions", round2_bash()).await;
    pod.post("/v1/completions", r#"{"model":"nope","prompt":"x"}"#).await;
    let lines = lines();
    let [first, second, refused] = lines.as_slice() else { panic!("{lines:?}") };
    assert_eq!(first["pod"], "qwen-0");
    assert_eq!(format!("chatcmpl-{}", first["request_id"].as_str().unwrap()), id);
    assert_eq!((&first["status"], &first["finish_reason"]), (&200.into(), &"length".into()));
    assert_eq!((&second["prompt_tokens"], &second["cached_tokens"]), (&228.into(), &128.into()));
    assert_eq!((&second["completion_tokens"], &second["stream"]), (&3.into(), &true.into()));
    let ttft = |line: &Value| line["ttft_ms"].as_f64().unwrap();
    assert!(ttft(first) < first["e2e_ms"].as_f64().unwrap());
    assert_eq!((&refused["status"], &refused["finish_reason"]), (&404.into(), &Value::Null));
    assert_eq!(refused["endpoint"], "/v1/completions");
}

#[tokio::test]
async fn an_aborted_request_is_logged_as_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("requests.jsonl");
    let pod = start(&format!("{LONG} --request-log {}", path.display())).await;
    let mut socket = open(&pod, true).await;
    read_tokens(&mut socket, 2).await;
    drop(socket);
    wait_for(&pod, |gauges| gauges.running == 0).await;
    let text = std::fs::read_to_string(&path).unwrap();
    let line: Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!((&line["status"], &line["finish_reason"]), (&200.into(), &"abort".into()));
    assert!((2..7000).contains(&line["completion_tokens"].as_u64().unwrap()));
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let pod = start("").await;
    assert_eq!(pod.metric("vllm:prefix_cache_queries_total").await, 0.0);
    pod.post("/v1/chat/completions", ROUND1).await;
    pod.post("/v1/chat/completions", round2_bash()).await;
    let expected = [
        ("vllm:prefix_cache_queries_total", 355.0),
        ("vllm:prefix_cache_hits_total", 128.0),
        ("vllm:prompt_tokens_total", 355.0),
        ("vllm:prompt_tokens_cached_total", 128.0),
        ("vllm:generation_tokens_total", 27.0),
        ("vllm:time_to_first_token_seconds_count", 2.0),
        ("vllm:inter_token_latency_seconds_count", 25.0),
        ("vllm:e2e_request_latency_seconds_count", 2.0),
        ("vllm:request_prompt_tokens_sum", 355.0),
        ("vllm:request_prefill_kv_computed_tokens_sum", 227.0),
        ("vllm:request_params_max_tokens_sum", 27.0),
        ("vllm:iteration_tokens_total_sum", 355.0 - 128.0 + 27.0),
        ("vllm:num_requests_running", 0.0),
        ("vllm:kv_cache_usage_perc", 0.0),
    ];
    for (name, value) in expected {
        assert_eq!(pod.metric(name).await, value, "{name}");
    }
    let text = pod.get("/metrics").await.body;
    for reason in ["stop", "abort", "error", "repetition"] {
        let series = format!(
            r#"vllm:request_success_total{{engine="0",finished_reason="{reason}",model_name="/model/qwen"}} 0.0"#
        );
        assert!(text.contains(&series), "{series}");
    }
    let config = text.lines().find(|line| line.starts_with("vllm:cache_config_info{")).unwrap();
    for label in [r#"block_size="16""#, r#"enable_prefix_caching="True""#, r#"num_gpu_blocks="6226""#] {
        assert!(config.contains(label), "{config}");
    }
    assert!(config.ends_with(" 1.0"));
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_start_time_tells_a_restart_and_the_process_is_measured() {
    let plain = async |pod: &crate::server_fixtures::TestPod, name: &str| -> f64 {
        let text = pod.get("/metrics").await.body;
        let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).unwrap();
        value.parse().unwrap()
    };
    let first = start("").await;
    let started = plain(&first, "process_start_time_seconds").await;
    assert_eq!(started, plain(&first, "process_start_time_seconds").await, "a pod that goes on keeps it");
    let second = start("").await;
    assert!(plain(&second, "process_start_time_seconds").await > started);
    assert!(plain(&first, "process_resident_memory_bytes").await > 1e6);
    assert!(plain(&first, "process_open_fds").await >= 3.0);
}
