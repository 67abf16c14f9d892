//! Answers byte for byte, for each generation of vLLM. The expected lines under `fixtures/wire_versions/` were written
//! by the response models of vLLM 0.8.5.post1, 0.11.0 and 0.33.0 themselves, called with the arguments of its serving
//! code.

use crate::server_fixtures::{Answer, TestPod, start};
use http::Method;
use serde_json::{Value, json};

const VERSIONS: [(&str, &str); 3] = [
    ("0.8", include_str!("../fixtures/wire_versions/0.8.txt")),
    ("0.11", include_str!("../fixtures/wire_versions/0.11.txt")),
    ("0.33", include_str!("../fixtures/wire_versions/0.33.txt")),
];

async fn post(pod: &TestPod, path: &str, body: &Value) -> Answer {
    let headers = [("content-type", "application/json"), ("x-request-id", "0123abcd")];
    pod.send(Method::POST, path, &headers, body.to_string()).await
}

/// Removes the time of creation and the configuration hash from the text.
fn masked(text: &str) -> String {
    let value: Value = serde_json::from_str(text).unwrap();
    let created = format!("\"created\":{}", value["created"]);
    let fingerprint = value["system_fingerprint"].as_str().unwrap_or("no fingerprint");
    text.replace(&created, "\"created\":1").replace(fingerprint, "FP")
}

fn streamed(answer: &Answer) -> Vec<String> {
    let frames = answer.frames();
    assert_eq!(frames.last(), Some(&"[DONE]"));
    frames[..frames.len() - 1].iter().map(|frame| masked(frame)).collect()
}

#[tokio::test]
async fn answers_have_their_generations_bytes() {
    for (version, expected) in VERSIONS {
        let pod = start(&format!("--vllm-version {version} --enable-prompt-tokens-details")).await;
        let with = |body: &Value, fields: Value| {
            let mut body = body.clone();
            fields.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
            body
        };
        let stream = json!({"stream": true, "stream_options": {"include_usage": true, "continuous_usage_stats": true}});
        let text = "Opening the mailbox reveals:\n A leaflet.\n>";
        let chat = json!({"messages": [{"role": "user", "content": text}], "max_tokens": 2});
        let mut lines = Vec::new();
        // This request puts the prompt into the cache.
        post(&pod, "/v1/chat/completions", &chat).await;
        lines.extend(streamed(&post(&pod, "/v1/chat/completions", &with(&chat, stream.clone())).await));
        lines.push(masked(&post(&pod, "/v1/chat/completions", &chat).await.body));
        let completion = json!({"prompt": text, "max_tokens": 2});
        lines.extend(streamed(&post(&pod, "/v1/completions", &with(&completion, stream)).await));
        let silent = with(&completion, json!({"stream": true}));
        let last = streamed(&post(&pod, "/v1/completions", &silent).await).pop().unwrap();
        lines.push(last);
        lines.push(masked(&post(&pod, "/v1/completions", &completion).await.body));
        assert_eq!(lines, expected.lines().collect::<Vec<_>>(), "vLLM {version}");
    }
}

