//! The exchange without a server: a table of protocol cases.

use envoy_proto::service::ext_proc::v3::ProcessingRequest;
use envoy_proto::service::ext_proc::v3::processing_request::Request;
use expect_test::expect;
use ext_proc::exchange::ProtocolError;

use crate::conversation::{
    BODY, Mode, body, check, decide, exchange, headers, post, response, response_body, trailers,
};

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
fn what_is_not_json_waits_no_longer_where_it_need_not_be() {
    let requests =
        vec![headers("POST", "/tokenize", false), body("{not json", false), body("", true), body("", true)];
    check(
        Mode::FULL_DUPLEX,
        requests,
        expect![[r#"
        headers ->  (waits)
        body -> headers x-gateway-destination-endpoint=10.0.0.1:8000 +metadata | body chunk "{not json" (waits)
        body -> body chunk "" end
        body -> 
    "#]],
    );
    let requests = vec![headers("POST", "/tokenize", false), body("{not json", false), trailers()];
    check(
        Mode::FULL_DUPLEX,
        requests,
        expect![[r#"
        headers ->  (waits)
        body -> headers x-gateway-destination-endpoint=10.0.0.1:8000 +metadata | body chunk "{not json" (waits)
        trailers -> trailers
    "#]],
    );
    // Control: on a path that requires JSON, it is refused.
    check(
        Mode::FULL_DUPLEX,
        vec![post(), body("{not json", false)],
        expect![[r#"
        headers ->  (waits)
        body -> 400 epp_bad_request content-type=application/json x-request-id=4c9f {"error":{"message":"the body is not valid JSON: expected a key in double quotes at byte 1","type":"BadRequestError","param":null,"code":400}}
    "#]],
    );
    // The body of another method is not read at all.
    check(
        Mode::FULL_DUPLEX,
        vec![headers("PUT", "/tokenize", false), body("{}", true)],
        expect![[r#"
        headers -> headers x-gateway-destination-endpoint=10.0.0.1:8000 +metadata (waits)
        body -> body chunk "{}" end
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
            body -> 400 epp_bad_request content-type=application/json x-request-id=4c9f {"error":{"message":"the body is not valid JSON: a control character inside a string must be escaped at byte 12","type":"BadRequestError","param":null,"code":400}}
            body -> 
        "#]],
    );
    check(
        Mode::FULL_DUPLEX,
        refused(r#"{"prompt":"p"}"#),
        expect![[r#"
            headers ->  (waits)
            body -> 400 epp_bad_request content-type=application/json x-request-id=4c9f {"error":{"message":"the field `model` is required","type":"BadRequestError","param":"model","code":400}}
            body -> 
        "#]],
    );
    check(
        Mode::FULL_DUPLEX,
        refused(r#"{"prompt":"p","model":"x"}"#),
        expect![[r#"
            headers ->  (waits)
            body -> 404 epp_model_not_found content-type=application/json x-request-id=4c9f {"error":{"message":"The model `x` does not exist.","type":"NotFoundError","param":"model","code":404}}
            body -> 
        "#]],
    );
    check(
        Mode::BUFFERED,
        refused(&" ".repeat(10_001)),
        expect![[r#"
            headers -> headers (waits)
            body -> 413 epp_body_too_large content-type=application/json x-request-id=4c9f {"error":{"message":"the body is longer than 10000 bytes","type":"BadRequestError","param":null,"code":413}}
            body -> 
        "#]],
    );
}

#[test]
fn the_response_of_a_renamed_model_gets_its_name_back() {
    let renamed = BODY.replace(r#""m""#, r#""alias""#);
    let requests = |cut: bool| {
        let chunks = if cut {
            vec![response_body("{\"model\":\"targ", false), response_body("et\"}", true)]
        } else {
            vec![response_body("{\"model\":\"target\"}", true)]
        };
        [vec![post(), body(&renamed, true), response("200", "application/json")], chunks].concat()
    };
    check(
        Mode::FULL_DUPLEX,
        requests(true),
        expect![[r#"
        headers ->  (waits)
        body -> headers x-gateway-destination-endpoint=10.0.0.1:8000 content-length=86 +metadata | body chunk "{\"prompt\":\"Once upon a time\",\"model\":\"target \\\"model\\\"\",\"max_tokens\":9007199254740993}" end
        response headers -> response headers x-request-id=4c9f -content-length
        response body -> response body chunk "{\"model\":\"alias\""
        response body -> response body chunk "}" end
    "#]],
    );
    check(
        Mode::BUFFERED,
        requests(false),
        expect![[r#"
        headers -> headers (waits)
        body -> body x-gateway-destination-endpoint=10.0.0.1:8000 content-length=86 replaced by {"prompt":"Once upon a time","model":"target \"model\"","max_tokens":9007199254740993} +metadata
        response headers -> response headers x-request-id=4c9f
        response body -> response body content-length=17 replaced by {"model":"alias"}
    "#]],
    );
    check(
        Mode::STREAMED_AHEAD,
        requests(true),
        expect![[r#"
        headers ->  (waits)
        body -> headers x-gateway-destination-endpoint=10.0.0.1:8000 +metadata | body replaced by {"prompt":"Once upon a time","model":"target \"model\"","max_tokens":9007199254740993}
        response headers -> response headers x-request-id=4c9f -content-length
        response body -> response body replaced by {"model":"alias"
        response body -> response body replaced by }
    "#]],
    );
}

#[test]
fn a_request_without_an_id_gets_one_everywhere() {
    let without_id = |method: &str, path: &str, end_of_stream| {
        let Request::RequestHeaders(mut headers) = headers(method, path, end_of_stream) else {
            panic!("headers")
        };
        headers.headers.as_mut().unwrap().headers.retain(|header| header.key != "x-request-id");
        Request::RequestHeaders(headers)
    };
    let post = || without_id("POST", "/v1/completions", false);
    let response = || response("200", "application/json");
    check(
        Mode::FULL_DUPLEX,
        vec![post(), body(BODY, true), response()],
        expect![[r#"
        headers ->  (waits)
        body -> headers x-gateway-destination-endpoint=10.0.0.1:8000 x-request-id=fresh +metadata | body chunk "{\"prompt\":\"Once upon a time\",\"model\":\"m\",\"max_tokens\":9007199254740993}" end
        response headers -> response headers x-request-id=fresh
    "#]],
    );
    check(
        Mode::BUFFERED,
        vec![post(), body(BODY, true), response()],
        expect![[r#"
        headers -> headers x-request-id=fresh (waits)
        body -> body x-gateway-destination-endpoint=10.0.0.1:8000 +metadata
        response headers -> response headers x-request-id=fresh
    "#]],
    );
    check(
        Mode::FULL_DUPLEX,
        vec![without_id("GET", "/v1/models", true), response()],
        expect![[r#"
        headers -> headers x-gateway-destination-endpoint=10.0.0.1:8000 x-request-id=fresh +metadata
        response headers -> response headers x-request-id=fresh
    "#]],
    );
    check(
        Mode::FULL_DUPLEX,
        vec![post(), body("{}", true)],
        expect![[r#"
        headers ->  (waits)
        body -> 400 epp_bad_request content-type=application/json x-request-id=fresh {"error":{"message":"the field `model` is required","type":"BadRequestError","param":"model","code":400}}
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
    assert_eq!(exchange(1).step(ProcessingRequest::default(), decide).unwrap_err(), ProtocolError::Empty);
}
