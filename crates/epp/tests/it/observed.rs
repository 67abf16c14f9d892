//! Responses that go past the picker: the request's stream ends with the request, the access log tells the end of the
//! response, and a stream of its own reports the body of some.

use std::time::Instant;

use envoy_proto::data::accesslog::v3::{
    AccessLogCommon, HttpAccessLogEntry, HttpRequestProperties, ResponseFlags,
};
use envoy_proto::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_proto::service::ext_proc::v3::processing_request::Request;
use envoy_proto::service::ext_proc::v3::processing_response::Response;
use envoy_proto::service::ext_proc::v3::{HttpBody, HttpTrailers};
use epp::observed::ENGINE_WAIT;
use ext_proc::compat::Compat;
use serde_json::{Value, json};

use crate::fixtures::http2::{Kind, Peer, frame, framed, header_block, header_block_of, header_block_with};
use crate::fixtures::{
    Answer, Picker, Proxy, SOON, Scenario, ending, get, http_headers, modes, post, reported, until,
};

const USAGE: &str =
    r#"{"usage":{"prompt_tokens":600,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":0}}}"#;

fn body(prompt: &str) -> String {
    format!(r#"{{"model":"/model/qwen","prompt":"{prompt}"}}"#)
}

/// Sends a completion whose response goes past the picker, and ends its stream as the proxy does.
async fn ask(proxy: &Proxy, prompt: &str) -> Answer {
    let mut call = proxy.with_observed_responses().open().await;
    call.send_headers(None, &post("/v1/completions"), None, false).await;
    call.send_body(body(prompt).as_bytes(), true).await;
    let answer = call.full_duplex_answer().await;
    assert_eq!(call.close().message().await.unwrap(), None, "the stream ends well");
    answer
}

/// The load of the only pod: requests in flight, and bytes of prompts that are still to be computed.
async fn load(picker: &Picker) -> (u64, u64) {
    let pools: Value = serde_json::from_str(&get(picker.ports.metrics, "/debug/pools").await).unwrap();
    let pod = &pools["pools"][0]["endpoints"][0];
    (pod["in_flight"].as_u64().unwrap(), pod["uncached_bytes"].as_u64().unwrap())
}

async fn response(picker: &Picker) -> Value {
    picker.decisions(0).await.pop().unwrap()["response"].clone()
}

#[tokio::test]
async fn a_request_ends_with_the_report_of_its_response() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let prompt = "a".repeat(2048);
    let answer = ask(&proxy, &prompt).await;
    assert_eq!(answer.picker, Some(picker.ports.grpc.to_string()));
    let mut report = proxy.begin_report(&answer).await;
    until(async || picker.metrics().await.contains("epp_streams 1\n")).await;
    assert_eq!(load(&picker).await, (1, 2048));
    report.report_headers(&[]).await;
    report.report_body(&USAGE[..30], false).await;
    until(async || load(&picker).await == (1, 0)).await;
    report.report_body(&USAGE[30..], true).await;
    assert_eq!(
        report.try_next().await.unwrap(),
        None,
        "a report is not answered, and ends with the response"
    );
    until(async || load(&picker).await == (0, 0)).await;
    let expected = json!({"status": 200, "complete": true, "predicted_cached_tokens": 0.0,
        "usage": {"prompt_tokens": 600, "completion_tokens": 2, "cached_tokens": 0}});
    assert_eq!(response(&picker).await, expected);

    // Control: where responses go through the picker, the end of the request's stream is its end.
    let mut call = proxy.open().await;
    call.send_headers(None, &post("/v1/completions"), None, false).await;
    call.send_body(body(&prompt).as_bytes(), true).await;
    let through = call.full_duplex_answer().await;
    assert_eq!((through.ticket, through.picker), (None, None));
    assert_eq!(load(&picker).await.0, 1);
    drop(call);
    until(async || load(&picker).await.0 == 0).await;
}