#[tokio::test]
async fn errors_have_their_generations_shape() {
    let check = async |version: &str, body: &str, status: u16, expected: &str| {
        let pod = start(&format!("--vllm-version {version} --max-model-len 64")).await;
        let answer = pod.post("/v1/completions", body.to_owned()).await;
        assert_eq!((answer.status.as_u16(), answer.body.as_str()), (status, expected), "vLLM {version}");
        assert_eq!(answer.headers["content-type"], "application/json");
    };
    let model = r#"{"model":"nope","prompt":"x"}"#;
    check("0.8", model, 404, r#"{"object":"error","message":"The model `nope` does not exist.","type":"NotFoundError","param":null,"code":404}"#).await;
    check("0.11", model, 404, r#"{"error":{"message":"The model `nope` does not exist.","type":"NotFoundError","param":null,"code":404}}"#).await;
    check("0.33", model, 404, r#"{"error":{"message":"The model `nope` does not exist. Valid aliases: /model/qwen.","type":"NotFoundError","param":"model","code":404}}"#).await;
    let long = format!(r#"{{"prompt":{:?},"max_tokens":8}}"#, vec![785; 70]);
    check("0.8", &long, 400, r#"{"object":"error","message":"This model's maximum context length is 64 tokens. However, you requested 78 tokens (70 in the messages, 8 in the completion). Please reduce the length of the messages or completion.","type":"BadRequestError","param":null,"code":400}"#).await;
    check("0.11", &long, 400, r#"{"error":{"message":"This model's maximum context length is 64 tokens. However, your request has 70 input tokens. Please reduce the length of the input messages.","type":"BadRequestError","param":null,"code":400}}"#).await;
    check("0.33", &long, 400, r#"{"error":{"message":"This model's maximum context length is 64 tokens. However, your prompt contains 70 input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value=70)","type":"BadRequestError","param":"input_tokens","code":400}}"#).await;
    let greedy = format!(r#"{{"prompt":{:?},"max_tokens":60}}"#, vec![785; 10]);
    check("0.8", &greedy, 400, r#"{"object":"error","message":"This model's maximum context length is 64 tokens. However, you requested 70 tokens (10 in the messages, 60 in the completion). Please reduce the length of the messages or completion.","type":"BadRequestError","param":null,"code":400}"#).await;
    check("0.11", &greedy, 400, r#"{"error":{"message":"'max_tokens' or 'max_completion_tokens' is too large: 60. This model's maximum context length is 64 tokens and your request has 10 input tokens (60 > 64 - 10).","type":"BadRequestError","param":null,"code":400}}"#).await;
    let shape = r#"{"prompt":"x","n":"many"}"#;
    check("0.8", shape, 400, r#"{"object":"error","message":"[{'type': 'int_parsing', 'loc': ('body', 'n'), 'msg': 'Input should be a valid integer, unable to parse string as an integer', 'input': 'many'}]","type":"BadRequestError","param":null,"code":400}"#).await;
    check("0.11", shape, 400, r#"{"error":{"message":"[{'type': 'int_parsing', 'loc': ('body', 'n'), 'msg': 'Input should be a valid integer, unable to parse string as an integer', 'input': 'many'}]","type":"Bad Request","param":null,"code":400}}"#).await;
    check("0.33", shape, 400, r#"{"error":{"message":"1 validation error:\n  {'type': 'int_parsing', 'loc': 'body.n', 'msg': 'Input should be a valid integer, unable to parse string as an integer', 'input': 'many'}","type":"Bad Request","param":"body.n","code":400}}"#).await;
    let top_p = r#"{"prompt":"x","top_p":2}"#;
    check("0.11", top_p, 400, r#"{"error":{"message":"top_p must be in (0, 1], got 2.0.","type":"BadRequestError","param":null,"code":400}}"#).await;
    let options = r#"{"prompt":"x","stream_options":{"include_usage":true}}"#;
    check("0.11", options, 400, r#"{"error":{"message":"[{'type': 'value_error', 'loc': ('body',), 'msg': 'Value error, Stream options can only be defined when `stream=True`.', 'input': {'prompt': 'x', 'stream_options': {'include_usage': True}}, 'ctx': {'error': ValueError('Stream options can only be defined when `stream=True`.')}}]","type":"Bad Request","param":null,"code":400}}"#).await;
}

#[tokio::test]
async fn usage_is_on_by_default_in_stream_options_of_older_ones() {
    for (version, has_usage) in [("0.8", true), ("0.11", true), ("0.33", false)] {
        let pod = start(&format!("--vllm-version {version}")).await;
        let body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "stream": true,
            "stream_options": {"continuous_usage_stats": false}});
        let answer = post(&pod, "/v1/chat/completions", &body).await;
        assert_eq!(answer.body.contains("\"usage\""), has_usage, "vLLM {version}");
    }
}
