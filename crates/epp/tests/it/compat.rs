//! `--compat gie-v0.4`: upstream's replies, message by message.

use envoy_proto::service::ext_proc::v3::processing_request::Request;
use expect_test::{Expect, expect};
use ext_proc::compat::Compat;

use crate::conversation::{
    BODY, Mode, body, check_with, compatible_exchange, describe, headers, post, response, response_body, step,
};
use crate::fixtures::{Scenario, get};

fn check(requests: Vec<Request>, expected: Expect) {
    check_with(compatible_exchange(10_000, Compat::GieV04), Mode::FULL_DUPLEX, requests, expected);
}

#[test]
fn headers_are_echoed_and_the_route_is_chosen_again() {
    let (first, second) = BODY.split_at(20);
    check(
        vec![post(), body(first, false), body(second, true)],
        expect![[r#"
        headers ->  (waits)
        body ->  (waits)
        body -> headers +x-gateway-destination-endpoint=10.0.0.1:8000 +Content-Length=71 +:method=POST +:path=/v1/completions?x=1 +x-request-id=4c9f clear-route-cache +metadata | body chunk "{\"prompt\":\"Once upon a time\",\"model\":\"m\",\"max_tokens\":9007199254740993}" end
    "#]],
    );
    check(
        vec![headers("GET", "/v1/models", true)],
        expect![[r#"
        headers -> headers +x-gateway-destination-endpoint=10.0.0.1:8000 clear-route-cache +metadata
    "#]],
    );
}

#[test]
fn paths_make_no_difference() {
    check(
        vec![headers("PUT", "/anything", false), body(BODY, true)],
        expect![[r#"
        headers ->  (waits)
        body -> headers +x-gateway-destination-endpoint=10.0.0.1:8000 +Content-Length=71 +:method=PUT +:path=/anything +x-request-id=4c9f clear-route-cache +metadata | body chunk "{\"prompt\":\"Once upon a time\",\"model\":\"m\",\"max_tokens\":9007199254740993}" end
    "#]],
    );
}

#[test]
fn a_renamed_model_changes_the_length_and_stays_renamed() {
    let renamed = BODY.replace(r#""m""#, r#""alias""#);
    let answer = response_body(r#"{"model":"target"}"#, true);
    check(
        vec![post(), body(&renamed, true), response("200", "application/json"), answer],
        expect![[r#"
        headers ->  (waits)
        body -> headers +x-gateway-destination-endpoint=10.0.0.1:8000 +Content-Length=86 +:method=POST +:path=/v1/completions?x=1 +x-request-id=4c9f clear-route-cache +metadata | body chunk "{\"prompt\":\"Once upon a time\",\"model\":\"target \\\"model\\\"\",\"max_tokens\":9007199254740993}" end
        response headers -> response headers +x-went-into-resp-headers=true +:status=200 +content-type=application/json
        response body -> response body chunk "{\"model\":\"target\"}" end
    "#]],
    );
}

#[test]
fn json_waits_for_its_end_and_event_streams_do_not() {
    let chunks =
        || vec![response_body("{\"usage\"", false), response_body(":{}}", false), response_body("", true)];
    let request = || vec![post(), body(BODY, true)];
    check(
        [request(), vec![response("200", "application/json")], chunks()].concat(),
        expect![[r#"
        headers ->  (waits)
        body -> headers +x-gateway-destination-endpoint=10.0.0.1:8000 +Content-Length=71 +:method=POST +:path=/v1/completions?x=1 +x-request-id=4c9f clear-route-cache +metadata | body chunk "{\"prompt\":\"Once upon a time\",\"model\":\"m\",\"max_tokens\":9007199254740993}" end
        response headers -> response headers +x-went-into-resp-headers=true +:status=200 +content-type=application/json
        response body -> 
        response body -> 
        response body -> response body chunk "{\"usage\":{}}" end
    "#]],
    );
    check(
        [request(), vec![response("200", "text/event-stream")], chunks()].concat(),
        expect![[r#"
        headers ->  (waits)
        body -> headers +x-gateway-destination-endpoint=10.0.0.1:8000 +Content-Length=71 +:method=POST +:path=/v1/completions?x=1 +x-request-id=4c9f clear-route-cache +metadata | body chunk "{\"prompt\":\"Once upon a time\",\"model\":\"m\",\"max_tokens\":9007199254740993}" end
        response headers -> response headers +x-went-into-resp-headers=true +:status=200 +content-type=text/event-stream
        response body -> response body chunk "{\"usage\""
        response body -> response body chunk ":{}}"
        response body -> response body chunk "" end
    "#]],
    );
}

#[test]
fn a_body_that_is_not_json_is_repeated_when_it_is_complete() {
    let chunks = || vec![post(), body("{]", false), body(" and \u{00e9}", false), body(" more", true)];
    check(
        chunks(),
        expect![[r#"
        headers ->  (waits)
        body ->  (waits)
        body ->  (waits)
        body -> 400  inference gateway: BadRequest - Error unmarshaling request body: {] and é more
    "#]],
    );
    // Control: the picker's own style answers at the first fault.
    check_with(
        compatible_exchange(10_000, Compat::None),
        Mode::FULL_DUPLEX,
        chunks(),
        expect![[r#"
        headers ->  (waits)
        body -> 400 epp_bad_request content-type=application/json x-request-id=4c9f {"error":{"message":"the body is not valid JSON: expected a key in double quotes at byte 1","type":"BadRequestError","param":null,"code":400}}
        body -> 
        body -> 
    "#]],
    );
    // A body that is JSON is not repeated, whatever it lacks.
    check(
        vec![post(), body(r#"{"model":"m""#, false), body("}", true)],
        expect![[r#"
        headers ->  (waits)
        body ->  (waits)
        body -> 400  inference gateway: BadRequest - prompt not found in request
    "#]],
    );
}

#[test]
fn what_is_held_is_bounded_and_in_order() {
    let mut exchange = compatible_exchange(100_000, Compat::GieV04);
    let mut step = |message| step(&mut exchange, Mode::FULL_DUPLEX, message).unwrap();
    for message in [post(), body(BODY, true), response("200", "application/json")] {
        step(message);
    }
    for _ in 0..100_000 {
        assert_eq!(step(response_body("x", false)), []);
    }
    let answers = step(response_body("y", false));
    let texts: Vec<String> = answers.iter().map(describe).collect();
    assert!(texts.len() == 2 && texts[0].contains("xxx") && texts[1].ends_with("xy\""), "{texts:?}");
    assert_eq!(step(response_body("z", false)).len(), 1, "nothing is held behind the bound");
}

#[test]
fn errors_are_text() {
    let refused = |text: &str| vec![post(), body(text, true)];
    check(
        refused("{"),
        expect![[r#"
        headers ->  (waits)
        body -> 400  inference gateway: BadRequest - Error unmarshaling request body: {
    "#]],
    );
    check(
        refused(r#"{"prompt":"p"}"#),
        expect![[r#"
        headers ->  (waits)
        body -> 400  inference gateway: BadRequest - model not found in request body
    "#]],
    );
    check(
        refused(r#"{"model":"m"}"#),
        expect![[r#"
        headers ->  (waits)
        body -> 400  inference gateway: BadRequest - prompt not found in request
    "#]],
    );
    check(
        refused(r#"{"model":"m","messages":[]}"#),
        expect![[r#"
        headers ->  (waits)
        body -> 400  inference gateway: BadRequest - messages is empty
    "#]],
    );
    check(
        refused(r#"{"model":"m","messages":7}"#),
        expect![[r#"
        headers ->  (waits)
        body -> 400  inference gateway: BadRequest - messages is not a list
    "#]],
    );
    check(
        refused(r#"{"model":"other","prompt":"p"}"#),
        expect![[r#"
        headers ->  (waits)
        body -> 404  inference gateway: BadConfiguration - error finding a model object in InferenceModel for input other
    "#]],
    );
}

#[tokio::test]
async fn the_older_text_format_names_counters_whole() {
    let picker = Scenario::new(1).compat(Compat::GieV04).start().await;
    let proxy = picker.proxy().await;
    for (model, n) in [("/model/qwen", 2), ("other", 1)] {
        for _ in 0..n {
            let mut call = proxy.open().await;
            call.send_headers(None, &[("hi", "there")], None, false).await;
            call.send_body(format!(r#"{{"model":"{model}","prompt":"p"}}"#).as_bytes(), true).await;
            call.next().await;
        }
    }
    let metrics = get(picker.ports.metrics, "/metrics").await;
    let of = |name: &str| metrics.lines().filter(|line| line.contains(name)).collect::<Vec<_>>().join("\n");
    expect![[r##"
        # HELP inference_model_request_total [ALPHA] Counter of inference model requests broken out for each model and target model.
        # TYPE inference_model_request_total counter
        inference_model_request_total{model_name="/model/qwen",target_model_name="/model/qwen"} 2"##]].assert_eq(&of("inference_model_request_total"));
    expect![[r##"
        # HELP inference_model_request_error_total [ALPHA] Counter of inference model requests errors broken out for each model and target model.
        # TYPE inference_model_request_error_total counter
        inference_model_request_error_total{model_name="unlisted",target_model_name="unlisted",error_code="BadConfiguration"} 1"##]].assert_eq(&of("inference_model_request_error_total"));
    expect![[r##"
        # HELP inference_pool_ready_pods [ALPHA] The number of ready pods in the inference server pool.
        # TYPE inference_pool_ready_pods gauge
        inference_pool_ready_pods{name="vllm-qwen-pool"} 1"##]]
    .assert_eq(&of("inference_pool_ready_pods"));
    assert!(of("inference_model_request_sizes_bucket").contains("le=\"64\""), "{}", of("request_sizes"));
    assert!(!metrics.contains("# EOF"));
}
