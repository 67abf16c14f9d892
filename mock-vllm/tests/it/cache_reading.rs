//! Requests that look into the prefix cache or skip it (vLLM's `skip_reading_prefix_cache`): on the wire, in counters,
//! and in what the pod reports of its cache.

use crate::server_fixtures::{TestPod, start};
use http::StatusCode;
use serde_json::{Value, json};

const CHATS: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
/// Tokens of the prompt that are in the cache after its answer.
const CACHED: u64 = 48;

/// Makes a request of 64 tokens with `fields` in addition.
fn body(path: &str, fields: &Value) -> Value {
    let mut body = match path {
        CHATS => json!({"messages": [{"role": "user", "content": "word ".repeat(28)}], "max_tokens": 1}),
        _ => json!({"prompt": vec![785; 64], "max_tokens": 1}),
    };
    fields.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
    body
}

/// Returns the tokens that the request found, from its answer's head.
async fn found(pod: &TestPod, path: &str, body: &Value) -> u64 {
    let answer = pod.post(path, body.to_string()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let told = answer.headers["x-mock-vllm-cache"].to_str().unwrap();
    let cached = told.split(", ").find_map(|part| part.strip_prefix("cached_tokens=")).unwrap();
    let cached = cached.parse().unwrap();
    if body.get("stream").is_none() {
        // Older versions leave out a zero, and 0.8 reports only chats.
        if let Some(told) = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() {
            assert_eq!(told, cached, "{}", answer.body);
        }
    }
    cached
}

/// Checks a request that follows an equal one without `fields`, whose prompt it could have found.
async fn check(version: &str, path: &str, fields: Value, expected: u64) {
    let pod = start(&format!("--enable-prompt-tokens-details --vllm-version {version}")).await;
    let plain = body(path, &json!({}));
    let odd = body(path, &fields);
    let queries = if version == "0.8" {
        "vllm:gpu_prefix_cache_queries_total"
    } else {
        "vllm:prefix_cache_queries_total"
    };
    assert_eq!(found(&pod, path, &plain).await, 0);
    let one_look = pod.metric(queries).await;
    let looked_up = pod.post("/debug/lookup", odd.to_string()).await.json()["cached_tokens"].clone();
    assert_eq!(looked_up, expected, "{version} {path} {fields}: what the pod tells of it beforehand");
    assert_eq!(found(&pod, path, &odd).await, expected, "{version} {path} {fields}");
    assert_eq!(found(&pod, path, &plain).await, CACHED, "the next one finds it as before");
    let n_looks = if expected == 0 { 2.0 } else { 3.0 };
    assert_eq!(pod.metric(queries).await, n_looks * one_look, "{version} {path} {fields}: who did not look");
}

#[tokio::test]
async fn a_prompt_whose_log_probabilities_are_asked_for_is_computed() {
    for version in ["0.8", "0.11", "0.33"] {
        check(version, COMPLETIONS, json!({"prompt_logprobs": 0}), 0).await;
        check(version, COMPLETIONS, json!({"prompt_logprobs": 1}), 0).await;
        check(version, COMPLETIONS, json!({"echo": true, "logprobs": 1}), 0).await;
        check(version, CHATS, json!({"prompt_logprobs": 2}), 0).await;
    }
    check("0.33", COMPLETIONS, json!({"echo": true, "logprobs": 0, "stream": true}), 0).await;
    check("0.33", COMPLETIONS, json!({"echo": true, "logprobs": 1, "max_tokens": 0}), 0).await;
}

/// Log probabilities or an echo alone do not make a request skip the cache.
#[tokio::test]
async fn other_log_probabilities_and_an_echo_alone_look_into_the_cache() {
    for version in ["0.8", "0.11", "0.33"] {
        check(version, COMPLETIONS, json!({"logprobs": 1}), CACHED).await;
        check(version, COMPLETIONS, json!({"echo": true}), CACHED).await;
        check(version, CHATS, json!({"logprobs": true, "top_logprobs": 2}), CACHED).await;
        check(version, COMPLETIONS, json!({"prompt_logprobs": null}), CACHED).await;
    }
}
