//! Headers near the proxy's limits: the picker's additions never exceed them.

use envoy_proto::config::core::v3::{HeaderMap, HeaderValue};
use envoy_proto::service::ext_proc::v3::processing_request::Request;
use envoy_proto::service::ext_proc::v3::processing_response::Response;
use envoy_proto::service::ext_proc::v3::{HeaderMutation, HttpHeaders, ProcessingResponse};

use crate::conversation::{Mode, body, exchange, step};

/// Envoy's default limits.
const MAX_HEADERS: usize = 100;
const MAX_BYTES: usize = 60 << 10;

const BODY: &str = r#"{"model":"alias","prompt":"hello"}"#;

fn header(key: &str, value: &str) -> HeaderValue {
    HeaderValue { key: key.to_owned(), raw_value: value.to_owned().into(), ..HeaderValue::default() }
}

/// `n_headers` headers, which begin with `first`. The last one makes names and values `n_bytes` long in total if they
/// are shorter.
fn headers(first: &[(&str, &str)], n_headers: usize, n_bytes: usize) -> HttpHeaders {
    let mut headers: Vec<HeaderValue> = first.iter().map(|(key, value)| header(key, value)).collect();
    headers.extend((headers.len()..n_headers).map(|number| header(&format!("x-client-{number}"), "1")));
    let length: usize = headers.iter().map(|header| header.key.len() + header.raw_value.len()).sum();
    let last = headers.last_mut().unwrap();
    last.raw_value = format!("1{}", "x".repeat(n_bytes.saturating_sub(length))).into();
    HttpHeaders { headers: Some(HeaderMap { headers }), ..HttpHeaders::default() }
}

/// Number and total length of the headers after the proxy has applied `mutation`.
fn after(headers: &HttpHeaders, mutation: &HeaderMutation) -> (usize, usize) {
    let mut all = headers.headers.clone().unwrap().headers;
    for option in &mutation.set_headers {
        let set = option.header.clone().unwrap();
        all.retain(|header| header.key != set.key);
        all.push(set);
    }
    (all.len(), all.iter().map(|header| header.key.len() + header.raw_value.len()).sum())
}

/// The picker's answer to a request with these headers: the headers that go on, or the refusal's status.
fn send(headers: &HttpHeaders) -> Result<(usize, usize), (i32, String)> {
    let mut exchange = exchange(1 << 20);
    let mut answers =
        step(&mut exchange, Mode::FULL_DUPLEX, Request::RequestHeaders(headers.clone())).unwrap();
    answers.extend(step(&mut exchange, Mode::FULL_DUPLEX, body(BODY, true)).unwrap());
    match answers.first().and_then(|answer| answer.response.as_ref()) {
        Some(Response::ImmediateResponse(refusal)) => {
            Err((refusal.status.unwrap().code, String::from_utf8_lossy(&refusal.body).into_owned()))
        }
        Some(Response::RequestHeaders(answer)) => {
            let mutation = answer.response.as_ref().unwrap().header_mutation.clone().unwrap_or_default();
            Ok(after(headers, &mutation))
        }
        other => panic!("{other:?}"),
    }
}

const POST: [(&str, &str); 3] = [(":method", "POST"), (":path", "/v1/completions"), ("x-request-id", "4c9f")];

#[test]
fn a_request_that_leaves_no_room_is_told_so() {
    for n_headers in 3..=MAX_HEADERS {
        match send(&headers(&POST, n_headers, 0)) {
            Ok((n_after, _)) => {
                assert!(n_after <= MAX_HEADERS, "{n_headers} headers become {n_after}");
                assert_eq!(n_after, n_headers + 1, "the destination, and nothing else");
            }
            Err((status, text)) => {
                assert_eq!((n_headers, status), (MAX_HEADERS, 431));
                assert!(text.contains("100 headers") && text.contains("BadRequestError"), "{text}");
            }
        }
    }
}

/// A request without an id gets one, which is one more header.
#[test]
fn a_fresh_request_id_takes_room_too() {
    assert_eq!(send(&headers(&POST[..2], MAX_HEADERS - 2, 0)).unwrap().0, MAX_HEADERS);
    assert_eq!(send(&headers(&POST[..2], MAX_HEADERS - 1, 0)).unwrap_err().0, 431);
}

#[test]
fn long_headers_are_told_so() {
    let fits = send(&headers(&POST, 10, MAX_BYTES - 300)).unwrap();
    assert!(fits.1 <= MAX_BYTES);
    let (status, text) = send(&headers(&POST, 10, MAX_BYTES - 8)).unwrap_err();
    assert_eq!(status, 431);
    assert!(text.contains("61432 bytes"), "{text}");
}

/// Envoy checks the client's headers first and then adds its own, so a request may arrive with more than the limit.
#[test]
fn headers_of_the_proxy_itself_may_have_passed_the_limit() {
    assert_eq!(send(&headers(&POST, MAX_HEADERS + 6, 0)).unwrap_err().0, 431);
    assert_eq!(send(&headers(&POST, 10, MAX_BYTES + 500)).unwrap_err().0, 431);
}

/// Headers far beyond the default limit mean that the proxy is configured with another one.
#[test]
fn a_proxy_with_higher_limits_is_believed() {
    assert_eq!(send(&headers(&POST, 150, 0)).unwrap().0, 151);
    assert!(send(&headers(&POST, 10, MAX_BYTES + 4096)).is_ok());
}

#[test]
fn a_response_without_room_goes_without_what_is_optional() {
    for (n_headers, n_added) in [(50, 1), (MAX_HEADERS - 1, 1), (MAX_HEADERS, 0)] {
        let mut exchange = exchange(1 << 20);
        step(&mut exchange, Mode::FULL_DUPLEX, Request::RequestHeaders(headers(&POST, 10, 0))).unwrap();
        step(&mut exchange, Mode::FULL_DUPLEX, body(BODY, true)).unwrap();
        let came = headers(&[(":status", "200")], n_headers, 0);
        let answers = step(&mut exchange, Mode::FULL_DUPLEX, Request::ResponseHeaders(came.clone())).unwrap();
        let [ProcessingResponse { response: Some(Response::ResponseHeaders(answer)), .. }] = &answers[..]
        else {
            panic!("{answers:?}")
        };
        let mutation = answer.response.as_ref().unwrap().header_mutation.as_ref().unwrap();
        assert_eq!(mutation.set_headers.len(), n_added, "{n_headers} headers");
        assert!(after(&came, mutation).0 <= MAX_HEADERS);
    }
}
