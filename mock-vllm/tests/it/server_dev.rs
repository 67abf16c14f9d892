//! Sleep, pause, reset of the cache, and the limits of the queue.

use crate::server_fixtures::{Answer, TestPod, start};
use http::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;

const DEV: &str = "--server-dev-mode --enable-sleep-mode --enable-prompt-tokens-details";
/// Timeout, far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn completion(max_tokens: u32) -> String {
    json!({"prompt": vec![785; 100], "max_tokens": max_tokens, "ignore_eos": true}).to_string()
}

async fn cached(pod: &TestPod) -> Option<u64> {
    let answer = pod.post("/v1/completions", completion(2)).await.json();
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64()
}

async fn until_running(pod: &TestPod, n: usize) {
    let wait = async {
        while pod.pod.metrics.lock().gauges().running != n {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the requests run");
}

fn finish(answer: &Answer) -> (Value, Value) {
    let answer = answer.json();
    (answer["choices"][0]["finish_reason"].clone(), answer["usage"]["completion_tokens"].clone())
}

#[tokio::test]
async fn they_are_there_in_development_only() {
    let paths = ["/reset_prefix_cache", "/sleep", "/wake_up", "/pause", "/resume", "/abort_requests"];
    let (plain, dev) = (start("").await, start(DEV).await);
    let without_sleep = start("--server-dev-mode").await;
    for path in paths {
        assert_eq!(plain.post(path, "").await.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(dev.post(path, "").await.status, StatusCode::OK, "{path}");
    }
    assert_eq!(without_sleep.post("/sleep", "").await.status, StatusCode::NOT_FOUND);
    assert_eq!(without_sleep.post("/pause", "").await.status, StatusCode::OK);
    assert_eq!(dev.get("/server_info").await.json()["vllm_config"]["cache_config"]["block_size"], 16);
}

#[tokio::test]
async fn a_reset_cache_has_forgotten_everything() {
    let pod = start(DEV).await;
    assert_eq!(cached(&pod).await, Some(0));
    assert_eq!(cached(&pod).await, Some(96));
    assert_eq!(pod.post("/reset_prefix_cache", "").await.json(), json!({"success": true}));
    assert_eq!(cached(&pod).await, Some(0));
    let before = start(&format!("{DEV} --vllm-version 0.11")).await;
    assert_eq!(before.post("/reset_prefix_cache", "").await.body, "");
}

#[tokio::test]
async fn blocks_that_are_held_are_not_forgotten_unless_running_requests_start_over() {
    let pod = start(&format!("{DEV} --time-scale 20")).await;
    let (answer, ()) = tokio::join!(pod.post("/v1/completions", completion(40)), async {
        until_running(&pod, 1).await;
        assert_eq!(pod.post("/reset_prefix_cache", "").await.json(), json!({"success": false}));
        let reset = pod.post("/reset_prefix_cache?reset_running_requests=true", "").await;
        assert_eq!(reset.json(), json!({"success": true}));
    });
    assert_eq!(finish(&answer), (json!("length"), json!(40)));
}

#[tokio::test]
async fn a_sleeping_pod_keeps_requests_waiting_until_it_wakes() {
    let pod = start(DEV).await;
    assert_eq!(cached(&pod).await, Some(0));
    assert_eq!(pod.get("/is_sleeping").await.json(), json!({"is_sleeping": false}));
    let slept = pod.post("/sleep?level=2", "").await;
    assert_eq!(slept.json(), json!({"status": "sleeping", "level": 2}));
    assert_eq!(pod.get("/is_sleeping").await.json(), json!({"is_sleeping": true}));
    let discarded =
        "vllm:engine_sleep_state{engine=\"0\",model_name=\"/model/qwen\",sleep_state=\"discard_all\"} 1.0";
    assert!(pod.get("/metrics").await.body.contains(discarded));
    let asleep = tokio::time::timeout(Duration::from_millis(100), cached(&pod));
    assert!(asleep.await.is_err(), "nothing runs while it sleeps");
    let part = pod.post("/wake_up?tags=weights", "").await;
    assert_eq!(part.json(), json!({"status": "awake", "tags": ["weights"]}));
    assert_eq!(pod.get("/is_sleeping").await.json(), json!({"is_sleeping": true}));
    let (answer, woken) = tokio::join!(cached(&pod), pod.post("/wake_up", ""));
    assert_eq!(woken.json(), json!({"status": "awake", "tags": null}));
    assert_eq!(answer, Some(0), "sleep discards the cache");
    assert_eq!(pod.get("/is_sleeping").await.json(), json!({"is_sleeping": false}));
    assert!(!pod.get("/metrics").await.body.contains(discarded));
    for wrong in ["/sleep?level=3", "/sleep?mode=x", "/wake_up?tags=x"] {
        assert_eq!(pod.post(wrong, "").await.status, StatusCode::BAD_REQUEST, "{wrong}");
    }
}

#[tokio::test]
async fn the_mode_decides_about_requests_in_flight() {
    let check = async |mode: &str, expected: &str, n_tokens: Option<u64>| {
        let pod = start(&format!("{DEV} --time-scale 20")).await;
        let (answer, ()) = tokio::join!(pod.post("/v1/completions", completion(40)), async {
            until_running(&pod, 1).await;
            let path = format!("/pause?mode={mode}");
            assert_eq!(pod.post(&path, "").await.json(), json!({"status": "paused"}));
            assert_eq!(pod.get("/is_paused").await.json(), json!({"is_paused": true}));
            let n_running = pod.pod.metrics.lock().gauges().running;
            assert_eq!(n_running, usize::from(mode == "keep"), "{mode}");
            assert_eq!(pod.post("/resume", "").await.json(), json!({"status": "resumed"}));
        });
        let (reason, n_generated) = finish(&answer);
        assert_eq!(reason, expected, "{mode}");
        match n_tokens {
            Some(n) => assert_eq!(n_generated, n, "{mode}"),
            None => assert!(n_generated.as_u64() < Some(40), "{mode}: {n_generated}"),
        }
        assert_eq!(finish(&pod.post("/v1/completions", completion(3)).await), (json!("length"), json!(3)));
    };
    check("abort", "abort", None).await;
    check("keep", "length", Some(40)).await;
    check("wait", "length", Some(40)).await;
}

#[tokio::test]
async fn requests_can_be_aborted_by_name() {
    let pod = start(&format!("{DEV} --time-scale 20")).await;
    let named =
        |id: &str| json!({"prompt": "x", "max_tokens": 40, "ignore_eos": true, "request_id": id}).to_string();
    let (aborted, other, ()) = tokio::join!(
        pod.post("/v1/completions", named("one")),
        pod.post("/v1/completions", named("two")),
        async {
            until_running(&pod, 2).await;
            let body = json!({"request_ids": ["one", "unknown"]}).to_string();
            assert_eq!(pod.post("/abort_requests", body).await.status, StatusCode::OK);
        }
    );
    assert_eq!(finish(&aborted).0, "abort");
    assert_eq!(finish(&other), (json!("length"), json!(40)));
}

#[tokio::test]
async fn a_full_queue_refuses_with_503() {
    let check = async |limits: &str, n_refused: usize, reason: &str, text: &str| {
        // One seat, so that all except the first wait.
        let pod = start(&format!("--time-scale 20 --max-num-seqs 1 {limits}")).await;
        let first = pod.post("/v1/completions", completion(60));
        let others = async {
            until_running(&pod, 1).await;
            let (a, b, c) = tokio::join!(
                pod.post("/v1/completions", completion(1)),
                pod.post("/v1/completions", completion(1)),
                pod.post("/v1/completions", completion(1))
            );
            [a, b, c]
        };
        let (first, others) = tokio::join!(first, others);
        assert_eq!(first.status, StatusCode::OK);
        let refused: Vec<&Answer> = others.iter().filter(|answer| answer.status != StatusCode::OK).collect();
        assert_eq!(refused.len(), n_refused, "{limits}");
        for answer in refused {
            let error = json!({"error": {"message": text, "type": "Service Unavailable", "param": null, "code": 503}});
            assert_eq!(answer.json(), error);
        }
        let counter =
            format!("vllm:admission_rejections_total{{model_name=\"/model/qwen\",reason=\"{reason}\"}}");
        let page = pod.get("/metrics").await.body;
        let line = page.lines().find_map(|line| line.strip_prefix(&counter)).map(str::trim);
        assert_eq!(line.unwrap_or("0.0"), format!("{n_refused}.0"), "{limits}");
    };
    let busy = "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance.";
    let backlog = "The engine has reached its prefill token backlog limit. Please try again later or on a different instance.";
    check("--max-num-queued-reqs 1", 2, "max_num_queued_reqs", busy).await;
    check("--max-num-queued-tokens 101", 1, "max_num_queued_tokens", backlog).await;
    check("--max-num-queued-reqs 3 --max-num-queued-tokens 1000", 0, "max_num_queued_reqs", busy).await;
}