/// Engines count first tokens, so it does not matter which responses the picker sees.
#[tokio::test]
async fn a_first_token_that_is_not_reported_is_counted_by_the_engine() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let count = |n| {
        picker.pods[0]
            .set_idle_with(&format!("vllm:time_to_first_token_seconds_count{{engine=\"0\"}} {n}.0\n"));
    };
    count(5);
    picker.wait_for_scrapes().await;
    let mut answers = Vec::new();
    for prompt in ["first".repeat(500), "second".repeat(500)] {
        answers.push(ask(&proxy, &prompt[..2048]).await);
    }
    picker.wait_for_scrapes().await;
    assert_eq!(load(&picker).await, (2, 4096), "Control: it has counted none");
    for (n, work) in [(6, 2048), (7, 0)] {
        count(n);
        until(async || load(&picker).await == (2, work)).await;
    }
    let log = proxy.open_log();
    for answer in &answers {
        log.tell(answer).await;
    }
    until(async || load(&picker).await == (0, 0)).await;
}

/// The proxy reports the bodies of a share of the responses. Its access log tells how each request has ended.
#[tokio::test]
async fn the_access_log_ends_requests() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let log = proxy.open_log();
    let ended = |status: Option<u16>, complete: bool| json!({"status": status, "complete": complete, "predicted_cached_tokens": null, "usage": null});
    let whole: fn(&mut HttpAccessLogEntry) = |_| {};
    let cut: fn(&mut HttpAccessLogEntry) = |entry| {
        let flags = ResponseFlags { downstream_connection_termination: true, ..ResponseFlags::default() };
        entry.common_properties.as_mut().unwrap().response_flags = Some(flags);
    };
    let unanswered: fn(&mut HttpAccessLogEntry) =
        |entry| entry.response.as_mut().unwrap().response_code = Some(0);
    for (name, change, expected) in [
        ("whole", whole, ended(Some(200), true)),
        ("cut", cut, ended(Some(200), false)),
        ("unanswered", unanswered, ended(None, false)),
    ] {
        let answer = ask(&proxy, &name.repeat(1000)[..2048]).await;
        assert_eq!(load(&picker).await, (1, 2048));
        // Control: the request goes on after an entry in the middle of it.
        log.tell_with(&answer, &[], |entry| {
            entry.common_properties.as_mut().unwrap().intermediate_log_entry = true
        })
        .await;
        picker.wait_for_scrapes().await;
        assert_eq!(load(&picker).await, (1, 2048), "{name}");
        log.tell_with(&answer, &[], change).await;
        until(async || load(&picker).await == (0, 0)).await;
        assert_eq!(response(&picker).await, expected, "{name}");
    }
    let metrics = picker.metrics().await;
    for (counted, n) in
        [("inference_model_request_duration_seconds_count{", 1), ("inference_model_response_sizes_count{", 1)]
    {
        let counts: Vec<_> = metrics.lines().filter(|line| line.starts_with(counted)).collect();
        assert!(counts.len() == 1 && counts[0].ends_with(&format!(" {n}")), "{counts:?}");
    }
    assert!(metrics.contains("epp_streams 0\n"), "an access log is no request");
}

/// The proxy has no ticket of a request whose client hung up before the answer came.
#[tokio::test]
async fn a_request_whose_client_hung_up_at_its_pick_ends() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await.with_observed_responses();
    let log = proxy.open_log();
    let mut headers = post("/v1/completions").to_vec();
    headers.push(("x-request-id", "abc"));
    let answer = proxy.full_duplex_request(&headers, &body("a")).await;
    // Control: another request's end is not this one's.
    for (id, n_in_flight) in [("other", 1), ("abc", 0)] {
        log.tell_with(&answer, &[], |entry| {
            *entry = HttpAccessLogEntry {
                common_properties: Some(AccessLogCommon::default()),
                request: Some(HttpRequestProperties { request_id: id.to_owned() }),
                response: None,
            };
        })
        .await;
        picker.wait_for_scrapes().await;
        until(async || load(&picker).await.0 <= n_in_flight).await;
        assert_eq!(load(&picker).await.0, n_in_flight, "{id}");
    }
    assert!(picker.metrics().await.contains("epp_unreported_responses_total 0\n"));
}

