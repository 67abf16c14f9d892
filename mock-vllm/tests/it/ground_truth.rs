//! The header of answers that reports the pod's real cache.

use crate::server_fixtures::{is_silent, start};
use crate::server_lifecycle::{PATIENCE, open, wait_for};
use crate::tutorial::{ROUND1, round2_bash};
use http::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const HEADER: &str = "x-mock-vllm-cache";

#[tokio::test]
async fn answers_tell_what_was_cached_when_they_were_admitted() {
    let pod = start("").await;
    let chat = async |body: String| {
        let answer = pod.post("/v1/chat/completions", body).await;
        answer.headers[HEADER].to_str().unwrap().to_owned()
    };
    let cold = "cached_tokens=0, cached_blocks=0, prompt_tokens=127, prompt_blocks=7";
    assert_eq!(chat(ROUND1.to_owned()).await, cold);
    let warm = "cached_tokens=128, cached_blocks=8, prompt_tokens=228, prompt_blocks=14";
    assert_eq!(chat(round2_bash()).await, warm);
    let streamed = r#""stream":true,"stream_options":{"include_usage":true}"#;
    let plain = round2_bash().replace(streamed, r#""stream":false"#);
    assert_ne!(plain, round2_bash());
    let again = "cached_tokens=224, cached_blocks=14, prompt_tokens=228, prompt_blocks=14";
    assert_eq!(chat(plain).await, again);
}

#[tokio::test]
async fn the_last_token_is_never_cached() {
    let pod = start("").await;
    let prompt = format!(r#"{{"prompt":{:?},"max_tokens":1}}"#, vec![785; 128]);
    for expected in ["cached_tokens=0, cached_blocks=0", "cached_tokens=112, cached_blocks=7"] {
        let answer = pod.post("/v1/completions", prompt.clone()).await;
        assert_eq!(
            answer.headers[HEADER].to_str().unwrap(),
            format!("{expected}, prompt_tokens=128, prompt_blocks=8")
        );
    }
}

#[tokio::test]
async fn what_is_never_admitted_tells_nothing() {
    let pod = start("").await;
    for body in [r#"{"prompt":"x","model":"nope"}"#, r#"{"prompt":"x","max_tokens":0}"#, "{"] {
        let answer = pod.post("/v1/completions", body).await;
        assert!(answer.status.is_client_error() && !answer.headers.contains_key(HEADER));
    }
}

/// The second request's head waits until the first one has gone, because there is one seat.
#[tokio::test]
async fn the_head_waits_for_admission() {
    let pod = start("--max-num-seqs 1 --time-scale 10").await;
    let first = open(&pod, true).await;
    wait_for(&pod, |gauges| gauges.running == 1).await;
    let mut second = open(&pod, true).await;
    wait_for(&pod, |gauges| gauges.waiting == 1).await;
    assert!(is_silent(&second), "no head while it waits");
    drop(first);
    let head = read_head(&mut second).await;
    assert!(head.contains("x-mock-vllm-cache: cached_tokens=16"), "{head}");
}

/// One step of 8,000 tokens takes 19 wall seconds at this scale; the test sees the first of them.
#[tokio::test]
async fn the_head_does_not_wait_for_the_first_token() {
    let pod = start("--time-scale 0.1 --max-num-batched-tokens 8192").await;
    let body = format!(r#"{{"prompt":{:?},"max_tokens":1,"stream":true}}"#, vec![785; 8_000]);
    let mut socket = TcpStream::connect(pod.address).await.unwrap();
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let head = read_head(&mut socket).await;
    assert!(head.contains("x-mock-vllm-cache: cached_tokens=0"), "{head}");
    assert!(head.ends_with("\r\n\r\n"), "nothing but the head: {head}");
}

/// Reads until a head is complete.
async fn read_head(socket: &mut TcpStream) -> String {
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    while !text.contains("\r\n\r\n") {
        let n_read = tokio::time::timeout(PATIENCE, socket.read(&mut buffer)).await.unwrap().unwrap();
        assert!(n_read > 0, "the pod closed the connection: {text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..n_read]));
    }
    text
}

/// The control is a pod with the mock's own endpoints, as they are by default.
#[tokio::test]
async fn a_pod_without_the_mocks_own_endpoints_answers_as_vllm_alone() {
    for (flags, has_own) in [("", true), ("--mock-endpoints=false", false)] {
        let pod = start(flags).await;
        let fault = [("content-type", "application/json"), ("x-mock-vllm-fault", "status:code=503")];
        let chat = pod.post("/v1/chat/completions", ROUND1).await;
        assert_eq!((chat.status.as_u16(), chat.headers.contains_key(HEADER)), (200, has_own), "{flags}");
        let spoiled = pod.send(Method::POST, "/v1/chat/completions", &fault, ROUND1).await;
        assert_eq!(spoiled.status.is_success(), !has_own, "{flags}: {}", spoiled.body);
        for path in ["/debug/cache", "/debug/faults"] {
            assert_eq!(pod.get(path).await.status.is_success(), has_own, "{flags}: {path}");
        }
        let lookup = pod.post("/debug/lookup", ROUND1).await.status;
        assert_eq!((lookup.is_success(), lookup.as_u16() == 404), (has_own, !has_own), "{flags}");
        let metrics = pod.get("/metrics").await.body;
        assert!(metrics.contains("vllm:prefix_cache_hits_total"), "vLLM has these: {metrics}");
    }
}

/// Faults of the command line stay; the answer does not name them.
#[tokio::test]
async fn faults_of_flags_need_no_endpoint() {
    let pod = start("--mock-endpoints=false --fault status:code=503").await;
    let answer = pod.post("/v1/chat/completions", ROUND1).await;
    assert_eq!(answer.status.as_u16(), 503, "{}", answer.body);
    assert!(!answer.headers.contains_key("x-mock-vllm-fault"), "{:?}", answer.headers);
}
