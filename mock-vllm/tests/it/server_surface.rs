//! The endpoints beside text generation, errors, keys and headers.

use crate::server_fixtures::{MODEL, start};
use crate::tutorial::round2_dash;
use http::{Method, StatusCode};
use serde_json::json;

const JSON: (&str, &str) = ("content-type", "application/json");

/// Posts to the chat endpoint of a pod with a context of 8192 tokens.
async fn check_error(body: &str, status: u16, kind: &str, param: Option<&str>, message: &str) {
    let pod = start("").await;
    let answer = pod.post("/v1/chat/completions", body.to_owned()).await;
    let expected = json!({"error": {"message": message, "type": kind, "param": param, "code": status}});
    assert_eq!(answer.json(), expected);
    assert_eq!(answer.status.as_u16(), status);
}

fn chat(fields: &str) -> String {
    format!(r#"{{"messages":[{{"role":"user","content":"hi"}}],{fields}}}"#)
}

#[tokio::test]
async fn unknown_models_are_not_found() {
    let message = "The model `gpt-4` does not exist. Valid aliases: /model/qwen.";
    check_error(&chat(r#""model":"gpt-4""#), 404, "NotFoundError", Some("model"), message).await;
}

#[tokio::test]
async fn a_pod_that_stands_in_answers_for_any_model_below_any_path() {
    let path = "/some/route/v1/chat/completions?a=/v1/models";
    let body = chat(r#""model":"gpt-4","max_tokens":1"#);
    let pod = start("--any-model=true").await;
    for path in ["/v1/chat/completions", path] {
        let answer = pod.post(path, body.clone()).await;
        assert_eq!((answer.status, &answer.json()["model"]), (StatusCode::OK, &json!("gpt-4")), "{path}");
    }
    assert_eq!(pod.get("/some/other/path").await.status, StatusCode::NOT_FOUND);
    // Control: a pod that is vLLM knows its own models and paths.
    let pod = start("").await;
    assert_eq!(pod.post("/v1/chat/completions", body).await.status, StatusCode::NOT_FOUND);
    let known = pod.post(path, chat(r#""max_tokens":1"#)).await;
    assert_eq!((known.status, known.body.as_str()), (StatusCode::NOT_FOUND, r#"{"detail":"Not Found"}"#));
}

#[tokio::test]
async fn limits_are_checked_with_vllms_texts() {
    let check = async |fields: &str, param: Option<&str>, message: &str| {
        check_error(&chat(fields), 400, "BadRequestError", param, message).await;
    };
    let zero = "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)";
    check(r#""max_tokens":0"#, Some("max_tokens"), zero).await;
    let large = "max_tokens=8193 cannot be greater than max_model_len=8192. Please request fewer output tokens. \
        (parameter=max_tokens, value=8193)";
    check(r#""max_tokens":8193"#, Some("max_tokens"), large).await;
    let negative = "temperature must be non-negative, got -1.0. (parameter=temperature, value=-1.0)";
    check(r#""temperature":-1"#, Some("temperature"), negative).await;
    let hot = "temperature must be in [0, 2], got 3.0. (parameter=temperature, value=3.0)";
    check(r#""temperature":3"#, Some("temperature"), hot).await;
    let options = "Stream options can only be defined when `stream=True`. (parameter=stream_options)";
    check(r#""stream_options":{"include_usage":true}"#, Some("stream_options"), options).await;
}

#[tokio::test]
async fn the_context_is_the_limit() {
    let pod = start("--max-model-len 64").await;
    let prompt = |n: usize| format!(r#"{{"prompt":{:?},"max_tokens":64,"ignore_eos":true}}"#, vec![785; n]);
    let clamped = pod.post("/v1/completions", prompt(60)).await.json();
    assert_eq!(
        clamped["usage"],
        json!({"prompt_tokens":60,"total_tokens":64,"completion_tokens":4,
        "prompt_tokens_details":null,"completion_tokens_details":null})
    );
    let full = pod.post("/v1/completions", prompt(64)).await.json();
    assert_eq!(
        full["error"]["message"],
        "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)"
    );
    let over = pod.post("/v1/completions", prompt(65)).await;
    assert_eq!(over.status, StatusCode::BAD_REQUEST);
    assert_eq!(
        over.json()["error"]["message"],
        "This model's maximum context length is 64 tokens. However, your prompt contains at least 65 input tokens, which \
         exceeds this limit even without any output tokens. Please reduce the length of the input prompt. \
         (parameter=input_tokens, value=65)"
    );
}

#[tokio::test]
async fn bodies_of_the_wrong_shape_are_bad_requests() {
    let check = async |body: &str, param: &str, message: &str| {
        let pod = start("").await;
        let answer = pod.post("/v1/chat/completions", body.to_owned()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.body);
        let error = &answer.json()["error"];
        assert_eq!((&error["type"], &error["param"]), (&json!("Bad Request"), &json!(param)));
        assert!(error["message"].as_str().unwrap().contains(message), "{error}");
    };
    check(r#"{"model":"/model/qwen"}"#, "body.messages", "1 validation error:\n  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required', 'input': '<dict of 1 items>'}").await;
    check(&chat(r#""max_tokens":"many""#), "body.max_tokens", "Input should be a valid integer").await;
    check("{", "body.1", "JSON decode error").await;
    // dash's file, sent unchanged, has a raw line feed inside a string.
    let offset = round2_dash().find('\n').unwrap();
    check(&round2_dash(), &format!("body.{offset}"), "Invalid control character at").await;
}

#[tokio::test]
async fn what_this_server_cannot_do_is_refused() {
    let check = async |fields: &str, text: &str| {
        let answer = start("").await.post("/v1/chat/completions", chat(fields)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.body.contains(text), "{}", answer.body);
    };
    check(r#""tools":[{"type":"function","function":{"name":"f"}}]"#, "--enable-auto-tool-choice").await;
}

#[tokio::test]
async fn only_json_is_taken() {
    let pod = start("").await;
    let text = [("content-type", "text/plain")];
    let media_type = pod.send(Method::POST, "/v1/completions", &text, "{}").await;
    assert_eq!(media_type.status, StatusCode::BAD_REQUEST);
    assert!(media_type.body.contains("Unsupported Media Type: Only 'application/json' is allowed"));
}

#[tokio::test]
async fn small_endpoints_answer_as_vllm_does() {
    let pod = start("").await;
    for path in ["/health", "/ping"] {
        let answer = pod.get(path).await;
        assert_eq!((answer.status, answer.body.as_str()), (StatusCode::OK, ""), "{path}");
    }
    assert_eq!(pod.get("/version").await.body, r#"{"version":"0.33.0"}"#);
    assert_eq!(pod.get("/load").await.body, r#"{"server_load":0}"#);
    let card = &pod.get("/v1/models").await.json()["data"][0];
    assert_eq!((&card["id"], &card["root"]), (&json!(MODEL), &json!("Qwen/Qwen2.5-7B-Instruct")));
    assert_eq!(card["max_model_len"], 8192);
    let text = pod.post("/tokenize", r#"{"prompt":"Zork can","return_token_strs":true}"#).await;
    assert_eq!(
        text.body,
        r#"{"count":3,"max_model_len":8192,"tokens":[57,669,646],"token_strs":["Z","ork","Ġcan"]}"#
    );
    let messages = pod.post("/tokenize", chat(r#""model":"/model/qwen""#)).await.json();
    assert_eq!(messages["count"], 30);
    let back = pod.post("/detokenize", r#"{"tokens":[151644,57,669,646]}"#).await;
    assert_eq!(back.body, r#"{"prompt":"<|im_start|>Zork can"}"#);
}

#[tokio::test]
async fn keys_guard_the_api_and_nothing_else() {
    let pod = start("--api-key secret other").await;
    let models =
        async |value: &str| pod.send(Method::GET, "/v1/models", &[("authorization", value)], "").await;
    let denied = models("Bearer wrong").await;
    assert_eq!(
        (denied.status, denied.body.as_str()),
        (StatusCode::UNAUTHORIZED, r#"{"error":"Unauthorized"}"#)
    );
    assert_eq!(pod.get("/v1/models").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(models("Bearer other").await.status, StatusCode::OK);
    assert_eq!(pod.get("/health").await.status, StatusCode::OK);
}

#[tokio::test]
async fn request_ids_are_echoed_when_switched_on() {
    let sent = [JSON, ("x-request-id", "abc")];
    let body = chat(r#""max_tokens":1"#);
    let off = start("").await.send(Method::POST, "/v1/chat/completions", &sent, body.clone()).await;
    assert!(!off.headers.contains_key("x-request-id"));
    assert_eq!(off.json()["id"], "chatcmpl-abc");
    let pod = start("--enable-request-id-headers").await;
    let on = pod.send(Method::POST, "/v1/chat/completions", &sent, body.clone()).await;
    assert_eq!(on.headers["x-request-id"], "abc");
    let made = pod.post("/v1/chat/completions", body).await;
    let id = made.headers["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(id.len(), 32);
    assert_eq!(made.json()["id"], format!("chatcmpl-{id}"));
}

#[tokio::test]
async fn large_bodies_are_read_whole() {
    let pod = start("").await;
    let body = format!(r#"{{"padding":"{}","prompt":"hi","max_tokens":1}}"#, "x".repeat(6 << 20));
    assert_eq!(pod.post("/v1/completions", body).await.status, StatusCode::OK);
    let too_large = vec![b' '; (64 << 20) + 1];
    assert_eq!(pod.post("/v1/completions", too_large).await.status, StatusCode::PAYLOAD_TOO_LARGE);
}
