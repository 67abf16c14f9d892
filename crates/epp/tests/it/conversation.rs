//! The answers of an exchange as text: for each message that goes in, one line with what comes out.

use std::sync::Arc;

use bytes::Bytes;
use envoy_proto::config::core::v3::{HeaderMap, HeaderValue};
use envoy_proto::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_proto::service::ext_proc::v3::body_mutation::Mutation;
use envoy_proto::service::ext_proc::v3::processing_request::Request;
use envoy_proto::service::ext_proc::v3::processing_response::Response;
use envoy_proto::service::ext_proc::v3::{
    CommonResponse, HeaderMutation, HttpBody, HttpHeaders, HttpTrailers, ProcessingRequest,
    ProcessingResponse, ProtocolConfiguration,
};
use expect_test::Expect;
use ext_proc::budget::Budget;
use ext_proc::compat::Compat;
use ext_proc::exchange::{Exchange, Pick, ProtocolError, Rewrite, StreamOptions};
use ext_proc::pick_request::{Content, PickRequest};
use ext_proc::refusal::{Refusal, RequestFault};

pub(crate) const BODY: &str = r#"{"prompt":"Once upon a time","model":"m","max_tokens":9007199254740993}"#;

/// A director that sends everything to one endpoint, knows one model, and refuses bodies without a prompt.
pub(crate) fn decide(request: PickRequest) -> Result<Pick<()>, Refusal> {
    let rewrite = match request.content {
        Content::Fault(fault) => return Err(fault.into()),
        Content::Opaque => None,
        Content::Body(body) => {
            let malformed = |fault| Refusal::Request(RequestFault::Malformed(fault));
            let model = body.model.map_err(malformed)?.name;
            body.prompts.map_err(malformed)?;
            match model.as_str() {
                "m" => None,
                "alias" => Some(Rewrite { model, target_model: "target \"model\"".to_owned() }),
                _ => return Err(Refusal::ModelNotFound { model }),
            }
        }
    };
    Ok(Pick { destination: "10.0.0.1:8000".to_owned(), rewrite, reason: None, lease: () })
}

pub(crate) fn exchange(max_body_bytes: usize) -> Exchange<()> {
    compatible_exchange(max_body_bytes, Compat::None)
}

pub(crate) fn compatible_exchange(max_body_bytes: usize, compat: Compat) -> Exchange<()> {
    let budget = Arc::new(Budget::new(usize::MAX));
    budgeted_exchange(&budget, max_body_bytes, compat)
}

pub(crate) fn budgeted_exchange(budget: &Arc<Budget>, max_body_bytes: usize, compat: Compat) -> Exchange<()> {
    let options = StreamOptions {
        max_body_bytes,
        fresh_request_id: "fresh".to_owned(),
        pool: None,
        compat,
        explains: true,
    };
    Exchange::new(options, budget.reserve())
}

pub(crate) fn headers(method: &str, path: &str, end_of_stream: bool) -> Request {
    let header = |key: &str, value: &str| HeaderValue {
        key: key.to_owned(),
        raw_value: value.to_owned().into(),
        ..HeaderValue::default()
    };
    let headers = vec![
        header(":method", method),
        header(":path", path),
        header("content-length", "70"),
        header("x-request-id", "4c9f"),
    ];
    Request::RequestHeaders(HttpHeaders {
        headers: Some(HeaderMap { headers }),
        end_of_stream,
        ..HttpHeaders::default()
    })
}

pub(crate) fn post() -> Request {
    headers("POST", "/v1/completions?x=1", false)
}

pub(crate) fn body(text: &str, end_of_stream: bool) -> Request {
    Request::RequestBody(HttpBody {
        body: Bytes::from(text.to_owned()),
        end_of_stream,
        ..HttpBody::default()
    })
}

/// A chunk that is not the last.
pub(crate) fn body_of(body: Bytes) -> Request {
    Request::RequestBody(HttpBody { body, ..HttpBody::default() })
}

pub(crate) fn trailers() -> Request {
    Request::RequestTrailers(HttpTrailers::default())
}