/// A share of the responses is reported, and all of them are in the log: the first of the two counts.
#[tokio::test]
async fn a_response_that_is_reported_ends_with_its_report() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let log = proxy.open_log();
    let answer = ask(&proxy, &"a".repeat(2048)).await;
    let report = proxy.begin_report(&answer).await;
    until(async || picker.metrics().await.contains("epp_streams 1\n")).await;
    log.tell(&answer).await;
    let second = ask(&proxy, "second").await;
    log.tell(&second).await;
    until(async || load(&picker).await == (1, 2048)).await;
    report.report_headers(&[]).await;
    report.report_body(USAGE, true).await;
    until(async || load(&picker).await == (0, 0)).await;
    let usage = |record: &Value| record["response"]["usage"]["prompt_tokens"].clone();
    let records = picker.decisions(0).await;
    assert_eq!(records.iter().map(usage).collect::<Vec<_>>(), [json!(600), Value::Null]);
}

#[tokio::test]
async fn a_report_corrects_the_estimate() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let mut corrected = Vec::new();
    // Control: the engine has computed what it had to.
    for (cached_tokens, n_corrections) in [(0, 0), (480, 0), (0, 1)] {
        let answer = ask(&proxy, &"b".repeat(2048)).await;
        let report = proxy.begin_report(&answer).await;
        report.report_headers(&[]).await;
        let usage = USAGE.replace("600", "512").replace("_tokens\":0", &format!("_tokens\":{cached_tokens}"));
        report.report_body(&usage, true).await;
        assert_eq!(report.close().message().await.unwrap(), None);
        until(async || response(&picker).await["complete"] == true).await;
        corrected.push(
            picker.metrics().await.contains(&format!("epp_prefix_corrections_total {n_corrections}\n")),
        );
    }
    assert_eq!(corrected, [true; 3]);
}

#[tokio::test]
async fn a_report_tells_who_served() {
    let picker = Scenario::new(2).endpoints_per_pick(2).start().await;
    let proxy = picker.proxy().await;
    let answer = ask(&proxy, &"c".repeat(2048)).await;
    let other = answer.picked().split(',').nth(1).expect("a fallback").to_owned();
    let report = proxy.begin_report(&answer).await;
    report.report_headers(&[("x-gateway-destination-endpoint-served", &other)]).await;
    until(async || picker.decisions(0).await.pop().unwrap()["served"] == *other).await;
    assert!(picker.metrics().await.contains("epp_served_elsewhere_total 1\n"));

    // The access log tells it as well; the first of the picked ones is not worth a note.
    let log = proxy.open_log();
    for (is_first, n_elsewhere) in [(true, 1), (false, 2)] {
        let answer = ask(&proxy, &"d".repeat(2048)).await;
        let mut picked = answer.picked().split(',');
        let served = if is_first { picked.next() } else { picked.nth(1) };
        let served = served.expect("a fallback");
        log.tell_with(&answer, &[("x-gateway-destination-endpoint-served", served)], |_| {}).await;
        until(async || response(&picker).await["complete"] == true).await;
        let record = picker.decisions(0).await.pop().unwrap();
        assert_eq!(record["served"], if is_first { Value::Null } else { json!(served) });
        assert!(picker.metrics().await.contains(&format!("epp_served_elsewhere_total {n_elsewhere}\n")));
    }
}

