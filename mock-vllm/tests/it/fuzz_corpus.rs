//! Seeds of the fuzz targets, and the crashes that they once found, on any compiler.

use crate::server_fixtures::{Answer, start};
use futures::future::join_all;
use http::StatusCode;
use std::fs;
use std::path::Path;
use vllm_engine::trace;

/// Endpoints that take a body.
const PATHS: [&str; 14] = [
    "/v1/chat/completions",
    "/v1/chat/completions/render",
    "/v1/completions",
    "/v1/completions/render",
    "/v1/responses",
    "/v1/responses/render",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/messages/render",
    "/invocations",
    "/tokenize",
    "/detokenize",
    "/v1/load_lora_adapter",
    "/debug/lookup",
];
/// Paths and bodies that are right except for the field that is added.
const REQUESTS: [(&str, &str); 5] = [
    ("/v1/chat/completions", r#""messages":[{"role":"user","content":"hi"}],"max_tokens":2"#),
    ("/v1/completions", r#""prompt":"hi","max_tokens":2"#),
    ("/v1/responses", r#""input":"hi","max_output_tokens":2"#),
    ("/v1/messages", r#""model":"/model/qwen","max_tokens":2,"messages":[{"role":"user","content":"hi"}]"#),
    ("/tokenize", r#""prompt":"hi""#),
];
const FIELDS: &str = "model messages prompt input max_tokens max_completion_tokens max_output_tokens min_tokens n stream \
    stream_options stream_interval temperature top_p top_k min_p presence_penalty frequency_penalty repetition_penalty \
    stop stop_token_ids seed logprobs top_logprobs prompt_logprobs echo ignore_eos cache_salt priority request_id \
    logit_bias response_format structured_outputs tools tool_choice chat_template_kwargs reasoning_effort documents \
    instructions previous_response_id continue_final_message prompt_embeds system thinking output_config stop_sequences \
    reasoning text background store parallel_tool_calls";
/// Values as JSON that Python reads.
const ODD_VALUES: [&str; 20] = [
    "NaN",
    "-Infinity",
    "1e999",
    "-1",
    "0",
    "-0.0",
    "1.5",
    "1e308",
    "18446744073709551616",
    "-9223372036854775809",
    "true",
    "null",
    r#""""#,
    r#""\u0000\uffff""#,
    r#""1""#,
    "[]",
    "[[[[]]]]",
    "[null,-1,{},NaN]",
    "{}",
    r#"{"":{"":[NaN]},"type":"\u0000"}"#,
];

/// Flags of the fuzz target's pod, as far as they decide which requests are accepted.
const FLAGS: &str = "--max-model-len 512 --num-gpu-blocks-override 128 --time-scale 1000000 \
    --enable-auto-tool-choice --tool-call-parser hermes";

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let entries = fs::read_dir(folder).expect("the corpus is in the project");
    let paths = entries.map(|entry| entry.expect("the folder is readable").path());
    let files: Vec<_> = paths
        .map(|path| (path.display().to_string(), fs::read(&path).expect("the file is readable")))
        .collect();
    assert!(files.len() > 3, "{target} has seeds");
    files
}

#[test]
fn trace_files_end_in_a_result() {
    for (_, bytes) in corpus("trace_files") {
        let _ok_or_told = trace::check_bytes(&bytes);
    }
}

/// Checks that a request is served, or rejected like the web framework, vLLM or Anthropic would.
fn is_proper(answer: &Answer) -> bool {
    let status = answer.status;
    if status == StatusCode::OK {
        return true;
    }
    let body = answer.json();
    let error = &body["error"];
    let is_vllms =
        error["code"] == status.as_u16() && error["message"].is_string() && error["type"].is_string();
    let is_anthropics = body["type"] == "error" && error["type"].is_string() && error["message"].is_string();
    status.is_client_error() && (is_vllms || is_anthropics || body["detail"].is_string())
}

/// In the fuzz target the first byte of a seed chooses the endpoint; here each body goes to all of them.
#[tokio::test]
async fn bodies_never_kill_the_pod() {
    let pod = start(FLAGS).await;
    for (name, seed) in corpus("http_bodies") {
        for path in PATHS {
            let answer = pod.post(path, seed[1..].to_vec()).await;
            assert!(is_proper(&answer), "{path} {name}: {} {}", answer.status, answer.body);
        }
    }
    assert_eq!(pod.get("/health").await.status, StatusCode::OK);
}

#[tokio::test]
async fn no_value_of_a_field_is_too_odd() {
    if test_skips::skips_slow() {
        return;
    }
    let pod = start(FLAGS).await;
    let mut n_refused = 0;
    for (path, fields) in REQUESTS {
        assert_eq!(pod.post(path, format!("{{{fields}}}")).await.status, StatusCode::OK, "{path} without it");
        for field in FIELDS.split_whitespace() {
            let bodies = ODD_VALUES.map(|value| format!("{{{fields},\"{field}\":{value}}}"));
            let answers = join_all(bodies.iter().map(|body| pod.post(path, body.clone()))).await;
            for (body, answer) in bodies.iter().zip(answers) {
                assert!(is_proper(&answer), "{path} {body}: {} {}", answer.status, answer.body);
                n_refused += usize::from(answer.status != StatusCode::OK);
            }
        }
    }
    assert!(n_refused > 500, "they are odd: {n_refused}");
    assert_eq!(pod.get("/health").await.status, StatusCode::OK);
}
