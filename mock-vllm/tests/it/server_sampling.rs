//! Ends of replies, and rejected parameters with vLLM's error texts.

use crate::server_fixtures::{Answer, TestPod, start};
use http::StatusCode;
use serde_json::{Value, json};

async fn complete(pod: &TestPod, fields: Value) -> Answer {
    let mut body = json!({"prompt": "Tell me of the sea.", "max_tokens": 60, "ignore_eos": true});
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    pod.post("/v1/completions", body.to_string()).await
}

async fn choice(pod: &TestPod, fields: Value) -> Value {
    let answer = complete(pod, fields).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    answer.json()["choices"][0].clone()
}

#[tokio::test]
async fn stop_strings_stop_and_are_named() {
    let pod = start("").await;
    let whole = choice(&pod, json!({})).await["text"].as_str().unwrap().to_owned();
    // This string spans tokens and begins within one.
    let stop = &whole[30..42];
    let cut = &whole[..whole.find(stop).unwrap()];
    let hidden = choice(&pod, json!({"stop": [stop]})).await;
    assert_eq!(hidden["text"], cut);
    assert_eq!((&hidden["finish_reason"], &hidden["stop_reason"]), (&json!("stop"), &json!(stop)));
    let shown = choice(&pod, json!({"stop": stop, "include_stop_str_in_output": true})).await;
    assert_eq!(shown["text"], format!("{cut}{stop}"));
    let streamed = complete(&pod, json!({"stop": ["no such text", stop], "stream": true})).await;
    assert_eq!(streamed.text(), cut);
    let frames = streamed.frames();
    let last: Value = serde_json::from_str(frames[frames.len() - 2]).unwrap();
    assert_eq!(last["choices"][0]["stop_reason"], stop);
    // Generation stops there too: the tokens after it cost nothing.
    let n_generated =
        complete(&pod, json!({"stop": [stop]})).await.json()["usage"]["completion_tokens"].clone();
    assert!(n_generated.as_u64().unwrap() < 30, "{n_generated}");
}

#[tokio::test]
async fn stop_tokens_stop_and_are_shown_on_request() {
    let pod = start("").await;
    let ids = choice(&pod, json!({"return_token_ids": true})).await["token_ids"].as_array().unwrap().clone();
    let stop = ids[10].clone();
    let first = ids.iter().position(|id| *id == stop).unwrap();
    let stopped = choice(&pod, json!({"stop_token_ids": [stop], "return_token_ids": true})).await;
    assert_eq!((&stopped["finish_reason"], &stopped["stop_reason"]), (&json!("stop"), &stop));
    assert_eq!(stopped["token_ids"].as_array().unwrap().len(), first + 1);
    let shown = choice(&pod, json!({"stop_token_ids": [stop], "include_stop_str_in_output": true})).await;
    assert!(shown["text"].as_str().unwrap().len() > stopped["text"].as_str().unwrap().len());
    let later = choice(&pod, json!({"stop_token_ids": ids, "min_tokens": 7, "return_token_ids": true})).await;
    assert_eq!(later["token_ids"].as_array().unwrap().len(), 7);
}

#[tokio::test]
async fn the_context_cuts_a_reply_short() {
    let pod = start("--max-model-len 64").await;
    let body =
        json!({"prompt": vec![785; 60], "max_tokens": 64, "ignore_eos": true, "stop": ["no such text"]});
    let answer = pod.post("/v1/completions", body.to_string()).await.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 4);
}

async fn check_refused(pod: &TestPod, fields: Value, param: Option<&str>, message: &str) {
    let answer = complete(pod, fields).await;
    let error = answer.json()["error"].clone();
    assert_eq!(error["message"], message);
    assert_eq!((error["param"].as_str(), answer.status.as_u16()), (param, 400), "{message}");
    assert_eq!(error["type"], "BadRequestError");
}

#[tokio::test]
async fn values_out_of_range_are_refused() {
    let pod = start("").await;
    let check = async |fields: Value, param: Option<&str>, message: &str| {
        check_refused(&pod, fields, param, message).await;
    };
    check(json!({"n": 0}), None, "n must be at least 1, got 0.").await;
    let many = "n must be at most 16384, got 16385. To increase this limit, set the VLLM_MAX_N_SEQUENCES environment variable.";
    check(json!({"n": 16385}), None, many).await;
    check(json!({"n": 2, "temperature": 0}), None, "n must be 1 when using greedy sampling, got 2.").await;
    check(json!({"presence_penalty": 2.5}), None, "presence_penalty must be in [-2, 2], got 2.5.").await;
    check(json!({"frequency_penalty": -3}), None, "frequency_penalty must be in [-2, 2], got -3.0.").await;
    check(json!({"repetition_penalty": 0}), None, "repetition_penalty must be greater than zero, got 0.0.")
        .await;
    let top_p = "top_p must be in (0, 1], got 0.0. (parameter=top_p, value=0.0)";
    check(json!({"top_p": 0}), Some("top_p"), top_p).await;
    check(json!({"top_k": -2}), None, "top_k must be 0 (disable), or at least 1, got -2.").await;
    check(json!({"min_p": 1.5}), None, "min_p must be in [0, 1], got 1.5.").await;
    let min_tokens = "min_tokens must be less than or equal to max_tokens=60, got 61.";
    check(json!({"min_tokens": 61}), None, min_tokens).await;
    check(json!({"min_tokens": -1}), None, "min_tokens must be greater than or equal to 0, got -1.").await;
    check(json!({"stop": ["a", ""]}), None, "stop cannot contain an empty string.").await;
    let stop_token = "token_id(s) [-1, 200000] in stop_token_ids contain out-of-vocab token ids. Vocabulary size: 152064 \
        (parameter=stop_token_ids, value=[-1, 200000])";
    check(json!({"stop_token_ids": [-1, 5, 200000]}), Some("stop_token_ids"), stop_token).await;
    let salt = "Parameter 'cache_salt' must be a non-empty string if provided. (parameter=cache_salt)";
    check(json!({"cache_salt": ""}), Some("cache_salt"), salt).await;
    let prompt = "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)";
    check(json!({"prompt": ""}), Some("prompt"), prompt).await;
    check(json!({"prompt": []}), None, "The decoder prompt cannot be empty").await;
    // Values at the edges are accepted.
    let edges =
        json!({"top_p": 1, "top_k": -1, "min_p": 0, "presence_penalty": -2, "temperature": 2, "n": 1});
    assert_eq!(complete(&pod, edges).await.status, StatusCode::OK);
}

#[tokio::test]
async fn shapes_that_are_wrong_are_bad_requests() {
    let pod = start("").await;
    let check = async |fields: Value, param: &str| {
        let answer = complete(&pod, fields).await;
        let error = &answer.json()["error"];
        assert_eq!((&error["type"], &error["param"]), (&json!("Bad Request"), &json!(param)), "{error}");
    };
    check(json!({"stop": ["a", "b", "c", "d", "e"]}), "body.stop").await;
    check(json!({"stop": 5}), "body.stop").await;
    check(json!({"stream_interval": 0}), "body.stream_interval").await;
    check(json!({"prompt": ["a", 5]}), "body.prompt").await;
    check(json!({"n": "many"}), "body.n").await;
    check(json!({"stop_token_ids": ["a"]}), "body.stop_token_ids").await;
}
