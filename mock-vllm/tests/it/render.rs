//! `/…/render`: what a router is told about a request is what the engine would get of it.

use crate::server_fixtures::{TestPod, start};
use http::StatusCode;
use serde_json::{Value, json};

const CHATS: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const RESPONSES: &str = "/v1/responses";
const TOOLS: &str = "--enable-auto-tool-choice --tool-call-parser hermes --tokenizer Qwen/Qwen3-8B";

async fn render(pod: &TestPod, path: &str, body: &Value) -> Value {
    let answer = pod.post(&format!("{path}/render"), body.to_string()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    answer.json()
}

fn ids(rendered: &Value) -> Vec<u64> {
    rendered["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

/// Returns what the answer to the request itself reports of its prompt.
async fn prompt_tokens(pod: &TestPod, path: &str, body: &Value) -> usize {
    let usage = pod.post(path, body.to_string()).await.json()["usage"].clone();
    let tokens = usage.get("prompt_tokens").or_else(|| usage.get("input_tokens")).unwrap();
    usize::try_from(tokens.as_u64().unwrap()).unwrap()
}

fn tool(description: &str) -> Value {
    json!({"type": "function", "function": {"name": "look", "description": description, "parameters": {"type": "object"}}})
}

/// Fields that `/tokenize` knows, and those that it does not.
#[tokio::test]
async fn every_field_that_a_chat_is_rendered_with_counts() {
    let pod = start(&format!("--enable-scale-out {TOOLS}")).await;
    let user = json!({"role": "user", "content": "what is there?"});
    let call = json!({"role": "assistant", "content": null, "tool_calls": [{"id": "c", "type": "function",
        "function": {"name": "look", "arguments": "{\"where\": \"north\"}"}}]});
    let plain = json!({"messages": [user], "max_tokens": 1});
    let plain_ids = ids(&render(&pod, CHATS, &plain).await);
    let variants = [
        json!({"messages": [user], "tools": [tool("into the dark")]}),
        json!({"messages": [user, call, {"role": "tool", "tool_call_id": "c", "content": "a troll"}]}),
        json!({"messages": [user], "chat_template_kwargs": {"enable_thinking": false}}),
        json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "what is here?"}]}]}),
    ];
    for mut variant in variants {
        variant["max_tokens"] = json!(1);
        let rendered = ids(&render(&pod, CHATS, &variant).await);
        assert_ne!(rendered, plain_ids, "{variant}");
        assert_eq!(rendered.len(), prompt_tokens(&pod, CHATS, &variant).await, "{variant}");
        let tokenized = pod.post("/tokenize", variant.to_string()).await.json();
        assert_eq!(tokenized["tokens"], json!(rendered), "{variant}");
    }
}

#[tokio::test]
async fn each_prompt_of_a_completion_is_rendered() {
    let pod = start("--enable-scale-out").await;
    let one = render(&pod, COMPLETIONS, &json!({"prompt": "go north"})).await;
    let many =
        render(&pod, COMPLETIONS, &json!({"prompt": ["go north", "go south"], "request_id": "r"})).await;
    assert_eq!((one.as_array().unwrap().len(), many.as_array().unwrap().len()), (1, 2));
    assert_eq!(ids(&one[0]), ids(&many[0]));
    assert_ne!(ids(&many[0]), ids(&many[1]));
    assert_eq!(many[1]["request_id"], "cmpl-r-1");
    let given = render(&pod, COMPLETIONS, &json!({"prompt": [[3, 4], [5]], "cache_salt": "s"})).await;
    assert_eq!((ids(&given[0]), ids(&given[1])), (vec![3, 4], vec![5]));
    assert_eq!((&given[1]["cache_salt"], &given[1]["features"]), (&json!("s"), &Value::Null));
}

#[tokio::test]
async fn a_response_is_rendered_as_the_chat_that_it_asks_for() {
    let pod = start("--enable-scale-out").await;
    let response = json!({"instructions": "be brief", "input": "go north", "max_output_tokens": 1});
    let messages =
        [json!({"role": "system", "content": "be brief"}), json!({"role": "user", "content": "go north"})];
    let rendered = render(&pod, RESPONSES, &response).await;
    assert_eq!(ids(&rendered), ids(&render(&pod, CHATS, &json!({"messages": messages})).await));
    assert_eq!(ids(&rendered).len(), prompt_tokens(&pod, RESPONSES, &response).await);
    assert!(rendered["request_id"].as_str().unwrap().starts_with("resp_"), "{rendered}");
    assert_eq!(rendered["sampling_params"]["max_tokens"], 1);
}

#[tokio::test]
async fn a_message_is_rendered_as_the_chat_that_it_asks_for() {
    const MESSAGES: &str = "/v1/messages";
    let pod = start("--enable-scale-out").await;
    let user = json!({"role": "user", "content": "go north"});
    let message = json!({"model": "/model/qwen", "max_tokens": 1, "system": "be brief", "messages": [user]});
    let rendered = render(&pod, MESSAGES, &message).await;
    let messages = [json!({"role": "system", "content": "be brief"}), user];
    assert_eq!(ids(&rendered), ids(&render(&pod, CHATS, &json!({"messages": messages})).await));
    assert_eq!(ids(&rendered).len(), prompt_tokens(&pod, MESSAGES, &message).await);
    // Errors are the same as for the other renderings.
    let answer = pod.post("/v1/messages/render", r#"{"model":"gpt","max_tokens":1,"messages":[]}"#).await;
    assert_eq!(
        (answer.status, &answer.json()["error"]["type"]),
        (StatusCode::NOT_FOUND, &json!("NotFoundError"))
    );
}

/// The model's name is checked like in other requests; no name and the empty one mean the base model.
#[tokio::test]
async fn what_the_request_itself_would_be_refused_for_is_refused() {
    let pod = start("--enable-scale-out").await;
    for (body, status) in [
        (json!({"prompt": "x", "model": "nobody"}), StatusCode::NOT_FOUND),
        (json!({"prompt": "x", "model": ""}), StatusCode::OK),
        (json!({"prompt": "x", "max_tokens": 9000}), StatusCode::BAD_REQUEST),
        (json!({"prompt": vec![0; 9000]}), StatusCode::BAD_REQUEST),
        (json!({}), StatusCode::BAD_REQUEST),
    ] {
        let answer = pod.post("/v1/completions/render", body.to_string()).await;
        let itself = pod.post(COMPLETIONS, body.to_string()).await;
        assert_eq!((answer.status, itself.status), (status, status), "{}", answer.body);
        if status != StatusCode::OK {
            assert_eq!(answer.json(), itself.json());
        }
    }
}

#[tokio::test]
async fn nothing_is_rendered_without_the_flag_or_by_older_ones() {
    for path in [CHATS, COMPLETIONS, RESPONSES] {
        let path = format!("{path}/render");
        let off = start("").await.post(&path, r#"{"prompt":"x"}"#).await;
        assert_eq!(
            (off.status, &off.json()["error"]["type"]),
            (StatusCode::FORBIDDEN, &json!("PermissionDeniedError"))
        );
        let older =
            start("--enable-scale-out --vllm-version 0.11").await.post(&path, r#"{"prompt":"x"}"#).await;
        assert_eq!(older.status, StatusCode::NOT_FOUND);
    }
}
