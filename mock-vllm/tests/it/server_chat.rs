//! Answers byte for byte, and the cache hits of the tutorial's two rounds.

use crate::server_fixtures::{Answer, start};
use crate::tutorial::{ROUND1, ROUND2_QUOTED, round2_bash, round2_dash};
use http::{Method, StatusCode};
use serde_json::{Value, json};

const ID: &str = "0123abcd";

/// Removes the time of creation and the configuration hash from the frame.
fn masked(frame: &str) -> String {
    let Ok(value) = serde_json::from_str::<Value>(frame) else { return frame.to_owned() };
    let created = format!("\"created\":{}", value["created"]);
    let fingerprint = value["system_fingerprint"].as_str().unwrap_or("no fingerprint");
    frame.replace(&created, "\"created\":1").replace(fingerprint, "FP")
}

async fn post_with_id(pod: &crate::server_fixtures::TestPod, path: &str, body: &str) -> Answer {
    let headers = [("content-type", "application/json"), ("x-request-id", ID)];
    pod.send(Method::POST, path, &headers, body.to_owned()).await
}

#[tokio::test]
async fn a_chat_streams_vllms_bytes() {
    let pod = start("").await;
    let body = r#"{"max_tokens":2,"messages":[{"role":"user","content":"Opening the mailbox reveals:\n A leaflet.\n>"}],
        "model":"/model/qwen","stream":true,"stream_options":{"include_usage":true}}"#;
    let answer = post_with_id(&pod, "/v1/chat/completions", body).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.headers["content-type"], "text/event-stream; charset=utf-8");
    let frames: Vec<_> = answer.frames().into_iter().map(masked).collect();
    let head = r#"{"id":"chatcmpl-0123abcd","object":"chat.completion.chunk","created":1,"model":"/model/qwen","choices":["#;
    let expected = [
        r#"{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"prompt_token_ids":null,"prompt_text":null}"#,
        r#"{"index":0,"delta":{"content":"Read"},"logprobs":null,"finish_reason":null,"token_ids":null}],"kv_transfer_params":null}"#,
        r#"{"index":0,"delta":{"content":" the"},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null,"weight_versions":null}],"kv_transfer_params":null}"#,
        r#"],"usage":{"prompt_tokens":39,"total_tokens":41,"completion_tokens":2},"system_fingerprint":"FP"}"#,
    ];
    let expected: Vec<_> =
        expected.iter().map(|rest| format!("{head}{rest}")).chain(["[DONE]".to_owned()]).collect();
    assert_eq!(frames, expected);
}

