//! `--config`, `--root-path`, and the endpoint that serves both APIs.

use crate::server_fixtures::{MODEL, start};
use http::StatusCode;
use serde_json::json;

#[tokio::test]
async fn a_config_file_gives_flags_and_the_command_line_wins() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pod.yml");
    std::fs::write(&file, "max_model_len: 64\nblock-size: 32\nenable_prompt_tokens_details: true\n").unwrap();
    let file = file.display();
    let asked = json!({"prompt": vec![785; 40], "max_tokens": 2}).to_string();
    // It comes after the fixture's own --max-model-len 8192, which still wins over the file.
    let pod = start(&format!("--config {file}")).await;
    assert_eq!(pod.get("/v1/models").await.json()["data"][0]["max_model_len"], 8192);
    pod.post("/v1/completions", asked.clone()).await;
    let usage = pod.post("/v1/completions", asked).await.json()["usage"].clone();
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 32, "blocks of 32 tokens, told in details");
}

#[tokio::test]
async fn a_root_path_is_answered_too() {
    let (plain, rooted) = (start("").await, start("--root-path /proxy/llm/ --api-key k").await);
    assert_eq!(plain.get("/proxy/llm/health").await.status, StatusCode::NOT_FOUND);
    for path in ["/health", "/proxy/llm/health"] {
        assert_eq!(rooted.get(path).await.status, StatusCode::OK, "{path}");
    }
    for path in ["/v1/models", "/proxy/llm/v1/models"] {
        assert_eq!(rooted.get(path).await.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    assert_eq!(rooted.get("/proxy/other").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn invocations_are_chats_or_completions() {
    let pod = start("").await;
    let object = async |body: serde_json::Value| {
        pod.post("/invocations", body.to_string()).await.json()["object"].clone()
    };
    let messages = json!([{"role": "user", "content": "hi"}]);
    assert_eq!(
        object(json!({"model": MODEL, "messages": messages, "max_tokens": 1})).await,
        "chat.completion"
    );
    assert_eq!(object(json!({"model": MODEL, "prompt": "hi", "max_tokens": 1})).await, "text_completion");
    assert_eq!(pod.post("/invocations", "{").await.status, StatusCode::BAD_REQUEST);
}
