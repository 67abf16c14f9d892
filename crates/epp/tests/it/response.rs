//! Responses: the usage is found and the model's name restored wherever chunks are cut; all other bytes pass unchanged.

use bytes::Bytes;
use ext_proc::response::{Layout, ResponseReader, Usage};
use proptest::prelude::any;
use proptest::{prop_assert_eq, proptest};
use serde_json::Value;

use crate::fixtures::{Picker, Scenario, post};

const JSON: &str = r#"{"id":"cmpl-1","model" : "target","choices":[{"text":"the \"model\":\"target\" says {","model":"target"}],"n":9007199254740993,"usage":{"prompt_tokens":11,"total_tokens":111,"completion_tokens":100,"prompt_tokens_details":{"cached_tokens":7}}}"#;

const SSE: &str = concat!(
    ": a comment, data: {\"model\":\"target\"}\r\n",
    "data: {\"model\":\"target\",\"choices\":[{\"text\":\"hi\"}],\"usage\":null}\r\n\r\n",
    "event: chunk\ndata:{\"choices\":[],\"model\":\"target\",\n",
    "data: \"usage\":{\"prompt_tokens\":7,\"total_tokens\":17,\"completion_tokens\":10,",
    "\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n",
    "data: [DONE]\n\n",
);

const RESPONSES_API: &str = concat!(
    "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"model\":\"target\"}}\n\n",
    "event: response.completed\ndata: {\"response\":{\"usage\":{\"input_tokens\":5,\"output_tokens\":6,",
    "\"input_tokens_details\":{\"cached_tokens\":1}},\"model\":\"target\"}}\n\n",
);

