//! The exchange alone: a table of protocol cases, and any sequence of messages at all.

use bytes::Bytes;
use envoy_proto::config::core::v3::{HeaderMap, HeaderValue};
use envoy_proto::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_proto::service::ext_proc::v3::body_mutation::Mutation;
use envoy_proto::service::ext_proc::v3::processing_request::Request;
use envoy_proto::service::ext_proc::v3::processing_response::Response;
use envoy_proto::service::ext_proc::v3::{
    CommonResponse, HttpBody, HttpHeaders, HttpTrailers, ProcessingRequest, ProcessingResponse,
    ProtocolConfiguration,
};
use epp::exchange::{Exchange, Pick, ProtocolError};
use epp::inquiry::{Content, Inquiry};
use epp::refusal::Refusal;
use expect_test::{Expect, expect};
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::{prop_assert, proptest};

const BODY: &str = r#"{"prompt":"Once upon a time","model":"m","max_tokens":9007199254740993}"#;

/// A director that sends everything to one place, and knows one model.
fn decide(inquiry: Inquiry) -> Result<Pick<()>, Refusal> {
    let rewrite = match inquiry.content {
        Content::Fault(fault) => return Err(fault.into()),
        Content::Opaque => None,
        Content::Body(body) if body.model == "m" => None,
        Content::Body(body) if body.model == "alias" => Some("target \"model\"".to_owned()),
        Content::Body(body) => return Err(Refusal::ModelNotFound { model: body.model }),
    };
    Ok(Pick { destination: "10.0.0.1:8000".to_owned(), rewrite, lease: () })
}

fn headers(method: &str, path: &str, end_of_stream: bool) -> Request {
    let header = |key: &str, value: &str| HeaderValue {
        key: key.to_owned(),
        raw_value: value.to_owned().into(),
        ..HeaderValue::default()
    };
    let headers = vec![header(":method", method), header(":path", path), header("content-length", "70")];
    Request::RequestHeaders(HttpHeaders {
        headers: Some(HeaderMap { headers }),
        end_of_stream,
        ..HttpHeaders::default()
    })
}

fn post() -> Request {
    headers("POST", "/v1/completions?x=1", false)
}

fn body(text: &str, end_of_stream: bool) -> Request {
    Request::RequestBody(HttpBody {
        body: Bytes::from(text.to_owned()),
        end_of_stream,
        ..HttpBody::default()
    })
}

fn trailers() -> Request {
    Request::RequestTrailers(HttpTrailers::default())
}

fn step(
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
struct Mode {
    mode: BodySendMode,
    ahead: bool,
}

impl Mode {
    const FULL_DUPLEX: Self = Self { mode: BodySendMode::FullDuplexStreamed, ahead: false };
    const BUFFERED: Self = Self { mode: BodySendMode::Buffered, ahead: false };
    const BUFFERED_PARTIAL: Self = Self { mode: BodySendMode::BufferedPartial, ahead: false };
    const STREAMED: Self = Self { mode: BodySendMode::Streamed, ahead: false };
    const STREAMED_AHEAD: Self = Self { mode: BodySendMode::Streamed, ahead: true };
    const NONE: Self = Self { mode: BodySendMode::None, ahead: false };

    fn config(self) -> ProtocolConfiguration {
        ProtocolConfiguration {
            request_body_mode: self.mode.into(),
            response_body_mode: self.mode.into(),
            send_body_without_waiting_for_header_response: self.ahead,
        }
    }
}

/// One line per message in, with what comes out behind the arrow.
fn check(mode: Mode, requests: Vec<Request>, expected: Expect) {
    let mut exchange = Exchange::new(1000);
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

fn describe(answer: &ProcessingResponse) -> String {
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
            format!("{} {} {body}", refusal.status.unwrap().code, refusal.details)
        }
        other @ Response::StreamedImmediateResponse(_) => panic!("never sent: {other:?}"),
    };
    text + metadata
}