#[tokio::test]
async fn usage_is_sent_only_when_asked_for() {
    let pod = start("").await;
    let body = |options: &str| {
        format!(r#"{{"max_tokens":2,"messages":[{{"role":"user","content":"x"}}],"stream":true{options}}}"#)
    };
    let without = pod.post("/v1/chat/completions", body("")).await;
    assert!(!without.body.contains("\"usage\""), "{}", without.body);
    assert_eq!(without.body.matches("system_fingerprint").count(), 1);
    let continuous = pod
        .post(
            "/v1/chat/completions",
            body(r#","stream_options":{"include_usage":true,"continuous_usage_stats":true}"#),
        )
        .await;
    let counts: Vec<_> = continuous
        .frames()
        .iter()
        .filter_map(|frame| serde_json::from_str::<Value>(frame).ok())
        .map(|frame| frame["usage"]["completion_tokens"].clone())
        .collect();
    assert_eq!(counts, [json!(0), json!(1), json!(2), json!(2)]);
    let forced = start("--enable-force-include-usage").await;
    let answer = forced.post("/v1/chat/completions", body("")).await;
    assert_eq!(answer.stream_usage()["completion_tokens"], 2);
}

#[tokio::test]
async fn a_plain_chat_has_vllms_fields_in_order() {
    let pod = start("").await;
    let body = r#"{"max_tokens":2,"messages":[{"role":"user","content":[{"type":"text","text":"Opening the mailbox reveals:\n A leaflet.\n>"}]}]}"#;
    let answer = post_with_id(&pod, "/v1/chat/completions", body).await;
    assert_eq!(
        masked(&answer.body),
        r#"{"id":"chatcmpl-0123abcd","object":"chat.completion","created":1,"model":"/model/qwen","choices":[{"index":0,"message":{"role":"assistant","content":"Read the","refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null},"logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null,"routed_experts":null,"weight_versions":null}],"service_tier":null,"system_fingerprint":"FP","usage":{"prompt_tokens":39,"total_tokens":41,"completion_tokens":2,"prompt_tokens_details":null,"completion_tokens_details":null},"prompt_logprobs":null,"prompt_token_ids":null,"prompt_text":null,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}"#
    );
}

#[tokio::test]
async fn a_completion_streams_vllms_bytes() {
    let pod = start("").await;
    let body = r#"{"max_tokens":1,"prompt":["Opening the mailbox reveals: A leaflet.>"],"stream":true}"#;
    let answer = post_with_id(&pod, "/v1/completions", body).await;
    assert_eq!(
        masked(answer.frames()[0]),
        r#"{"id":"cmpl-0123abcd","object":"text_completion","created":1,"model":"/model/qwen","choices":[{"index":0,"text":"Read","logprobs":null,"finish_reason":"length","stop_reason":null,"prompt_token_ids":null,"token_ids":null,"weight_versions":null}],"system_fingerprint":"FP","kv_transfer_params":null}"#
    );
    let plain = pod.post("/v1/completions", r#"{"prompt":[785,2168],"ignore_eos":true}"#).await.json();
    assert_eq!(plain["usage"]["completion_tokens"], 16);
    assert_eq!(plain["usage"]["prompt_tokens"], 2);
}

#[tokio::test]
async fn a_reply_that_ends_by_itself_stops() {
    let pod = start("").await;
    let body = r#"{"messages":[{"role":"user","content":"Opening the mailbox reveals:\n A leaflet.\n>"}],"stream":true,"stream_options":{"include_usage":true}}"#;
    let answer = pod.post("/v1/chat/completions", body).await;
    assert_eq!(answer.text(), "Read the leaflet, please.");
    let frames = answer.frames();
    let last: Value = serde_json::from_str(frames[frames.len() - 3]).unwrap();
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(last["choices"][0]["delta"], json!({"content": ""}));
    assert_eq!(last["choices"][0]["stop_reason"], Value::Null);
    // Seven tokens of text and the EOS.
    assert_eq!(answer.stream_usage()["completion_tokens"], 8);
    // The request's own stop token is named.
    let body = r#"{"messages":[{"role":"user","content":"Opening the mailbox reveals:\n A leaflet.\n>"}],"stop_token_ids":[279]}"#;
    let choice = pod.post("/v1/chat/completions", body).await.json()["choices"][0].clone();
    assert_eq!((&choice["finish_reason"], &choice["stop_reason"]), (&json!("stop"), &json!(279)));
    assert_eq!(choice["message"]["content"], "Read");
}

/// Sends both rounds to one fresh pod and checks tokens of the prompts, cached tokens, and tokens of the answers.
#[track_caller]
fn check_rounds(answers: &[Answer; 2], prompt: [u64; 2], cached: [u64; 2]) {
    for (answer, round_idx) in answers.iter().zip(0..) {
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        let usage = answer.stream_usage();
        assert_eq!(usage["prompt_tokens"], prompt[round_idx]);
        assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], cached[round_idx], "{usage}");
        assert_eq!(usage["completion_tokens"], [24, 3][round_idx]);
    }
    let expected = "Hi there! It looks like you're setting up a fun test. I'm ready to play Zork! You can";
    assert_eq!(answers[0].text(), expected);
}

async fn rounds(flags: &str, round2: String) -> [Answer; 2] {
    let pod = start(flags).await;
    let round1 = pod.post("/v1/chat/completions", ROUND1).await;
    [round1, pod.post("/v1/chat/completions", round2).await]
}

#[tokio::test]
async fn round_two_hits_what_round_one_left() {
    let details = "--enable-prompt-tokens-details";
    check_rounds(&rounds(details, round2_bash()).await, [127, 228], [0, 128]);
    check_rounds(&rounds(details, ROUND2_QUOTED.to_owned()).await, [127, 230], [0, 144]);
    // curl's `-d @file` strips the line feeds that dash wrote.
    let stripped = rounds(details, round2_dash().replace('\n', "")).await;
    assert_eq!(stripped[1].stream_usage()["prompt_tokens_details"]["cached_tokens"], 128);
    assert_eq!(stripped[1].stream_usage()["completion_tokens"], 3);
}

#[tokio::test]
async fn nothing_hits_without_a_cache_or_without_round_one() {
    let no_cache = "--enable-prompt-tokens-details --no-enable-prefix-caching";
    check_rounds(&rounds(no_cache, round2_bash()).await, [127, 228], [0, 0]);
    let pod = start("--enable-prompt-tokens-details").await;
    let cold = pod.post("/v1/chat/completions", round2_bash()).await;
    assert_eq!(cold.stream_usage()["prompt_tokens_details"]["cached_tokens"], 0);
}

#[tokio::test]
async fn a_salt_keeps_prefixes_apart() {
    let pod = start("--enable-prompt-tokens-details").await;
    let salted = |salt: &str| {
        ROUND1.replace("{\"max_tokens\"", &format!("{{\"cache_salt\":\"{salt}\",\"max_tokens\""))
    };
    let mut cached = Vec::new();
    for salt in ["a", "a", "b"] {
        let usage = pod.post("/v1/chat/completions", salted(salt)).await.stream_usage();
        cached.push(usage["prompt_tokens_details"]["cached_tokens"].as_u64());
    }
    assert_eq!(cached, [Some(0), Some(112), Some(0)]);
}

#[tokio::test]
async fn made_up_text_is_the_same_for_the_same_prompt_and_seed_only() {
    let body = |content: &str| {
        format!(r#"{{"messages":[{{"role":"user","content":"{content}"}}],"max_tokens":50}}"#)
    };
    let text = async |flags: &str, content: &str| {
        let answer = start(flags).await.post("/v1/chat/completions", body(content)).await;
        answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    let first = text("", "tell me").await;
    assert_eq!(first, text("", "tell me").await);
    assert_ne!(first, text("", "tell me more").await);
    assert_ne!(first, text("--seed 7", "tell me").await);
}

#[tokio::test]
async fn many_requests_at_once_are_batched_and_all_answered() {
    let pod = start("").await;
    let body = |n: usize| {
        format!(
            r#"{{"messages":[{{"role":"user","content":"number {n}"}}],"max_tokens":20,"ignore_eos":true}}"#
        )
    };
    let answers = (0..64).map(|n| pod.post("/v1/chat/completions", body(n)));
    let answers = futures::future::join_all(answers).await;
    assert!(answers.iter().all(|answer| answer.json()["usage"]["completion_tokens"] == 20));
    assert_eq!(pod.metric("vllm:generation_tokens_total").await, 64.0 * 20.0);
}
