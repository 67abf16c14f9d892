//! The estimate corrects itself: by cached tokens in answers, by the cache's size, and by counters that start again.

use serde_json::{Value, json};

use crate::fixtures::{Call, Picker, Proxy, Scenario, get, post, until};

const JSON: [(&str, &str); 2] = [(":status", "200"), ("content-type", "application/json")];

/// Sends a completion that is picked for, and not answered yet.
async fn ask(proxy: &Proxy, prompt: &str) -> Call {
    let body = format!(r#"{{"model":"/model/qwen","prompt":"{prompt}"}}"#);
    let mut call = proxy.open().await;
    call.send_headers(None, &post("/v1/completions"), None, false).await;
    call.send_body(body.as_bytes(), true).await;
    call.full_duplex_answer().await.picked();
    call
}

/// Sends a completion and its answer; prompts have four bytes a token.
async fn complete(proxy: &Proxy, prompt: &str, cached_tokens: Option<usize>) {
    let details = cached_tokens
        .map(|n| format!(r#","prompt_tokens_details":{{"cached_tokens":{n}}}"#))
        .unwrap_or_default();
    let tokens = prompt.len() / 4;
    let answer =
        format!(r#"{{"choices":[],"usage":{{"prompt_tokens":{tokens},"completion_tokens":1{details}}}}}"#);
    ask(proxy, prompt).await.respond(&JSON, &[answer.as_bytes()]).await;
}

/// Bytes of `prompt` that the only pod is assumed to hold. Asking does not change what the tests look at.
async fn believed(picker: &Picker, proxy: &Proxy, prompt: &str) -> u64 {
    // Not answered, so that it teaches the picker nothing.
    drop(ask(proxy, prompt).await);
    let decision = picker.decisions(0).await.pop().unwrap();
    decision["candidates"][0]["matched_bytes"].as_u64().unwrap()
}

fn prompts() -> [String; 4] {
    ["a", "b", "c", "d"].map(|letter| letter.repeat(2048))
}

/// Sends four prompts, then the second again, answered with `cached_tokens`. Returns which of them are assumed to be
/// cached.
async fn after_answer(cached_tokens: Option<usize>) -> ([bool; 4], Picker) {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let prompts = prompts();
    for prompt in &prompts {
        complete(&proxy, prompt, Some(0)).await;
    }
    complete(&proxy, &prompts[1], cached_tokens).await;
    until(async || picker.decisions(4).await[0]["response"]["complete"] == true).await;
    let mut held = [false; 4];
    for (held, prompt) in held.iter_mut().zip(&prompts) {
        *held = believed(&picker, &proxy, prompt).await > 0;
    }
    (held, picker)
}

#[tokio::test]
async fn what_is_older_than_a_lost_prefix_is_lost_too() {
    let (held, picker) = after_answer(Some(0)).await;
    // The second is there again: it was just computed.
    assert_eq!(held, [false, true, true, true]);
    let metrics = picker.metrics().await;
    assert!(metrics.contains("epp_prefix_corrections_total 1\n"), "{metrics}");
    // Control: an answer as predicted, except for the block that is always computed and the rest of a block.
    let (held, picker) = after_answer(Some(480)).await;
    assert_eq!(held, [true; 4]);
    let metrics = picker.metrics().await;
    assert!(metrics.contains("epp_prefix_corrections_total 0\n"), "{metrics}");
}

#[tokio::test]
async fn an_engine_that_leaves_a_zero_out_means_it() {
    let (held, _picker) = after_answer(None).await;
    assert_eq!(held, [false, true, true, true]);
}

#[tokio::test]
async fn an_engine_that_never_tells_teaches_nothing() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let prompts = prompts();
    for prompt in prompts.iter().chain([&prompts[1]]) {
        complete(&proxy, prompt, None).await;
    }
    assert!(believed(&picker, &proxy, &prompts[0]).await > 0);
    assert!(picker.metrics().await.contains("epp_prefix_estimate_error_ratio_count 0\n"));
}

#[tokio::test]
async fn a_prompt_that_is_still_computed_is_no_evidence() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let [old, twin, ..] = prompts();
    complete(&proxy, &old, Some(0)).await;
    // Both are sent before either is computed: the second finds nothing, although nothing was evicted.
    let first = ask(&proxy, &twin).await;
    complete(&proxy, &twin, Some(0)).await;
    drop(first);
    assert!(believed(&picker, &proxy, &old).await > 0);
    assert!(picker.metrics().await.contains("epp_prefix_corrections_total 0\n"));
}

#[tokio::test]
async fn prediction_and_truth_are_told_together() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let [prompt, ..] = prompts();
    complete(&proxy, &prompt, Some(0)).await;
    complete(&proxy, &prompt, Some(256)).await;
    let responses = async || -> Vec<Value> {
        picker.decisions(0).await.into_iter().map(|decision| decision["response"].clone()).collect()
    };
    until(async || responses().await.iter().all(|response| response["complete"] == true)).await;
    let told: Vec<(f64, f64)> = responses()
        .await
        .iter()
        .map(|response| {
            let number = |value: &Value| value.as_f64().unwrap();
            (number(&response["predicted_cached_tokens"]), number(&response["usage"]["cached_tokens"]))
        })
        .collect();
    assert_eq!(told, [(0.0, 0.0), (512.0, 256.0)]);
    let metrics = picker.metrics().await;
    for line in [
        "epp_prefix_estimate_error_ratio_count 2\n",
        "epp_prefix_estimate_error_ratio_sum -0.5\n",
        "epp_prefix_estimate_error_ratio_bucket{le=\"-0.5\"} 1\n",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
}

#[tokio::test]
async fn the_caches_size_bounds_what_is_believed() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let prompts = prompts();
    for prompt in &prompts {
        complete(&proxy, prompt, Some(0)).await;
    }
    assert!(believed(&picker, &proxy, &prompts[0]).await > 0);
    // Three prompts of 512 tokens fit.
    picker.pods[0].set_idle_with("vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"96\"} 1.0\n");
    let pools =
        async || -> Value { serde_json::from_str(&get(picker.ports.metrics, "/debug/pools").await).unwrap() };
    until(async || pools().await["pools"][0]["endpoints"][0]["kv_tokens"] == 1536).await;
    until(async || pools().await["pools"][0]["endpoints"][0]["max_believed_bytes"] == 6144).await;
    assert_eq!(pools().await["pools"][0]["endpoints"][0]["bytes_per_token"], 4.0);
    // The first was used last, so the second has no room.
    assert_eq!(believed(&picker, &proxy, &prompts[1]).await, 0);
    assert!(believed(&picker, &proxy, &prompts[0]).await > 0);
}

#[tokio::test]
async fn a_counter_that_begins_anew_is_a_new_process() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let [prompt, ..] = prompts();
    let counted = async |n: u32| {
        picker.pods[0].set_idle_with(&format!("vllm:prompt_tokens_total{{engine=\"0\"}} {n}.0\n"));
        picker.wait_for_scrapes().await;
        believed(&picker, &proxy, &prompt).await
    };
    assert_eq!(counted(100).await, 0);
    assert_eq!(counted(200).await, 2048);
    assert_eq!(counted(50).await, 0);
    assert_eq!(counted(50).await, 2048);
}