const MESSAGES_API: &str = concat!(
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"target\",\"content\":[],",
    "\"usage\":{\"input_tokens\":3,\"output_tokens\":0}}}\n\n",
    "event: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":{\"input_tokens\":3,\"output_tokens\":6,",
    "\"cache_creation_input_tokens\":20,\"cache_read_input_tokens\":100}}\n\n",
);

fn usage(prompt: u32, completion: u32, cached: u32) -> Usage {
    Usage { prompt_tokens: Some(prompt), completion_tokens: Some(completion), cached_tokens: Some(cached) }
}

/// The output for these chunks, and the usage that was read.
fn read(layout: Layout, model: Option<&str>, chunks: &[&[u8]]) -> (String, Option<Usage>) {
    let model = model.map(|model| Bytes::from(serde_json::to_string(model).unwrap()));
    let mut reader = ResponseReader::new(layout, model);
    let mut out = Vec::new();
    for chunk in chunks {
        for part in reader.push(&Bytes::copy_from_slice(chunk)) {
            out.extend_from_slice(&part);
        }
    }
    assert_eq!(reader.n_bytes(), chunks.iter().map(|chunk| chunk.len() as u64).sum::<u64>());
    (String::from_utf8(out).unwrap(), reader.usage())
}

/// Checks the output for the body cut in two anywhere, in three at some places, and byte by byte.
fn check(layout: Layout, body: &str, renamed: &str, expected: Option<Usage>) {
    let bytes = body.as_bytes();
    let mut cuts: Vec<Vec<&[u8]>> = (0..=bytes.len()).map(|at| vec![&bytes[..at], &bytes[at..]]).collect();
    cuts.extend((1..40).map(|size| bytes.chunks(size).collect()));
    for chunks in cuts {
        assert_eq!(read(layout, None, &chunks), (body.to_owned(), expected), "{chunks:?}");
        assert_eq!(read(layout, Some("al\"ias"), &chunks), (renamed.to_owned(), expected), "{chunks:?}");
    }
}

#[test]
fn a_json_document_is_read_at_its_top() {
    let renamed = JSON.replacen(r#""target""#, r#""al\"ias""#, 1);
    assert!(
        renamed.contains(r#"\"target\""#) && renamed.contains(r#""model":"target""#),
        "a poor test: {renamed}"
    );
    check(Layout::Json, JSON, &renamed, Some(usage(11, 100, 7)));
}

#[test]
fn an_event_stream_has_a_document_in_each_event() {
    let comment_end = SSE.find('\n').unwrap();
    let renamed = SSE[..comment_end].to_owned() + &SSE[comment_end..].replace(r#""target""#, r#""al\"ias""#);
    check(Layout::EventStream, SSE, &renamed, Some(usage(7, 10, 4)));
}

#[test]
fn the_responses_api_wraps_its_document() {
    let renamed = RESPONSES_API.replace(r#""target""#, r#""al\"ias""#);
    check(Layout::EventStream, RESPONSES_API, &renamed, Some(usage(5, 6, 1)));
}

#[test]
fn the_messages_api_counts_what_is_cached_beside_the_rest() {
    let renamed = MESSAGES_API.replace(r#""target""#, r#""al\"ias""#);
    check(Layout::EventStream, MESSAGES_API, &renamed, Some(usage(123, 6, 100)));
    // Control: engines that do not report cached tokens count the whole prompt.
    let older = r#"{"usage":{"input_tokens":123,"output_tokens":6}}"#;
    let expected = Usage { cached_tokens: None, ..usage(123, 6, 0) };
    check(Layout::Json, older, older, Some(expected));
    // A message in a choice is not the response.
    let chat = r#"{"choices":[{"message":{"usage":{"input_tokens":1},"model":"target"}}]}"#;
    check(Layout::Json, chat, chat, None);
}

#[test]
fn what_is_not_json_passes() {
    for body in [
        "{\"model\" \"target\"}",
        "\u{0}\u{1}\u{2}",
        "Internal Server Error",
        "[{\"model\":\"target\"}]",
        "\"model\"",
    ] {
        check(Layout::Json, body, body, None);
    }
    check(Layout::Opaque, JSON, JSON, None);
    // An event that is not JSON does not hide the next one.
    let sse = "data: oops}{\n\ndata: {\"usage\":{\"prompt_tokens\":3}}\n\n";
    let prompt = Usage { prompt_tokens: Some(3), ..Usage::default() };
    check(Layout::EventStream, sse, sse, Some(prompt));
}

#[test]
fn a_response_without_usage_or_with_a_strange_one_says_nothing() {
    for body in [
        "{}",
        r#"{"usage":null}"#,
        r#"{"usage":[1]}"#,
        r#"{"usage":{"prompt_tokens":"7","completion_tokens":-1}}"#,
        r#"{"choices":{"usage":{"prompt_tokens":7}}}"#,
    ] {
        check(Layout::Json, body, body, None);
    }
}

#[test]
fn the_layout_is_told_by_the_headers() {
    for (content_type, content_encoding, expected) in [
        (None, None, Layout::Json),
        (Some("application/json"), Some("identity"), Layout::Json),
        (Some("application/problem+json; charset=utf-8"), None, Layout::Json),
        (Some("Text/Event-Stream; charset=utf-8"), None, Layout::EventStream),
        (Some("text/event-stream"), Some("gzip"), Layout::Opaque),
        (Some("application/json"), Some("br"), Layout::Opaque),
        (Some("audio/mpeg"), None, Layout::Opaque),
    ] {
        assert_eq!(
            Layout::new(content_type, content_encoding),
            expected,
            "{content_type:?} {content_encoding:?}"
        );
    }
}

proptest! {
    /// Without a name to restore, all bytes pass unchanged.
    #[test]
    fn any_bytes_pass(body: Vec<u8>, size in 1_usize..20, stream in any::<bool>()) {
        let layout = if stream { Layout::EventStream } else { Layout::Json };
        let mut reader = ResponseReader::new(layout, None);
        let parts = body.chunks(size).flat_map(|chunk| reader.push(&Bytes::copy_from_slice(chunk)));
        prop_assert_eq!(parts.collect::<Vec<_>>().concat(), body);
    }
}

const REQUEST: &str = r#"{"model":"/model/qwen","prompt":"hello"}"#;

/// Sends a request for the tutorial's model and this response. Returns what the client gets.
async fn respond(picker: &Picker, content_type: &str, chunks: &[&[u8]]) -> String {
    let mut call = picker.proxy().await.open().await;
    call.send_headers(None, &post("/v1/completions"), None, false).await;
    call.send_body(REQUEST.as_bytes(), true).await;
    call.full_duplex_answer().await;
    let headers = [(":status", "200"), ("content-type", content_type), ("content-length", "1")];
    String::from_utf8(call.respond(&headers, chunks).await).unwrap()
}

async fn last_response(picker: &Picker) -> Value {
    let newest = async || picker.decisions(0).await.pop().unwrap()["response"].clone();
    crate::fixtures::until(async || !newest().await.is_null()).await;
    newest().await
}

#[tokio::test]
async fn the_clients_name_comes_back_and_usage_is_recorded() {
    let picker = Scenario::new(1).targets("{name: target, weight: 1}").start().await;
    let chunks: Vec<&[u8]> = JSON.as_bytes().chunks(13).collect();
    let received = respond(&picker, "application/json", &chunks).await;
    assert_eq!(received, JSON.replacen(r#""target""#, r#""/model/qwen""#, 1));
    let expected = serde_json::json!({"status": 200, "complete": true,
        "usage": {"prompt_tokens": 11, "completion_tokens": 100, "cached_tokens": 7},
        "predicted_cached_tokens": 0.0});
    assert_eq!(last_response(&picker).await, expected);
    // Control: the response of a model under its own name does not change.
    let picker = Scenario::new(1).start().await;
    let chunks: Vec<&[u8]> = SSE.as_bytes().chunks(29).collect();
    assert_eq!(respond(&picker, "text/event-stream", &chunks).await, SSE);
    assert_eq!(last_response(&picker).await["usage"]["completion_tokens"], 10);
    let metrics = picker.metrics().await;
    let labels = r#"{model_name="/model/qwen",target_model_name="/model/qwen"}"#;
    for expected in [
        format!("inference_model_input_tokens_sum{labels} 7.0"),
        format!("inference_model_output_tokens_sum{labels} 10.0"),
        format!("epp_prompt_cached_tokens_sum{labels} 4.0"),
        format!("inference_model_request_sizes_sum{labels} {}.0", REQUEST.len()),
        format!("inference_model_response_sizes_sum{labels} {}.0", SSE.len()),
        format!("inference_model_request_duration_seconds_count{labels} 1"),
        format!("inference_model_normalized_time_per_output_token_seconds_count{labels} 1"),
    ] {
        assert!(metrics.lines().any(|line| line == expected), "{expected} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_is_recorded() {
    let picker = Scenario::new(1).start().await;
    let mut call = picker.proxy().await.open().await;
    call.send_headers(None, &post("/v1/completions"), None, false).await;
    call.send_body(REQUEST.as_bytes(), true).await;
    call.full_duplex_answer().await;
    drop(call);
    let expected = serde_json::json!({"status": null, "complete": false, "usage": null,
        "predicted_cached_tokens": null});
    assert_eq!(last_response(&picker).await, expected);
    let metrics = picker.metrics().await;
    assert!(!metrics.contains("inference_model_request_duration_seconds_count{"), "{metrics}");
}
