//! Log probabilities: made up, but of the right shape, and with all of vLLM's errors about them.

use crate::server_fixtures::{Answer, TestPod, start};
use http::StatusCode;
use serde_json::{Value, json};

async fn post(pod: &TestPod, path: &str, body: &Value) -> Answer {
    let answer = pod.post(path, body.to_string()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    answer
}

fn chat(fields: Value) -> Value {
    let mut body =
        json!({"messages": [{"role": "user", "content": "Tell me."}], "max_tokens": 12, "logprobs": true});
    fields.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
    body
}

/// Checks the rules for the log probabilities of one place: they are in order, and their sum is not more than 1.
fn check_place(logprobs: &[f64]) {
    assert!(logprobs.is_sorted_by(|first, second| first >= second), "{logprobs:?}");
    let sum: f64 = logprobs.iter().map(|logprob| logprob.exp()).sum();
    assert!(sum > 0.0 && sum <= 1.0 && logprobs.iter().all(|logprob| *logprob < 0.0), "{logprobs:?}");
}

fn numbers(values: &Value) -> Vec<f64> {
    values.as_array().unwrap().iter().map(|value| value["logprob"].as_f64().unwrap()).collect()
}

#[tokio::test]
async fn chats_tell_each_token_and_its_rivals() {
    let pod = start("").await;
    let body = chat(json!({"top_logprobs": 4}));
    let answer = post(&pod, "/v1/chat/completions", &body).await.json();
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 12);
    let mut text = String::new();
    for place in content {
        let top = place["top_logprobs"].as_array().unwrap();
        assert_eq!(top.len(), 4);
        check_place(&numbers(&place["top_logprobs"]));
        assert_eq!((&top[0]["token"], &top[0]["logprob"]), (&place["token"], &place["logprob"]));
        let token = place["token"].as_str().unwrap();
        assert_eq!(place["bytes"], json!(token.as_bytes()));
        let mut tokens: Vec<_> = top.iter().map(|rival| rival["token"].as_str().unwrap()).collect();
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(tokens.len(), 4, "{place}");
        text.push_str(token);
    }
    assert_eq!(answer["choices"][0]["message"]["content"], text);
    assert_eq!(post(&pod, "/v1/chat/completions", &body).await.json()["choices"], answer["choices"]);
    let other = post(&start("--seed 7").await, "/v1/chat/completions", &body).await.json();
    assert_ne!(other["choices"][0]["logprobs"], answer["choices"][0]["logprobs"]);
    // A stream has the same, piece by piece.
    let streamed =
        post(&pod, "/v1/chat/completions", &chat(json!({"top_logprobs": 4, "stream": true}))).await;
    let frames = streamed.frames().into_iter().filter(|frame| *frame != "[DONE]");
    let pieces = frames.flat_map(|frame| {
        let frame: Value = serde_json::from_str(frame).unwrap();
        frame["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default()
    });
    assert_eq!(&pieces.collect::<Vec<_>>(), content);
    let bare = post(&pod, "/v1/chat/completions", &chat(json!({}))).await.json();
    assert_eq!(bare["choices"][0]["logprobs"]["content"][3]["top_logprobs"], json!([]));
}

#[tokio::test]
async fn the_eos_and_split_characters_are_told_too() {
    let file = scripted("héllo", "𒀀🦡");
    let pod = start(&format!("--scripted-replies {}", file.path().display())).await;
    let mut body = chat(json!({"max_tokens": null}));
    body["messages"][0]["content"] = json!("héllo");
    let answer = post(&pod, "/v1/chat/completions", &body).await.json();
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let tokens: Vec<_> = content.iter().map(|place| place["token"].as_str().unwrap()).collect();
    assert_eq!(tokens.last(), Some(&"<|im_end|>"));
    // The token that completes a character has all of it; those before have nothing.
    assert_eq!(tokens[..tokens.len() - 1].concat(), "𒀀🦡");
    assert!(tokens.contains(&"") && !tokens.concat().contains('\u{fffd}'), "{tokens:?}");
    let ids = chat(json!({"return_tokens_as_token_ids": true, "top_logprobs": 1, "max_tokens": 1}));
    let place =
        post(&pod, "/v1/chat/completions", &ids).await.json()["choices"][0]["logprobs"]["content"][0].clone();
    assert!(place["token"].as_str().unwrap().starts_with("token_id:"), "{place}");
    assert_ne!(place["bytes"], place["top_logprobs"][0]["bytes"]);
}

fn scripted(text: &str, reply: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    let script = json!([{"last_user_text": [text], "reply": reply}]);
    std::fs::write(file.path(), script.to_string()).unwrap();
    file
}

/// Returns `logprobs` of a completion, after a check.
fn check_completion(logprobs: &Value, text: &str, first_offset: u64, n_first_null: usize) {
    let tokens: Vec<&str> =
        logprobs["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(tokens.concat(), text);
    let mut offset = first_offset;
    for (idx, token) in tokens.iter().enumerate() {
        assert_eq!(logprobs["text_offset"][idx], offset);
        offset += token.chars().count() as u64;
        let (sampled, top) = (&logprobs["token_logprobs"][idx], &logprobs["top_logprobs"][idx]);
        if idx < n_first_null {
            assert_eq!((sampled, top), (&Value::Null, &Value::Null));
            continue;
        }
        let top = top.as_object().unwrap();
        assert_eq!(top.len(), 3);
        assert_eq!(&top[*token], sampled);
        check_place(&top.values().map(|logprob| logprob.as_f64().unwrap()).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn completions_tell_offsets_and_echo_the_prompt() {
    let pod = start("").await;
    let body = json!({"prompt": "Zork can", "max_tokens": 8, "ignore_eos": true, "logprobs": 3});
    let choice = post(&pod, "/v1/completions", &body).await.json()["choices"][0].clone();
    let text = choice["text"].as_str().unwrap().to_owned();
    check_completion(&choice["logprobs"], &text, 0, 0);
    assert_eq!(choice["prompt_logprobs"], Value::Null);
    let mut echo = body.clone();
    echo["echo"] = json!(true);
    let echoed = post(&pod, "/v1/completions", &echo).await.json()["choices"][0].clone();
    assert_eq!(echoed["text"], format!("Zork can{text}"));
    check_completion(&echoed["logprobs"], &format!("Zork can{text}"), 0, 1);
    let prompt = echoed["prompt_logprobs"].as_array().unwrap();
    assert_eq!((prompt.len(), &prompt[0]), (3, &Value::Null));
    assert_eq!(prompt[2]["646"]["decoded_token"], " can");
    assert_eq!(prompt[2].as_object().unwrap().len(), 3);
    echo["stream"] = json!(true);
    let streamed = post(&pod, "/v1/completions", &echo).await;
    let frames: Vec<Value> =
        streamed.frames().iter().filter_map(|frame| serde_json::from_str(frame).ok()).collect();
    let mut offset = 0;
    for (idx, frame) in frames.iter().enumerate() {
        let choice = &frame["choices"][0];
        let text = choice["text"].as_str().unwrap();
        check_completion(&choice["logprobs"], text, offset, usize::from(idx == 0));
        offset += text.chars().count() as u64;
    }
    let nothing = json!({"prompt": "Zork can", "max_tokens": 0, "echo": true, "logprobs": 1});
    let nothing = post(&pod, "/v1/completions", &nothing).await.json()["choices"][0].clone();
    assert_eq!(nothing["logprobs"]["tokens"], json!(["Z", "ork", " can"]));
}

#[tokio::test]
async fn counts_beyond_the_servers_are_refused() {
    let pod = start("").await;
    let check = async |path: &str, body: Value, param: &str, message: &str| {
        let answer = pod.post(path, body.to_string()).await;
        let error = answer.json()["error"].clone();
        assert_eq!((error["param"].as_str(), error["message"].as_str()), (Some(param), Some(message)));
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    };
    let completion = |fields: Value| {
        let mut body = json!({"prompt": "x"});
        fields.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        body
    };
    let chats = "/v1/chat/completions";
    let completions = "/v1/completions";
    let many = "Requested sample logprobs of 21, which is greater than max allowed: 20 (parameter=logprobs, value=21)";
    check(completions, completion(json!({"logprobs": 21})), "logprobs", many).await;
    check(chats, chat(json!({"top_logprobs": 21})), "logprobs", many).await;
    let all = "Requested sample logprobs of 152064, which is greater than max allowed: 20 (parameter=logprobs, value=152064)";
    check(completions, completion(json!({"logprobs": -1})), "logprobs", all).await;
    let prompt = "Requested prompt logprobs of 30, which is greater than max allowed: 20 (parameter=prompt_logprobs, value=30)";
    check(completions, completion(json!({"prompt_logprobs": 30})), "prompt_logprobs", prompt).await;
    let streamed = "`prompt_logprobs` are not available when `stream=True`. (parameter=prompt_logprobs)";
    let stream = json!({"prompt_logprobs": 1, "stream": true});
    check(completions, completion(stream), "prompt_logprobs", streamed).await;
    let off = "when using `top_logprobs`, `logprobs` must be set to true. (parameter=top_logprobs)";
    check(chats, chat(json!({"top_logprobs": 2, "logprobs": false})), "top_logprobs", off).await;
    let few = "`logprobs` must be a positive value or -1. (parameter=logprobs, value=-2)";
    check(completions, completion(json!({"logprobs": -2})), "logprobs", few).await;
    let pod = start("--max-logprobs 30").await;
    let choice = post(&pod, completions, &completion(json!({"logprobs": 30, "max_tokens": 1}))).await.json();
    assert_eq!(choice["choices"][0]["logprobs"]["top_logprobs"][0].as_object().unwrap().len(), 30);
}