pub(crate) fn step(
    exchange: &mut Exchange<()>,
    mode: Mode,
    request: Request,
) -> Result<Vec<ProcessingResponse>, ProtocolError> {
    let protocol_config = match &request {
        Request::RequestHeaders(_) => Some(mode.config()),
        _ => None,
    };
    let message =
        ProcessingRequest { protocol_config, request: Some(request), ..ProcessingRequest::default() };
    exchange.step(message, decide)
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Mode {
    mode: BodySendMode,
    ahead: bool,
}

impl Mode {
    pub(crate) const FULL_DUPLEX: Self = Self { mode: BodySendMode::FullDuplexStreamed, ahead: false };
    pub(crate) const BUFFERED: Self = Self { mode: BodySendMode::Buffered, ahead: false };
    pub(crate) const BUFFERED_PARTIAL: Self = Self { mode: BodySendMode::BufferedPartial, ahead: false };
    pub(crate) const STREAMED: Self = Self { mode: BodySendMode::Streamed, ahead: false };
    pub(crate) const STREAMED_AHEAD: Self = Self { mode: BodySendMode::Streamed, ahead: true };
    pub(crate) const NONE: Self = Self { mode: BodySendMode::None, ahead: false };

    fn config(self) -> ProtocolConfiguration {
        ProtocolConfiguration {
            request_body_mode: self.mode.into(),
            response_body_mode: self.mode.into(),
            send_body_without_waiting_for_header_response: self.ahead,
        }
    }
}

/// Checks the conversation: one line per message, with the answers after the arrow.
pub(crate) fn check(mode: Mode, requests: Vec<Request>, expected: Expect) {
    check_with(exchange(10_000), mode, requests, expected);
}

pub(crate) fn check_with(mut exchange: Exchange<()>, mode: Mode, requests: Vec<Request>, expected: Expect) {
    let mut lines = String::new();
    for request in requests {
        let name = match &request {
            Request::RequestHeaders(_) => "headers",
            Request::RequestBody(_) => "body",
            Request::RequestTrailers(_) => "trailers",
            Request::ResponseHeaders(_) => "response headers",
            Request::ResponseBody(_) => "response body",
            Request::ResponseTrailers(_) => "response trailers",
        };
        let answers = match step(&mut exchange, mode, request) {
            Ok(answers) => answers.iter().map(describe).collect::<Vec<_>>().join(" | "),
            Err(error) => format!("error: {error}"),
        };
        let end = if exchange.may_end() { "" } else { " (waits)" };
        lines += &format!("{name} -> {answers}{end}\n");
    }
    expected.assert_eq(&lines);
}

pub(crate) fn describe(answer: &ProcessingResponse) -> String {
    let metadata = if answer.dynamic_metadata.is_some() { " +metadata" } else { "" };
    let text = match answer.response.as_ref().unwrap() {
        Response::RequestHeaders(headers) => format!("headers{}", common(headers.response.as_ref())),
        Response::RequestBody(body) => format!("body{}", common(body.response.as_ref())),
        Response::RequestTrailers(_) => "trailers".to_owned(),
        Response::ResponseHeaders(headers) => {
            format!("response headers{}", common(headers.response.as_ref()))
        }
        Response::ResponseBody(body) => format!("response body{}", common(body.response.as_ref())),
        Response::ResponseTrailers(_) => "response trailers".to_owned(),
        Response::ImmediateResponse(refusal) => {
            let body = String::from_utf8_lossy(&refusal.body);
            let headers = header_mutation(refusal.headers.as_ref());
            format!("{} {}{headers} {body}", refusal.status.unwrap().code, refusal.details)
        }
        other @ Response::StreamedImmediateResponse(_) => panic!("never sent: {other:?}"),
    };
    text + metadata
}

pub(crate) fn header_mutation(mutation: Option<&HeaderMutation>) -> String {
    let mut text = String::new();
    for option in mutation.iter().flat_map(|mutation| &mutation.set_headers) {
        let header = option.header.as_ref().unwrap();
        // Marks a header that is appended, not replaced.
        let appended = if option.append_action == 0 { "+" } else { "" };
        text += &format!(" {appended}{}={}", header.key, String::from_utf8_lossy(&header.raw_value));
    }
    for key in mutation.iter().flat_map(|mutation| &mutation.remove_headers) {
        text += &format!(" -{key}");
    }
    text
}

pub(crate) fn common(response: Option<&CommonResponse>) -> String {
    let response = response.unwrap();
    let mut text = header_mutation(response.header_mutation.as_ref());
    text += if response.clear_route_cache { " clear-route-cache" } else { "" };
    let mutation = response.body_mutation.as_ref().and_then(|change| change.mutation.as_ref());
    match mutation {
        None => {}
        Some(Mutation::Body(body)) => text += &format!(" replaced by {}", String::from_utf8_lossy(body)),
        Some(Mutation::ClearBody(_)) => text += " cleared",
        Some(Mutation::StreamedResponse(chunk)) => {
            text += &format!(" chunk {:?}", String::from_utf8_lossy(&chunk.body));
            text += if chunk.end_of_stream { " end" } else { "" };
        }
    }
    text
}

pub(crate) fn response(status: &str, content_type: &str) -> Request {
    let header = |key: &str, value: &str| HeaderValue {
        key: key.to_owned(),
        raw_value: value.to_owned().into(),
        ..HeaderValue::default()
    };
    let headers = vec![header(":status", status), header("content-type", content_type)];
    Request::ResponseHeaders(HttpHeaders { headers: Some(HeaderMap { headers }), ..HttpHeaders::default() })
}

pub(crate) fn response_body(text: &str, end_of_stream: bool) -> Request {
    let Request::RequestBody(body) = body(text, end_of_stream) else { panic!("a body") };
    Request::ResponseBody(body)
}