/// A client that is gone, a pod that has died: the proxy ends the report in the middle.
#[tokio::test]
async fn a_report_that_breaks_off_ends_the_request() {
    if test_skips::skips_slow() {
        return;
    }
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let answer = ask(&proxy, &"b".repeat(2048)).await;
    assert_eq!(load(&picker).await, (1, 2048));
    let report = proxy.begin_report(&answer).await;
    report.report_headers(&[]).await;
    report.report_body(&USAGE[..30], false).await;
    // A stream that is reset takes along the messages that are still unread.
    until(async || load(&picker).await == (1, 0)).await;
    drop(report);
    until(async || load(&picker).await.0 == 0).await;
    until(async || response(&picker).await["complete"] == false).await;
}

/// The proxy resets a report some milliseconds after the response, which may be before a busy picker has read any of it.
#[tokio::test]
async fn a_report_that_is_reset_at_once_is_read() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let answer = ask(&proxy, &"b".repeat(2048)).await;
    let ticket = answer.ticket.as_deref().unwrap();
    let metadata = [("x-gateway-destination-endpoint", answer.picked()), ("x-warmpath-ticket", ticket)];
    let head = http_headers(&post("/v1/completions"), true);
    let response_head = http_headers(&[(":status", "200"), ("content-type", "application/json")], false);
    let mut frames = frame(Kind::Headers, 4, 1, &header_block());
    for request in [Request::RequestHeaders(head), Request::ResponseHeaders(response_head)] {
        frames.extend(frame(Kind::Data, 0, 1, &framed(&reported(request, &metadata))));
    }
    assert_eq!(load(&picker).await, (1, 2048), "Control: nothing is reported yet");
    frames.extend(frame(Kind::RstStream, 0, 1, &8_u32.to_be_bytes()));
    let mut peer = Peer::connect(picker.ports.grpc).await;
    peer.write(&frames, SOON).await;
    until(async || load(&picker).await == (0, 0)).await;
    assert_eq!(response(&picker).await["status"], 200);
    assert!(picker.metrics().await.contains("epp_unreported_responses_total 0\n"));
}

/// Every frame to the proxy is a write, and wakes the proxy.
#[tokio::test]
async fn a_report_is_answered_by_one_frame_at_its_end() {
    const END_STREAM: u8 = 1;
    const ACK: u8 = 1;
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    // Control: without the observer's metadata, the stream may be that of a request, whose sender may wait for headers.
    for (metadata, is_silent) in [(&[("x-warmpath-picker", "127.0.0.1:9002")][..], true), (&[], false)] {
        let answer = ask(&proxy, &"b".repeat(2048)).await;
        let ticket = answer.ticket.as_deref().unwrap();
        let lb = [("x-gateway-destination-endpoint", answer.picked()), ("x-warmpath-ticket", ticket)];
        let response_head = http_headers(&[(":status", "200"), ("content-type", "application/json")], false);
        let mut frames = frame(Kind::Headers, 4, 1, &header_block_with(metadata));
        let head = Request::RequestHeaders(http_headers(&post("/v1/completions"), true));
        let start = HttpBody { body: "{".into(), ..HttpBody::default() };
        for request in [head, Request::ResponseHeaders(response_head), Request::ResponseBody(start)] {
            frames.extend(frame(Kind::Data, 0, 1, &framed(&reported(request, &lb))));
        }
        let mut peer = Peer::connect(picker.ports.grpc).await;
        peer.write(&frames, SOON).await;
        until(async || load(&picker).await == (1, 0)).await;
        let mut n_frames = 0;
        // The second answer comes behind everything that waited when the first one left.
        for _ in 0..2 {
            peer.write(&frame(Kind::Ping, 0, 0, &[0; 8]), SOON).await;
            loop {
                match peer.read_frame().await {
                    (_, _, 1) => n_frames += 1,
                    frame if frame == (Kind::Ping as u8, ACK, 0) => break,
                    _ => {}
                }
            }
        }
        assert_eq!(n_frames, u32::from(!is_silent), "{metadata:?}");
        peer.write(&frame(Kind::Data, END_STREAM, 1, b""), SOON).await;
        assert_eq!(peer.read_frame().await, (Kind::Headers as u8, 4 | END_STREAM, 1), "{metadata:?}");
        until(async || load(&picker).await == (0, 0)).await;
        assert_eq!(response(&picker).await["status"], 200);
    }
}