fn common(response: Option<&CommonResponse>) -> String {
    let response = response.unwrap();
    let mut text = String::new();
    for option in response.header_mutation.iter().flat_map(|mutation| &mutation.set_headers) {
        let header = option.header.as_ref().unwrap();
        text += &format!(" {}={}", header.key, String::from_utf8_lossy(&header.raw_value));
    }
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

#[test]
fn full_duplex_answers_when_the_body_is_complete() {
    let (first, second) = BODY.split_at(20);
    let requests = vec![post(), body(first, false), body(second, false), body("", true), body("", true)];
    check(
        Mode::FULL_DUPLEX,
        requests,
        expect![[r#"
        headers ->  (waits)
        body ->  (waits)
        body ->  (waits)
        body -> headers x-gateway-destination-endpoint=10.0.0.1:8000 +metadata | body chunk "{\"prompt\":\"Once upon a time\",\"model\":\"m\",\"max_tokens\":9007199254740993}" end
        body -> 
    "#]],
    );
}

#[test]
fn full_duplex_with_trailers() {
    check(
        Mode::FULL_DUPLEX,
        vec![post(), body(BODY, false), trailers()],
        expect![[r#"
        headers ->  (waits)
        body ->  (waits)
        trailers -> headers x-gateway-destination-endpoint=10.0.0.1:8000 +metadata | body chunk "{\"prompt\":\"Once upon a time\",\"model\":\"m\",\"max_tokens\":9007199254740993}" | trailers
    "#]],
    );
}

#[test]
fn full_duplex_renames_the_model_only() {
    let renamed = BODY.replace(r#""m""#, r#""alias""#);
    let (first, second) = renamed.split_at(renamed.find("lia").unwrap());
    check(
        Mode::FULL_DUPLEX,
        vec![post(), body(first, false), body(second, true)],
        expect![[r#"
        headers ->  (waits)
        body ->  (waits)
        body -> headers x-gateway-destination-endpoint=10.0.0.1:8000 content-length=86 +metadata | body chunk "{\"prompt\":\"Once upon a time\",\"model\":\"target \\\"model\\\"\",\"max_tokens\":9007199254740993}" end
    "#]],
    );
}

#[test]
fn buffered_answers_the_headers_at_once_and_the_body_with_the_pick() {
    check(
        Mode::BUFFERED,
        vec![post(), body(BODY, true)],
        expect![[r#"
        headers -> headers (waits)
        body -> body x-gateway-destination-endpoint=10.0.0.1:8000 +metadata
    "#]],
    );
}

#[test]
fn buffered_renames_the_model_and_the_length() {
    let renamed = BODY.replace(r#""m""#, r#""alias""#);
    check(
        Mode::BUFFERED,
        vec![post(), body(&renamed, true)],
        expect![[r#"
        headers -> headers (waits)
        body -> body x-gateway-destination-endpoint=10.0.0.1:8000 content-length=86 replaced by {"prompt":"Once upon a time","model":"target \"model\"","max_tokens":9007199254740993} +metadata
    "#]],
    );
}

#[test]
fn buffered_with_trailers() {
    check(
        Mode::BUFFERED,
        vec![post(), body(BODY, false), trailers()],
        expect![[r#"
        headers -> headers (waits)
        body -> body x-gateway-destination-endpoint=10.0.0.1:8000 +metadata
        trailers -> trailers
    "#]],
    );
}

#[test]
fn a_body_that_the_proxy_cut_is_placed_by_load() {
    check(
        Mode::BUFFERED_PARTIAL,
        vec![post(), body(&BODY[..30], false)],
        expect![[r#"
        headers -> headers (waits)
        body -> body x-gateway-destination-endpoint=10.0.0.1:8000 +metadata
    "#]],
    );
}

#[test]
fn streamed_is_placed_by_load_as_the_headers_cannot_wait() {
    check(
        Mode::STREAMED,
        vec![post(), body(BODY, false), body("", true)],
        expect![[r#"
        headers -> headers x-gateway-destination-endpoint=10.0.0.1:8000 +metadata
        body -> body
        body -> body
    "#]],
    );
}

#[test]
fn streamed_ahead_answers_every_chunk_once() {
    let renamed = BODY.replace(r#""m""#, r#""alias""#);
    let (first, second) = renamed.split_at(renamed.find("lia").unwrap());
    let requests = vec![post(), body(first, false), body(second, false), body("", true)];
    check(
        Mode::STREAMED_AHEAD,
        requests,
        expect![[r#"
        headers ->  (waits)
        body ->  (waits)
        body ->  (waits)
        body -> headers x-gateway-destination-endpoint=10.0.0.1:8000 +metadata | body replaced by {"prompt":"Once upon a time","model":"target \"model\"" | body replaced by ,"max_tokens":9007199254740993} | body
    "#]],
    );
}

#[test]
fn headers_alone_are_placed_by_load() {
    check(
        Mode::FULL_DUPLEX,
        vec![headers("GET", "/v1/models", true)],
        expect![[r#"
        headers -> headers x-gateway-destination-endpoint=10.0.0.1:8000 +metadata
    "#]],
    );
    check(
        Mode::BUFFERED,
        vec![headers("GET", "/v1/models", true)],
        expect![[r#"
        headers -> headers x-gateway-destination-endpoint=10.0.0.1:8000 +metadata
    "#]],
    );
    check(
        Mode::NONE,
        vec![post()],
        expect![[r#"
        headers -> headers x-gateway-destination-endpoint=10.0.0.1:8000 +metadata
    "#]],
    );
}

#[test]
fn a_path_that_is_not_read_passes_unbuffered() {
    let requests =
        vec![headers("POST", "/tokenize", false), body("{not json", false), body("", true), body("", true)];
    check(
        Mode::FULL_DUPLEX,
        requests,
        expect![[r#"
        headers -> headers x-gateway-destination-endpoint=10.0.0.1:8000 +metadata (waits)
        body -> body chunk "{not json" (waits)
        body -> body chunk "" end
        body -> 
    "#]],
    );
    let requests = vec![headers("POST", "/tokenize", false), body("{not json", false), trailers()];
    check(
        Mode::FULL_DUPLEX,
        requests,
        expect![[r#"
        headers -> headers x-gateway-destination-endpoint=10.0.0.1:8000 +metadata (waits)
        body -> body chunk "{not json" (waits)
        trailers -> trailers
    "#]],
    );
}

#[test]
fn refusals() {
    let refused = |text: &str| vec![post(), body(text, true), body("", true)];
    check(
        Mode::FULL_DUPLEX,
        refused("{\"prompt\":\"a\nb\"}"),
        expect![[r#"
        headers ->  (waits)
        body -> 400 epp_bad_request {"error":{"message":"the body is not valid JSON: a control character inside a string must be escaped at byte 12","type":"BadRequestError","param":null,"code":400}}
        body -> 
    "#]],
    );
    check(
        Mode::FULL_DUPLEX,
        refused(r#"{"prompt":"p"}"#),
        expect![[r#"
        headers ->  (waits)
        body -> 400 epp_bad_request {"error":{"message":"the field `model` is required","type":"BadRequestError","param":"model","code":400}}
        body -> 
    "#]],
    );
    check(
        Mode::FULL_DUPLEX,
        refused(r#"{"prompt":"p","model":"x"}"#),
        expect![[r#"
        headers ->  (waits)
        body -> 404 epp_model_not_found {"error":{"message":"The model `x` does not exist.","type":"NotFoundError","param":"model","code":404}}
        body -> 
    "#]],
    );
    check(
        Mode::BUFFERED,
        refused(&" ".repeat(1001)),
        expect![[r#"
        headers -> headers (waits)
        body -> 413 epp_body_too_large {"error":{"message":"the body is longer than 1000 bytes","type":"BadRequestError","param":null,"code":413}}
        body -> 
    "#]],
    );
}

#[test]
fn messages_out_of_place_are_errors() {
    check(
        Mode::FULL_DUPLEX,
        vec![body("{}", true)],
        expect![[r#"
        body -> error: the first message must carry the request headers
    "#]],
    );
    check(
        Mode::FULL_DUPLEX,
        vec![trailers()],
        expect![[r#"
        trailers -> error: the first message must carry the request headers
    "#]],
    );
    check(
        Mode::FULL_DUPLEX,
        vec![post(), post()],
        expect![[r#"
        headers ->  (waits)
        headers -> error: request headers came twice (waits)
    "#]],
    );
    assert_eq!(
        Exchange::new(1).step(ProcessingRequest::default(), decide).unwrap_err(),
        ProtocolError::Empty
    );
}

fn any_request() -> impl Strategy<Value = Request> {
    let text = prop_oneof![
        Just(BODY.to_owned()),
        Just(BODY.replace(r#""m""#, r#""alias""#)),
        Just(r#"{"prompt":["#.to_owned()),
        Just("1,2]".to_owned()),
        Just(String::new()),
        any::<String>(),
    ];
    let chunk = (text, any::<bool>());
    prop_oneof![
        any::<bool>().prop_map(|end| headers("POST", "/v1/completions", end)),
        any::<bool>().prop_map(|end| headers("GET", "/v1/models", end)),
        chunk.clone().prop_map(|(text, end)| body(&text, end)),
        chunk.clone().prop_map(|(text, end)| body(&text, end)),
        Just(trailers()),
        any::<bool>().prop_map(|end_of_stream| {
            Request::ResponseHeaders(HttpHeaders { end_of_stream, ..HttpHeaders::default() })
        }),
        chunk.prop_map(|(text, end_of_stream)| {
            Request::ResponseBody(HttpBody { body: text.into(), end_of_stream, ..HttpBody::default() })
        }),
        Just(Request::ResponseTrailers(HttpTrailers::default())),
    ]
}

fn any_mode() -> impl Strategy<Value = Mode> {
    prop_oneof![
        Just(Mode::FULL_DUPLEX),
        Just(Mode::BUFFERED),
        Just(Mode::BUFFERED_PARTIAL),
        Just(Mode::STREAMED),
        Just(Mode::STREAMED_AHEAD),
        Just(Mode::NONE),
    ]
}

proptest! {
    /// Whatever comes, the answers keep the protocol's order: at most one pick or refusal, nothing of the request
    /// after a refusal or after the end of its body, and chunks only behind the pick.
    #[test]
    fn any_sequence_gets_legal_answers(
        mode in any_mode(),
        first in any::<bool>(),
        requests in proptest::collection::vec(any_request(), 0..12),
    ) {
        let mut exchange = Exchange::new(200);
        let requests = first.then(post).into_iter().chain(requests);
        let (mut n_picks, mut refused, mut ended) = (0, false, false);
        for request in requests {
            let Ok(answers) = step(&mut exchange, mode, request) else { continue };
            for answer in answers {
                n_picks += usize::from(answer.dynamic_metadata.is_some());
                match answer.response.unwrap() {
                    Response::ImmediateResponse(_) => {
                        prop_assert!(!refused && n_picks == 0);
                        refused = true;
                    }
                    Response::RequestHeaders(_) => prop_assert!(!refused && !ended),
                    Response::RequestBody(body) => {
                        prop_assert!(!refused && n_picks == 1);
                        let mutation = body.response.unwrap().body_mutation.and_then(|change| change.mutation);
                        if let Some(Mutation::StreamedResponse(chunk)) = mutation {
                            prop_assert!(!ended);
                            ended = chunk.end_of_stream;
                        }
                    }
                    Response::RequestTrailers(_) => prop_assert!(!refused),
                    _ => {}
                }
                prop_assert!(n_picks <= 1);
            }
        }
    }
}
