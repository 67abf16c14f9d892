//! Frames of streams, and comments that keep streams alive between them.

use crate::server_fixtures::{Answer, TestPod, start};
use crate::server_lifecycle::{LONG, open, wait_for};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

async fn stream(pod: &TestPod, fields: Value) -> Answer {
    let mut body = json!({"prompt": "Tell me of the sea.", "max_tokens": 11, "ignore_eos": true, "stream": true,
        "return_token_ids": true});
    fields.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
    pod.post("/v1/completions", body.to_string()).await
}

/// Returns the number of tokens in each frame.
fn sizes(answer: &Answer) -> Vec<usize> {
    let frames = answer.frames().into_iter().filter_map(|frame| serde_json::from_str::<Value>(frame).ok());
    let sizes = frames.filter_map(|frame| Some(frame["choices"].get(0)?["token_ids"].as_array()?.len()));
    sizes.collect()
}

#[tokio::test]
async fn an_interval_puts_tokens_together() {
    let pod = start("--stream-interval 4").await;
    let whole = stream(&start("").await, json!({})).await;
    assert_eq!(sizes(&whole), [1; 11]);
    let batched = stream(&pod, json!({})).await;
    // The first and the last frame do not wait.
    assert_eq!(sizes(&batched), [1, 4, 4, 2]);
    assert_eq!(batched.text(), whole.text());
    // A request may raise the server's interval, but not lower it.
    assert_eq!(sizes(&stream(&pod, json!({"stream_interval": 6})).await), [1, 6, 4]);
    assert_eq!(sizes(&stream(&pod, json!({"stream_interval": 2})).await), [1, 4, 4, 2]);
    let counted = json!({"stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    let counted = stream(&pod, counted).await;
    let counts: Vec<Value> = counted
        .frames()
        .iter()
        .filter_map(|frame| serde_json::from_str::<Value>(frame).ok())
        .map(|frame| frame["usage"]["completion_tokens"].clone())
        .collect();
    assert_eq!(counts, [1, 5, 9, 11, 11].map(|n| json!(n)));
}

/// Each token is timed when it leaves; tokens of a plain answer never leave alone.
#[tokio::test]
async fn every_streamed_token_leaves_through_the_outbox() {
    let pod = start("--mock-metrics").await;
    stream(&pod, json!({"stream": false})).await;
    assert_eq!(pod.metric("mock_vllm:token_lateness_seconds_count").await, 0.0);
    stream(&pod, json!({"n": 2})).await;
    assert_eq!(pod.metric("mock_vllm:token_lateness_seconds_count").await, 22.0);
}

/// The second stream waits and sends comments, because there is one seat.
#[tokio::test]
async fn a_silent_stream_sends_comments() {
    let pod = start(&format!("{LONG} --max-num-seqs 1 --sse-keep-alive-interval 0.5")).await;
    let _first = open(&pod, true).await;
    wait_for(&pod, |gauges| gauges.running == 1).await;
    let mut second = open(&pod, true).await;
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while text.matches(": keep-alive\n\n").count() < 2 {
        let n_read = second.read(&mut buffer).await.unwrap();
        assert!(n_read > 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&buffer[..n_read]));
    }
    assert!(text.starts_with("HTTP/1.1 200") && !text.contains("data: "), "{text}");
}

#[tokio::test]
async fn a_stream_that_speaks_sends_none() {
    let pod = start("--sse-keep-alive-interval 3600").await;
    assert!(!stream(&pod, json!({})).await.body.contains("keep-alive"));
    let off = start("--sse-keep-alive-interval 0").await;
    assert!(!stream(&off, json!({})).await.body.contains("keep-alive"));
}