/// Sends a request to `path` and answers it with `usage`.
async fn answered(proxy: &Proxy, path: &str, body: &Value, usage: &Value) {
    let mut call = proxy.open().await;
    call.send_headers(None, &post(path), None, false).await;
    call.send_body(body.to_string().as_bytes(), true).await;
    call.full_duplex_answer().await.picked();
    call.respond(&JSON, &[json!({"choices": [], "usage": usage}).to_string().as_bytes()]).await;
}

/// Sends six prompts, then a request with the fields `first` and one with the fields `second`, which finds nothing in
/// the cache. Returns how many of the six are forgotten.
async fn forgotten(path: &str, [first, second]: [Value; 2], completion_tokens: u32) -> usize {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let prompts = ["a", "b", "c", "d", "e", "f"].map(|letter| letter.repeat(2048));
    for prompt in &prompts {
        complete(&proxy, prompt, Some(0)).await;
    }
    for mut body in [first, second] {
        body.as_object_mut().unwrap().insert("model".to_owned(), "/model/qwen".into());
        let usage = json!({"prompt_tokens": 600, "completion_tokens": completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0}});
        answered(&proxy, path, &body, &usage).await;
    }
    until(async || picker.decisions(7).await[0]["response"]["complete"] == true).await;
    let mut n_forgotten = 0;
    for prompt in &prompts {
        n_forgotten += usize::from(believed(&picker, &proxy, prompt).await == 0);
    }
    n_forgotten
}