/// The proxy needs no more of the stream than the answers to its request, so it is not read once more.
#[tokio::test]
async fn the_stream_of_a_request_ends_with_its_answers() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await.with_observed_responses();
    let completion = body("a");
    let mut call = proxy.open().await;
    call.send_headers(None, &post("/v1/completions"), None, false).await;
    call.send_body(completion.as_bytes(), true).await;
    call.full_duplex_answer().await;
    assert_eq!(call.try_next().await.unwrap(), None, "the body's end is the request's");

    let mut call = proxy.open().await;
    call.send_headers(None, &[(":method", "GET"), (":path", "/v1/models")], None, true).await;
    assert!(matches!(call.next().await, Response::RequestHeaders(_)));
    assert_eq!(call.try_next().await.unwrap(), None, "the request has no body");

    let mut call = proxy.open().await;
    let upload =
        [(":method", "POST"), (":path", "/v1/audio/transcriptions"), ("content-type", "multipart/form-data")];
    call.send_headers(None, &upload, None, false).await;
    assert!(matches!(call.next().await, Response::RequestHeaders(_)));
    call.send_body(b"RIFF", false).await;
    assert!(matches!(call.next().await, Response::RequestBody(_)));
    call.send_body(b"WAVE", true).await;
    assert!(matches!(call.next().await, Response::RequestBody(_)));
    assert_eq!(call.try_next().await.unwrap(), None, "the body that is not read has ended");

    let mut call = proxy.open().await;
    let config = modes(BodySendMode::Buffered, BodySendMode::None);
    call.send_headers(Some(config), &post("/v1/completions"), None, false).await;
    assert!(matches!(call.next().await, Response::RequestHeaders(_)));
    call.send_body(completion.as_bytes(), false).await;
    assert!(matches!(call.next().await, Response::RequestBody(_)));
    // Control: the trailers are still to come.
    call.send(Request::RequestTrailers(HttpTrailers::default())).await;
    assert!(matches!(call.next().await, Response::RequestTrailers(_)));
    assert_eq!(call.try_next().await.unwrap(), None, "the trailers are the request's end");

    // Control: the response is still to come.
    let mut call = picker.proxy().await.open().await;
    call.send_headers(None, &post("/v1/completions"), None, false).await;
    call.send_body(completion.as_bytes(), true).await;
    call.full_duplex_answer().await;
    call.finish_response().await;
}

/// Reports end well, early, in the middle, or come twice, and the requests overlap.
#[tokio::test]
async fn however_reports_end_no_request_stays_in_flight() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let mut open = Vec::new();
    for number in 0..40 {
        let answer = ask(&proxy, &format!("{number}").repeat(100)).await;
        let report = proxy.begin_report(&answer).await;
        match number % 4 {
            0 => {
                report.report_headers(&[]).await;
                report.report_body(USAGE, true).await;
            }
            1 => report.report_headers(&[]).await,
            2 => {
                report.report_headers(&[]).await;
                report.report_body(&USAGE[..30], false).await;
            }
            _ => open.push(proxy.begin_report(&answer).await),
        }
        open.push(report);
    }
    until(async || load(&picker).await.0 == 30).await;
    drop(open);
    until(async || load(&picker).await == (0, 0)).await;

    // Control: a request without a report stays in flight.
    picker.pods[0].set_load(0, 1, 0.0);
    picker.wait_for_scrapes().await;
    ask(&proxy, "unreported").await;
    picker.wait_for_scrapes().await;
    assert_eq!(load(&picker).await.0, 1);
}

