//! The decision in a response header, for clients that ask for it.

use envoy_proto::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_proto::service::ext_proc::v3::HttpHeaders;
use envoy_proto::service::ext_proc::v3::processing_request::Request;
use envoy_proto::service::ext_proc::v3::processing_response::Response;
use serde_json::Value;

use crate::fixtures::{Answer, Picker, Scenario, modes, post};

/// The decision in the response's headers, for a request with `x-warmpath-explain: <asked>`.
async fn told(picker: &Picker, asked: Option<&str>) -> Option<Value> {
    let mut call = picker.proxy().await.open().await;
    let mut headers = post("/v1/completions").to_vec();
    headers.extend(asked.map(|asked| ("x-warmpath-explain", asked)));
    let config = modes(BodySendMode::FullDuplexStreamed, BodySendMode::FullDuplexStreamed);
    call.send_headers(Some(config), &headers, None, false).await;
    let body = format!(r#"{{"model":"/model/qwen","prompt":"{}"}}"#, "a".repeat(512));
    call.send_body(body.as_bytes(), true).await;
    call.full_duplex_answer().await.picked();
    call.send(Request::ResponseHeaders(HttpHeaders::default())).await;
    let Response::ResponseHeaders(headers) = call.next().await else { panic!("expected response headers") };
    let mut answer = Answer::default();
    answer.note_headers(headers.response);
    answer.decision.map(|text| serde_json::from_str(&text).unwrap())
}

#[tokio::test]
async fn who_asks_is_told() {
    let picker = Scenario::new(2).explains().start().await;
    let first = told(&picker, Some("1")).await.unwrap();
    assert_eq!((&first["reason"], &first["n_candidates"]), (&"load".into(), &2.into()), "{first}");
    let second = told(&picker, Some("true")).await.unwrap();
    assert_eq!((&second["reason"], &second["pod"]), (&"prefix".into(), &first["pod"]), "{second}");
    assert_eq!((&second["matched_bytes"], &second["threshold"]), (&512.into(), &0.5.into()));
    let record = picker.decisions(1).await.pop().unwrap();
    for field in ["request", "pool", "strategy", "endpoint", "pod", "reason", "ratio", "total_bytes"] {
        assert_eq!(second[field], record[field], "{field}");
    }
}

#[tokio::test]
async fn nobody_else_is() {
    let picker = Scenario::new(1).explains().start().await;
    assert_eq!(told(&picker, None).await, None);
    assert_eq!(told(&picker, Some("no")).await, None);
}

#[tokio::test]
async fn nobody_is_told_unless_the_operator_allows_it() {
    let picker = Scenario::new(1).start().await;
    assert_eq!(told(&picker, Some("true")).await, None);
    assert_eq!(picker.decisions(0).await.len(), 1, "the record is there for the operator");
}
