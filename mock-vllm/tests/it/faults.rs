//! Tests each fault through a real socket, beside the same request without it; also the live endpoint and the scope of
//! a header.

use crate::server_fixtures::{TestPod, is_silent, start};
use crate::server_lifecycle::{PATIENCE, wait_for};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const JSON: (&str, &str) = ("content-type", "application/json");
const FAULT: &str = "x-mock-vllm-fault";

/// Bytes that arrived on a connection, and how it ended.
struct Wire {
    text: String,
    end: io::Result<()>,
}

/// Sends one request on a connection of its own and reads to its end.
async fn send(address: SocketAddr, head: &str, body: &str) -> Wire {
    let mut socket = TcpStream::connect(address).await.unwrap();
    write(&mut socket, head, body).await;
    read_to_end(&mut socket).await
}

async fn write(socket: &mut TcpStream, head: &str, body: &str) {
    let request = format!(
        "{head}host: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
}

async fn read_to_end(socket: &mut TcpStream) -> Wire {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(PATIENCE, socket.read_to_end(&mut bytes)).await.expect("it ends");
    Wire { text: String::from_utf8(bytes).unwrap(), end: read.map(|_n_bytes| ()) }
}

/// Sends a completion of 20 tokens with these faults.
async fn complete(pod: &TestPod, stream: bool, faults: &str) -> Wire {
    let header = if faults.is_empty() { String::new() } else { format!("{FAULT}: {faults}\r\n") };
    let body = format!(r#"{{"prompt":"one two three","max_tokens":20,"ignore_eos":true,"stream":{stream}}}"#);
    send(pod.address, &format!("POST /v1/completions HTTP/1.1\r\n{header}"), &body).await
}

async fn set(pod: &TestPod, faults: Value) -> Value {
    let answer = pod.post("/debug/faults", json!({"faults": faults}).to_string()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    answer.json()
}

async fn clear(pod: &TestPod) {
    let answer = pod.send(Method::DELETE, "/debug/faults", &[], "").await;
    assert_eq!((answer.status, &answer.json()["faults"]), (StatusCode::OK, &json!([])));
}

/// Returns the status of a completion.
async fn status(pod: &TestPod) -> u16 {
    pod.post("/v1/completions", r#"{"prompt":"x","max_tokens":1}"#).await.status.as_u16()
}

// === impl Wire ===

impl Wire {
    fn n_tokens(&self) -> usize {
        self.text.matches("\"text\":").count()
    }

    fn was_reset(&self) -> bool {
        self.end.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset)
    }

    /// Returns whether it is a whole stream, or a plain answer of the declared length.
    fn is_whole(&self) -> bool {
        if self.text.contains("transfer-encoding: chunked") {
            return self.end.is_ok() && self.text.ends_with("0\r\n\r\n");
        }
        self.end.is_ok() && self.body_excess() == 0
    }

    fn body(&self) -> &str {
        self.text.split_once("\r\n\r\n").unwrap().1
    }

    /// Counts the bytes of the body beyond the declared ones.
    fn body_excess(&self) -> i64 {
        let declared = self.text.split("content-length: ").nth(1).unwrap_or_else(|| panic!("{}", self.text));
        let declared: i64 = declared.split("\r\n").next().unwrap().parse().unwrap();
        i64::try_from(self.body().len()).unwrap() - declared
    }
}

#[tokio::test]
async fn a_stream_is_reset_after_its_tokens() {
    let pod = start("").await;
    let cut = complete(&pod, true, "reset:tokens=5").await;
    assert!(cut.was_reset(), "{:?}", cut.end);
    assert_eq!(cut.n_tokens(), 5);
    assert!(cut.text.contains("x-mock-vllm-fault: reset:tokens=5\r\n"), "{}", cut.text);
    let whole = complete(&pod, true, "").await;
    assert!(whole.is_whole() && !whole.text.contains(FAULT));
    assert_eq!(whole.n_tokens(), 20);
}

#[tokio::test]
async fn a_reset_before_any_token_leaves_the_head() {
    let pod = start("").await;
    let cut = complete(&pod, true, "reset").await;
    assert!(
        cut.was_reset() && cut.text.starts_with("HTTP/1.1 200 OK") && cut.n_tokens() == 0,
        "{}",
        cut.text
    );
    let plain = complete(&pod, false, "reset").await;
    assert!(plain.was_reset() && plain.text.is_empty(), "{}", plain.text);
    let half = complete(&pod, false, "reset:tokens=1").await;
    assert!(
        half.was_reset() && half.body_excess() < 0 && half.body().starts_with("{\"id\""),
        "{}",
        half.text
    );
    assert!(complete(&pod, false, "").await.is_whole());
}

#[tokio::test]
async fn a_truncated_stream_has_no_end_and_no_reset() {
    let pod = start("").await;
    let cut = complete(&pod, true, "truncate:tokens=5").await;
    assert!(cut.end.is_ok(), "closed in order: {:?}", cut.end);
    assert_eq!(cut.n_tokens(), 5);
    assert!(!cut.is_whole(), "{}", cut.text);
    let plain = complete(&pod, false, "truncate:tokens=1").await;
    assert!(plain.end.is_ok() && plain.body_excess() < 0, "{}", plain.text);
}

#[tokio::test]
async fn a_stalled_stream_says_nothing_more_while_others_end() {
    let pod = start("").await;
    let mut socket = TcpStream::connect(pod.address).await.unwrap();
    let body = r#"{"prompt":"one two three","max_tokens":20,"ignore_eos":true,"stream":true}"#;
    let head = format!("POST /v1/completions HTTP/1.1\r\n{FAULT}: stall:tokens=2\r\n");
    write(&mut socket, &head, body).await;
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while text.matches("\"text\":").count() < 2 {
        let n_read = tokio::time::timeout(PATIENCE, socket.read(&mut buffer)).await.unwrap().unwrap();
        text.push_str(&String::from_utf8_lossy(&buffer[..n_read]));
    }
    // The engine is done with it, and a later request gets its whole answer.
    wait_for(&pod, |gauges| gauges.running == 0).await;
    assert!(complete(&pod, true, "").await.is_whole());
    assert!(is_silent(&socket), "neither bytes nor an end");
    assert_eq!(text.matches("\"text\":").count(), 2);
}

/// 200 virtual seconds are 200 ms at this scale.
#[tokio::test]
async fn a_stall_with_a_delay_goes_on_after_it() {
    let pod = start("").await;
    for (stream, fault) in [(true, "stall:tokens=3,delay=200s"), (false, "stall:delay=200s")] {
        #[expect(clippy::disallowed_methods, reason = "a lower bound on wall time is what is tested")]
        let begin = Instant::now();
        let late = complete(&pod, stream, fault).await;
        assert!(begin.elapsed() >= Duration::from_millis(200));
        assert!(late.is_whole(), "{}", late.text);
    }
    let two = complete(&pod, true, "stall:tokens=3,delay=1s; reset:tokens=7").await;
    assert_eq!((two.n_tokens(), two.was_reset()), (7, true));
}

#[tokio::test]
async fn a_plain_answer_declares_another_length() {
    let pod = start("").await;
    let longer = complete(&pod, false, "content-length:off=10").await;
    assert_eq!(longer.body_excess(), -10);
    assert!(longer.body().ends_with('}'), "the body is all there");
    let shorter = complete(&pod, false, "content-length:off=-10").await;
    assert_eq!(shorter.body_excess(), 10, "what is too much follows: {}", shorter.text);
    assert!(shorter.body().ends_with('}'));
    assert_eq!(complete(&pod, false, "").await.body_excess(), 0);
    assert!(complete(&pod, true, "content-length:off=10").await.is_whole(), "streams have no length");
}

#[tokio::test]
async fn errors_have_vllms_shape_and_say_when_to_retry() {
    let pod = start("").await;
    let check = async |rule: &str, code: u16, kind: &str, message: &str, retry: Option<&str>| {
        set(&pod, json!([rule])).await;
        let answer = pod.post("/v1/completions", r#"{"prompt":"x"}"#).await;
        assert_eq!(answer.status.as_u16(), code);
        let expected = json!({"error": {"message": message, "type": kind, "param": null, "code": code}});
        assert_eq!(answer.json(), expected);
        assert_eq!(answer.headers.get("retry-after").map(|value| value.to_str().unwrap()), retry);
        assert_eq!(answer.headers[FAULT], rule);
    };
    let reason = "Too Many Requests";
    check("status:code=429", 429, reason, reason, Some("1")).await;
    let busy = "The engine is currently busy and cannot accept new requests. Please try again later or on a different \
                instance.";
    check("status:code=503,retry_after=2s 500ms", 503, "Service Unavailable", busy, Some("3")).await;
    let dead = "EngineCore encountered an issue. See stack trace (above) for the root cause.";
    check("status:code=500", 500, "InternalServerError", dead, None).await;
    set(&pod, json!(["status:code=401"])).await;
    assert_eq!(pod.post("/v1/completions", "{}").await.body, r#"{"error":"Unauthorized"}"#);
    clear(&pod).await;
    assert_eq!(status(&pod).await, 200);
}

#[tokio::test]
async fn errors_follow_the_version_and_can_be_cut_off_too() {
    let pod = start("--vllm-version 0.8").await;
    set(&pod, json!(["status:code=500"])).await;
    let answer = pod.post("/v1/completions", r#"{"prompt":"x"}"#).await;
    assert_eq!((&answer.json()["object"], &answer.json()["code"]), (&json!("error"), &json!(500)));
    let cut = complete(&pod, false, "truncate:tokens=1").await;
    assert!(cut.text.starts_with("HTTP/1.1 500") && cut.end.is_ok() && cut.body_excess() < 0, "{}", cut.text);
}

/// Returns which of 60 requests are hit.
async fn hits(seed: u64, rate: &str) -> Vec<bool> {
    let pod = start(&format!("--seed {seed} --fault status:code=500{rate}")).await;
    let mut hits = Vec::new();
    for _ in 0..60 {
        hits.push(status(&pod).await == 500);
    }
    let seen = pod.get("/debug/faults").await.json();
    assert_eq!(
        (&seen["faults"][0]["matched"], &seen["faults"][0]["hit"]),
        (&json!(60), &json!(hits.iter().filter(|hit| **hit).count()))
    );
    hits
}

#[tokio::test]
async fn rates_hit_the_same_requests_for_the_same_seed() {
    let first = hits(1, ",rate=0.3").await;
    assert_eq!(hits(1, ",rate=0.3").await, first);
    assert_ne!(hits(2, ",rate=0.3").await, first);
    let n_hits = first.iter().filter(|hit| **hit).count();
    assert!((8..30).contains(&n_hits), "{n_hits} of 60 at 0.3");
    // The generator promises the same in every process.
    let seen: String = first[..20].iter().map(|hit| if *hit { 'x' } else { '.' }).collect();
    assert_eq!(seen, ".x.xx..x....xx.x...x");
    assert!(hits(1, "").await.into_iter().all(|hit| hit));
}

#[tokio::test]
async fn rules_count_off_their_requests() {
    let pod = start("--fault status:code=500,after=2,times=3").await;
    let mut seen = Vec::new();
    for _ in 0..7 {
        seen.push(status(&pod).await);
    }
    assert_eq!(seen, [200, 200, 500, 500, 500, 200, 200]);
}

#[tokio::test]
async fn a_header_hits_its_own_request_only() {
    let pod = start("").await;
    let body = r#"{"prompt":"x","max_tokens":1}"#;
    let faulty = [JSON, (FAULT, "status:code=502")];
    assert_eq!(
        pod.send(Method::POST, "/v1/completions", &faulty, body).await.status,
        StatusCode::BAD_GATEWAY
    );
    assert_eq!(status(&pod).await, 200);
    assert_eq!(pod.get("/debug/faults").await.json()["faults"], json!([]));
    for (text, expected) in [("crash", "is a fault of the pod"), ("nonsense", "unknown variant `nonsense`")] {
        let answer = pod.send(Method::POST, "/v1/completions", &[JSON, (FAULT, text)], body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains(expected), "{}", answer.body);
    }
    assert_eq!(pod.send(Method::GET, "/health", &[(FAULT, "status:code=503")], "").await.status, 503);
    assert_eq!(pod.get("/health").await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_live_endpoint_changes_all_or_nothing() {
    let pod = start("").await;
    let seen = set(&pod, json!(["status:code=500", {"fault": "stall", "on": "metrics"}])).await;
    assert_eq!(
        seen["faults"][0],
        json!({"rule": "status:code=500", "fault": {"fault": "status", "code": 500}, "active": true, "matched": 0, "hit": 0})
    );
    assert_eq!(seen["faults"][1]["rule"], "stall:tokens=0,on=metrics");
    assert_eq!(status(&pod).await, 500);
    for (body, expected) in [
        (json!({"faults": ["refuse", "stal"]}), "unknown variant `stal`"),
        (json!({"faults": ["metrics-lie:metric=nope,value=1"]}), "/metrics has no `nope`"),
        (json!({"fault": []}), "unknown field `fault`"),
        (json!({"faults": [7]}), "`7` is not name:key=value"),
    ] {
        let answer = pod.post("/debug/faults", body.to_string()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains(expected), "{}", answer.body);
    }
    let still = pod.get("/debug/faults").await.json();
    assert_eq!((still["faults"].as_array().unwrap().len(), &still["faults"][0]["hit"]), (2, &json!(1)));
    clear(&pod).await;
    assert_eq!(status(&pod).await, 200);
}

#[tokio::test]
async fn a_refusing_pod_listens_again_when_it_is_told_to() {
    let pod = start("").await;
    let connect = async || TcpStream::connect(pod.address).await;
    assert!(connect().await.is_ok());
    // This client keeps its connection, so that it can still reach the pod.
    set(&pod, json!(["refuse"])).await;
    let is_refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    while !connect().await.is_err_and(is_refused) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(status(&pod).await, 200, "open connections stay");
    clear(&pod).await;
    while connect().await.is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(complete(&pod, false, "").await.is_whole());
}

/// 300 virtual seconds are 300 ms at this scale.
#[tokio::test]
async fn a_refusal_ends_by_itself() {
    let pod = start("--fault refuse:for=300s").await;
    let connect = async || TcpStream::connect(pod.address).await;
    let mut n_refused = 0;
    while let Err(error) = connect().await {
        // Connections that arrive while it closes are reset.
        n_refused += u32::from(error.kind() == io::ErrorKind::ConnectionRefused);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(n_refused > 0);
    assert!(complete(&pod, false, "").await.is_whole());
}

#[tokio::test]
async fn dropped_connections_are_reset_and_counted() {
    let pod = start("--fault drop:times=2").await;
    for _ in 0..2 {
        let mut socket = TcpStream::connect(pod.address).await.unwrap();
        // The reset may be faster than the request.
        let _reset = socket.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let wire = read_to_end(&mut socket).await;
        assert!(wire.end.is_err() && wire.text.is_empty());
    }
    assert!(complete(&pod, false, "").await.is_whole());
}

#[tokio::test]
async fn a_slow_start_answers_503_to_all_but_debug() {
    let pod = start("--fault slow-start:delay=300s").await;
    let codes = async || (pod.get("/health").await.status.as_u16(), status(&pod).await);
    assert_eq!(codes().await, (503, 503));
    assert_eq!(pod.get("/metrics").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(pod.get("/debug/faults").await.json()["faults"][0]["active"], true);
    while codes().await != (200, 200) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(pod.get("/debug/faults").await.json()["faults"][0]["active"], false);
}

#[tokio::test]
async fn health_and_metrics_fail_apart_from_the_api() {
    let pod = start("--fault status:code=503,on=health --fault status:code=500,on=metrics").await;
    assert_eq!(pod.get("/health").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(pod.get("/ping").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(pod.get("/metrics").await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(status(&pod).await, 200);
    set(&pod, json!(["stall:on=health", "truncate:tokens=1,on=metrics"])).await;
    let page = send(pod.address, "GET /metrics HTTP/1.1\r\n", "").await;
    assert!(page.end.is_ok() && page.body_excess() < 0);
    let mut socket = TcpStream::connect(pod.address).await.unwrap();
    write(&mut socket, "GET /health HTTP/1.1\r\n", "").await;
    assert!(complete(&pod, true, "").await.is_whole());
    assert!(is_silent(&socket), "health never answers");
    clear(&pod).await;
    assert_eq!(pod.get("/health").await.status, StatusCode::OK);
}

#[tokio::test]
async fn kv_pressure_takes_blocks_and_gives_them_back() {
    let pod = start("--num-gpu-blocks-override 1001").await;
    set(&pod, json!(["kv-pressure:share=0.9"])).await;
    let pressed = wait_for(&pod, |gauges| gauges.free_blocks == 100).await;
    assert!((pressed.kv_usage - 0.9).abs() < 1e-9, "{}", pressed.kv_usage);
    // 2,000 tokens need 125 blocks.
    let body = format!(r#"{{"prompt":{:?},"max_tokens":1}}"#, vec![785; 2_000]);
    let waits = pod.post("/v1/completions", body);
    let lift = async {
        wait_for(&pod, |gauges| gauges.waiting == 1).await;
        clear(&pod).await;
    };
    let (answer, ()) = tokio::join!(waits, lift);
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(wait_for(&pod, |gauges| gauges.running == 0).await.free_blocks, 1_000);
}

#[tokio::test]
async fn frozen_metrics_stay_and_thaw_to_the_truth() {
    let pod = start("").await;
    status(&pod).await;
    set(&pod, json!(["metrics-freeze"])).await;
    let prompt_tokens = async || pod.metric("vllm:prompt_tokens_total").await;
    assert_eq!(prompt_tokens().await, 1.0);
    status(&pod).await;
    assert_eq!(prompt_tokens().await, 1.0);
    let negotiated = pod.send(Method::GET, "/metrics/?name[]=vllm:prompt_tokens_total", &[], "").await;
    assert!(negotiated.body.contains("vllm:prompt_tokens_total{") && negotiated.body.contains("} 1.0"));
    clear(&pod).await;
    assert_eq!(prompt_tokens().await, 2.0);
}

#[tokio::test]
async fn metrics_freeze_at_their_moment_and_not_at_the_next_scrape() {
    let pod = start("").await;
    set(&pod, json!(["metrics-freeze"])).await;
    status(&pod).await;
    assert_eq!(pod.metric("vllm:prompt_tokens_total").await, 0.0);
    // Its time begins in 20 ms, or later on a busy machine; one try in a hundred is enough.
    for _ in 0..100 {
        clear(&pod).await;
        let before = pod.metric("vllm:prompt_tokens_total").await;
        set(&pod, json!(["metrics-freeze:from=20s"])).await;
        while pod.get("/debug/faults").await.json()["faults"][0]["active"] == false {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        status(&pod).await;
        if pod.metric("vllm:prompt_tokens_total").await == before {
            return;
        }
    }
    panic!("the page is that of the scrape");
}

#[tokio::test]
async fn metrics_lie_about_what_they_are_told_to() {
    let pod = start("").await;
    let lies = ["metrics-lie:metric=waiting,value=7", "metrics-lie:metric=kv_cache_usage,value=0.5"];
    set(&pod, json!(lies)).await;
    assert_eq!(pod.metric("vllm:num_requests_waiting").await, 7.0);
    assert_eq!(pod.metric("vllm:kv_cache_usage_perc").await, 0.5);
    assert_eq!(pod.metric("vllm:num_requests_running").await, 0.0, "the rest is true");
    let page = pod.get("/metrics").await.body;
    assert!(page.contains("# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{"));
    // Value at the end of a ramp of a virtual millisecond.
    set(&pod, json!(["metrics-lie:metric=vllm:num_requests_running,value=ramp:0:3:1ms"])).await;
    assert_eq!(pod.metric("vllm:num_requests_running").await, 3.0);
    clear(&pod).await;
    assert_eq!(pod.metric("vllm:num_requests_running").await, 0.0);
}

#[tokio::test]
async fn metrics_are_left_out_one_by_one_or_all() {
    let pod = start("").await;
    let has = async |name: &str| {
        let page = pod.get("/metrics").await.body;
        page.lines().any(|line| line.starts_with(name))
    };
    assert!(has("vllm:num_requests_waiting{").await);
    set(&pod, json!(["metrics-omit:metric=waiting"])).await;
    assert!(!has("vllm:num_requests_waiting{").await && has("vllm:num_requests_running{").await);
    set(&pod, json!(["metrics-omit"])).await;
    assert_eq!(pod.get("/metrics").await.body, "");
    clear(&pod).await;
    assert!(has("vllm:num_requests_waiting{").await);
}