/// Reports may be lost. The engine's counts tell then that a request is over, before the longest wait ends: that of an
/// earlier request, whose engine is busy.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the engine's time is the clock's")]
async fn a_request_without_a_report_is_over_when_its_engine_has_none() {
    let picker = Scenario::new(2).start().await;
    let proxy = picker.proxy().await;
    let busy = ask(&proxy, "its engine is busy").await;
    let pod = picker.pods.iter().find(|pod| pod.address.to_string() == busy.picked());
    pod.unwrap().set_load(0, 1, 0.0);
    picker.wait_for_scrapes().await;
    let asked = Instant::now();
    let lost = ask(&proxy, "its report is lost").await;
    assert_ne!(lost.picked(), busy.picked());
    let n_in_flight = async || {
        let pools: Value = serde_json::from_str(&get(picker.ports.metrics, "/debug/pools").await).unwrap();
        let pods = pools["pools"][0]["endpoints"].as_array().unwrap();
        [&busy, &lost].map(|answer| {
            let pod = pods.iter().find(|pod| pod["endpoint"] == answer.picked());
            pod.unwrap()["in_flight"].as_u64().unwrap()
        })
    };
    assert_eq!(n_in_flight().await, [1, 1], "Control: the picker knows of no end");
    let mut seen = [1, 1];
    until(async || {
        seen = n_in_flight().await;
        seen[1] == 0
    })
    .await;
    assert_eq!(seen, [1, 0], "the engine's count has ended it, and not the longest wait");
    assert!(asked.elapsed() >= ENGINE_WAIT, "the engine may not have begun");
    assert!(picker.metrics().await.contains("epp_unreported_responses_total 1\n"));
}

#[tokio::test]
async fn a_second_report_and_one_of_another_process_change_nothing() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let answer = ask(&proxy, "hello").await;
    let first = proxy.begin_report(&answer).await;
    until(async || picker.metrics().await.contains("epp_streams 1\n")).await;
    let ticket = answer.ticket.clone().unwrap();
    let number = ticket.rsplit_once('-').unwrap().1;
    for ticket in [&ticket, &format!("other-{number}"), "other", "-", ""] {
        let answer = Answer {
            ticket: Some(ticket.to_owned()),
            metadata: answer.metadata.clone(),
            ..Answer::default()
        };
        let answer = Answer { destination: answer.metadata.clone(), ..answer };
        let mut again = proxy.begin_report(&answer).await;
        assert_eq!(again.try_next().await.unwrap(), None, "{ticket:?}: the proxy need not go on");
    }
    assert_eq!(load(&picker).await.0, 1);
    // Control: the first one still ends the request.
    drop(first);
    until(async || load(&picker).await.0 == 0).await;
    assert_eq!(picker.decisions(0).await.len(), 1, "a report is no request");
}

/// The proxy learns from the pick which picker it must report to.
#[tokio::test]
async fn each_of_two_pickers_gets_the_reports_of_its_own_picks() {
    let pickers = [Scenario::new(1).start().await, Scenario::new(1).start().await];
    let proxies = [pickers[0].proxy().await, pickers[1].proxy().await];
    let answer = ask(&proxies[0], &"d".repeat(2048)).await;
    assert_eq!(answer.picker, Some(pickers[0].ports.grpc.to_string()));
    assert_ne!(answer.picker, Some(pickers[1].ports.grpc.to_string()));
    // Control: the other one does not know the request, and has no peers whom it could tell of it.
    proxies[1].open_log().tell(&answer).await;
    let mut elsewhere = proxies[1].begin_report(&answer).await;
    assert_eq!(elsewhere.try_next().await.unwrap(), None);
    assert_eq!((load(&pickers[0]).await, load(&pickers[1]).await), ((1, 2048), (0, 0)));
    let report = proxies[0].begin_report(&answer).await;
    report.report_headers(&[]).await;
    report.report_body(USAGE, true).await;
    until(async || load(&pickers[0]).await == (0, 0)).await;
    assert_eq!(response(&pickers[0]).await["complete"], true);
    assert_eq!(load(&pickers[1]).await, (0, 0));
}