fn merged(body: &Value, more: &Value) -> Value {
    let mut body = body.clone();
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn only_a_request_that_looks_for_the_whole_text_is_evidence() {
    if test_skips::skips_slow() {
        return;
    }
    let text = "z".repeat(2048);
    let complete = json!({"prompt": text});
    let chat = json!({"messages": [{"role": "user", "content": text}]});
    let image =
        json!([{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": "https://x/y"}}]);
    let tools = |name: &str| json!({"tools": [{"type": "function", "function": {"name": name}}]});
    let twice = |body: &Value, more: &Value| [body.clone(), merged(body, more)];
    let [completions, chats] = ["/v1/completions", "/v1/chat/completions"];
    let disturbances = [
        (completions, twice(&complete, &json!({"prompt_logprobs": 1}))),
        (completions, twice(&complete, &json!({"prompt_logprobs": 0}))),
        (completions, twice(&complete, &json!({"echo": true, "logprobs": 1}))),
        (completions, twice(&complete, &json!({"prompt": ["new", text]}))),
        (completions, twice(&complete, &json!({"prompt": [text, "new"]}))),
        (completions, twice(&complete, &json!({"prompt_embeds": "AAAA"}))),
        (completions, twice(&complete, &json!({"truncate_prompt_tokens": 100}))),
        (completions, twice(&complete, &json!({"cache_salt": "s"}))),
        (chats, twice(&chat, &json!({"prompt_logprobs": 1}))),
        (chats, twice(&chat, &json!({"echo": true}))),
        (chats, twice(&chat, &tools("f"))),
        (chats, twice(&chat, &merged(&tools("f"), &json!({"tool_choice": "none"})))),
        (chats, [merged(&chat, &tools("f")), merged(&chat, &tools("g"))]),
        (chats, twice(&json!({"messages": [{"role": "user", "content": image}]}), &json!({}))),
        (chats, twice(&chat, &json!({"chat_template": "{{ messages }}"}))),
        (chats, twice(&chat, &json!({"chat_template_kwargs": {"date": "today"}}))),
        (chats, twice(&chat, &json!({"documents": [{"text": "t"}]}))),
        (chats, twice(&chat, &json!({"reasoning_effort": "high"}))),
        ("/v1/responses", twice(&json!({"input": text}), &json!({"previous_response_id": "r"}))),
        ("/v1/embeddings", twice(&json!({"input": text}), &json!({}))),
        ("/v1/messages", twice(&chat, &json!({}))),
        (
            "/inference/v1/generate",
            twice(&json!({"token_ids": vec![7; 512]}), &json!({"sampling_params": {"prompt_logprobs": 1}})),
        ),
    ];
    for (path, bodies) in disturbances {
        let what = format!("{path} {}", bodies[1]);
        assert_eq!(forgotten(path, bodies, 1).await, 0, "{what}");
    }
    // A request for which nothing was computed does not correct the estimate either.
    assert_eq!(forgotten(completions, twice(&complete, &json!({})), 0).await, 0);
    // Controls: requests without the difference, and with fields that change nothing.
    for (path, body) in [
        (completions, &complete),
        (chats, &chat),
        (chats, &merged(&chat, &json!({"chat_template_kwargs": {"enable_thinking": false}, "echo": false}))),
        (chats, &merged(&chat, &tools("f"))),
        ("/v1/responses", &json!({"input": text})),
        ("/inference/v1/generate", &json!({"token_ids": vec![7; 512]})),
        (
            completions,
            &merged(&complete, &json!({"prompt_logprobs": null, "echo": true, "prompt_embeds": null})),
        ),
    ] {
        assert_eq!(forgotten(path, twice(body, &json!({})), 1).await, 6, "{path} {body}");
    }
}

#[tokio::test]
async fn a_request_that_skips_the_cache_finds_nothing_in_it() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let [prompt, ..] = prompts();
    complete(&proxy, &prompt, Some(0)).await;
    let usage =
        json!({"prompt_tokens": 512, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 0}});
    let body = json!({"model": "/model/qwen", "prompt": prompt, "prompt_logprobs": 1});
    answered(&proxy, "/v1/completions", &body, &usage).await;
    let decision = picker.decisions(0).await.pop().unwrap();
    assert_eq!((&decision["matched_bytes"], &decision["total_bytes"]), (&0.into(), &2048.into()));
    // Its prompt is cached nevertheless.
    let other = "n".repeat(2048);
    let body = json!({"model": "/model/qwen", "prompt": other, "prompt_logprobs": 1});
    answered(&proxy, "/v1/completions", &body, &usage).await;
    assert_eq!(believed(&picker, &proxy, &other).await, 2048);
}
