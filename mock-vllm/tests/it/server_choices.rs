//! Answers with several choices: `n` samples, several prompts, and what they share.

use crate::server_fixtures::{Answer, TestPod, start};
use crate::server_lifecycle::wait_for;
use http::StatusCode;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Returns each choice of a stream: its text, the reason why it ended, and the number of its frames.
fn streamed(answer: &Answer) -> BTreeMap<u64, (String, String, usize)> {
    let mut choices: BTreeMap<u64, (String, String, usize)> = BTreeMap::new();
    for frame in answer.frames().into_iter().filter(|frame| *frame != "[DONE]") {
        let frame: Value = serde_json::from_str(frame).unwrap();
        for choice in frame["choices"].as_array().unwrap() {
            let (text, finish, n_frames) = choices.entry(choice["index"].as_u64().unwrap()).or_default();
            *n_frames += 1;
            text.push_str(choice["text"].as_str().or(choice["delta"]["content"].as_str()).unwrap());
            finish.push_str(choice["finish_reason"].as_str().unwrap_or_default());
        }
    }
    choices
}

async fn texts(pod: &TestPod, body: Value) -> Vec<String> {
    let answer = pod.post("/v1/completions", body.to_string()).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    let choices = answer.json()["choices"].as_array().unwrap().clone();
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
    }
    choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn samples_differ_and_their_prompt_counts_once() {
    let pod = start("").await;
    let body = json!({"prompt": "Tell me of the sea.", "n": 3, "max_tokens": 30});
    let first = texts(&pod, body.clone()).await;
    assert!(first[0] != first[1] && first[1] != first[2] && first[0] != first[2], "{first:?}");
    assert_eq!(texts(&pod, body.clone()).await, first);
    // Sample i of a seeded request is the request with the seed plus i.
    let seeded =
        |seed: u32, n: u32| json!({"prompt": "Tell me of the sea.", "n": n, "max_tokens": 30, "seed": seed});
    assert_eq!(texts(&pod, seeded(41, 2)).await[1], texts(&pod, seeded(42, 1)).await[0]);
    let answer = pod.post("/v1/completions", body.to_string()).await.json();
    let usage = &answer["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(6), &json!(90)));
    assert_eq!(usage["total_tokens"], 96);
}

#[tokio::test]
async fn a_stream_has_a_role_and_an_end_for_every_choice() {
    let pod = start("").await;
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "n": 3, "max_tokens": 5, "ignore_eos": true,
        "stream": true, "stream_options": {"include_usage": true}});
    let answer = pod.post("/v1/chat/completions", body.to_string()).await;
    let roles =
        answer.frames().iter().take(3).filter(|frame| frame.contains(r#""role":"assistant""#)).count();
    assert_eq!(roles, 3, "{}", answer.body);
    let choices = streamed(&answer);
    assert_eq!(choices.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
    for (text, finish, n_frames) in choices.values() {
        assert_eq!((finish.as_str(), *n_frames), ("length", 6), "{text}");
    }
    assert_eq!(answer.stream_usage()["completion_tokens"], 15);
    // A plain answer has the same text.
    let mut plain = body;
    plain["stream"] = json!(false);
    plain["stream_options"] = Value::Null;
    let plain = pod.post("/v1/chat/completions", plain.to_string()).await.json();
    for (index, (text, ..)) in choices {
        assert_eq!(plain["choices"][usize::try_from(index).unwrap()]["message"]["content"], text);
    }
}

#[tokio::test]
async fn choices_of_several_prompts_are_numbered_through() {
    let pod = start("").await;
    let alone = async |prompt: &str| texts(&pod, json!({"prompt": prompt, "n": 2, "max_tokens": 8})).await;
    let [first, second] = [alone("One.").await, alone("Two, three.").await];
    let both = json!({"prompt": ["One.", "Two, three."], "n": 2, "max_tokens": 8});
    let expected = [first[0].clone(), first[1].clone(), second[0].clone(), second[1].clone()];
    assert_eq!(texts(&pod, both.clone()).await, expected);
    let ids = json!({"prompt": [[3966, 13], [11613, 11, 2326, 13]], "n": 2, "max_tokens": 8});
    let answer = pod.post("/v1/completions", ids.to_string()).await.json();
    assert_eq!(answer["usage"]["prompt_tokens"], 6);
    assert_eq!(answer["choices"].as_array().unwrap().len(), 4);
    let mut stream = both;
    stream["stream"] = json!(true);
    let streamed = streamed(&pod.post("/v1/completions", stream.to_string()).await);
    assert_eq!(streamed.values().map(|(text, ..)| text.as_str()).collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn siblings_share_the_prompts_blocks() {
    let pod = start("--jitter 0").await;
    let body = json!({"prompt": vec![785; 200], "n": 4, "max_tokens": 2, "ignore_eos": true});
    pod.post("/v1/completions", body.to_string()).await;
    // The first computes everything; the others find its twelve full blocks.
    assert_eq!(pod.metric("vllm:prefix_cache_queries_total").await, 800.0);
    assert_eq!(pod.metric("vllm:prefix_cache_hits_total").await, 3.0 * 192.0);
    assert_eq!(pod.metric("vllm:request_params_n_sum").await, 4.0);
    assert_eq!(pod.metric("vllm:request_params_n_count").await, 1.0);
    assert_eq!(pod.metric("vllm:request_generation_tokens_count").await, 4.0);
}

#[tokio::test]
async fn a_client_that_goes_ends_all_choices() {
    let pod = start("--time-scale 10").await;
    let body = json!({"prompt": ["a", "b"], "n": 2, "max_tokens": 5000, "ignore_eos": true, "stream": true});
    {
        let request = pod.post("/v1/completions", body.to_string());
        let running = wait_for(&pod, |gauges| gauges.running == 4);
        tokio::select! {
            _ = request => panic!("it takes minutes"),
            gauges = running => assert_eq!(gauges.running, 4),
        }
    }
    wait_for(&pod, |gauges| gauges.running == 0).await;
}

#[tokio::test]
async fn echoed_prompts_and_ids_are_told_on_request() {
    let pod = start("").await;
    let body = json!({"prompt": "Zork can", "echo": true, "max_tokens": 3, "ignore_eos": true});
    let reply = texts(&pod, json!({"prompt": "Zork can", "max_tokens": 3, "ignore_eos": true})).await;
    assert_eq!(texts(&pod, body).await[0], format!("Zork can{}", reply[0]));
    let by_id = json!({"prompt": [57, 669, 646], "echo": true, "max_tokens": 0});
    let answer = pod.post("/v1/completions", by_id.to_string()).await.json();
    assert_eq!(
        (&answer["choices"][0]["text"], &answer["usage"]["completion_tokens"]),
        (&json!("Zork can"), &json!(1))
    );
    let ids = json!({"prompt": "Zork can", "return_token_ids": true, "max_tokens": 2, "stream": true});
    let answer = pod.post("/v1/completions", ids.to_string()).await;
    let choice = |frame: &str| serde_json::from_str::<Value>(frame).unwrap()["choices"][0].clone();
    let [first, second, ..] = answer.frames()[..] else { panic!("{}", answer.body) };
    assert_eq!(choice(first)["prompt_token_ids"], json!([57, 669, 646]));
    assert_eq!(choice(second)["prompt_token_ids"], Value::Null);
    assert_eq!(choice(second)["token_ids"].as_array().unwrap().len(), 1);
    let chat = json!({"messages": [{"role": "assistant", "content": "Once upon"}], "echo": true, "max_tokens": 2,
        "return_prompt_text": true, "add_generation_prompt": false});
    let answer = pod.post("/v1/chat/completions", chat.to_string()).await.json();
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(content.starts_with("Once upon") && content.len() > 9, "{content}");
    assert!(
        answer["prompt_text"].as_str().unwrap().ends_with("<|im_start|>assistant\nOnce upon<|im_end|>\n")
    );
}