/// A picker that ends takes reports as long as it takes requests. Reports that come later find no process, and no counts
/// that they could correct.
#[tokio::test]
async fn a_picker_that_drains_takes_reports() {
    let picker = Scenario::new(1).drain_delay(SOON).start().await;
    let proxy = picker.proxy().await;
    let [first, second] = [ask(&proxy, "first").await, ask(&proxy, "second").await];
    let early = proxy.begin_report(&first).await;
    picker.shutdown.drain.cancel();
    until(async || picker.log.lines().iter().any(|line| line.contains("Draining"))).await;
    assert_eq!(load(&picker).await.0, 2, "Control: a drain ends no request");
    let late = proxy.begin_report(&second).await;
    for (report, n_in_flight) in [(early, 1), (late, 0)] {
        report.report_headers(&[]).await;
        report.report_body(USAGE, true).await;
        until(async || load(&picker).await.0 == n_in_flight).await;
    }
    picker.shutdown.abort.cancel();
}

/// The proxy keeps its access log open until the picker ends it, and then opens it where requests are still taken. What it
/// sends until then is read.
#[tokio::test]
async fn a_picker_that_drains_ends_the_access_log() {
    const END_STREAM: u8 = 1;
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let [first, second] = [ask(&proxy, "first").await, ask(&proxy, "second").await];
    let path = "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs";
    let entry = |answer| frame(Kind::Data, 0, 1, &framed(&ending(answer, &[], |_| {})));
    let mut peer = Peer::connect(picker.ports.grpc).await;
    peer.write(&frame(Kind::Headers, 4, 1, &header_block_of(path, &[])), SOON).await;
    peer.write(&entry(&first), SOON).await;
    until(async || load(&picker).await.0 == 1).await;
    picker.shutdown.drain.cancel();
    let ends_stream = |(kind, flags, stream): (u8, u8, u32)| {
        (kind, stream) == (Kind::Headers as u8, 1) && flags & END_STREAM != 0
    };
    while !ends_stream(peer.read_frame().await) {}
    assert_eq!(load(&picker).await.0, 1, "Control: a drain ends no request");
    peer.write(&entry(&second), SOON).await;
    until(async || load(&picker).await.0 == 0).await;
}

#[tokio::test]
async fn upstreams_replies_name_the_request_for_its_report_too() {
    let picker = Scenario::new(1).compat(Compat::GieV04).start().await;
    let proxy = picker.proxy().await;
    let answer = ask(&proxy, &"e".repeat(2048)).await;
    assert_eq!(load(&picker).await, (1, 2048));
    let report = proxy.begin_report(&answer).await;
    report.report_headers(&[]).await;
    report.report_body(USAGE, true).await;
    until(async || load(&picker).await == (0, 0)).await;
    assert_eq!(response(&picker).await["usage"]["prompt_tokens"], 600);
    // Control: a proxy that sends responses through the picker gets no name.
    let answer = proxy.full_duplex_request(&post("/v1/completions"), &body("f")).await;
    assert_eq!((answer.ticket, answer.picker), (None, None));
}

#[tokio::test]
async fn the_proxy_gets_the_decision_for_the_response() {
    let picker = Scenario::new(1).explains().start().await;
    let proxy = picker.proxy().await.with_observed_responses();
    let mut decisions = Vec::new();
    for asked in [Some("1"), None] {
        let mut headers = post("/v1/completions").to_vec();
        headers.extend(asked.map(|asked| ("x-warmpath-explain", asked)));
        decisions.push(proxy.full_duplex_request(&headers, &body("a")).await.decision);
    }
    let told: Value = serde_json::from_str(decisions[0].as_deref().unwrap()).unwrap();
    assert_eq!(told["pod"], "qwen-0");
    assert_eq!(decisions[1], None);
}
