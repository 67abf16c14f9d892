//! Bodies that are held: their total memory, and their time.

use std::sync::Arc;
use std::time::Duration;

use envoy_proto::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use epp::server::grpc::Timeouts;
use ext_proc::budget::{Budget, Full};
use ext_proc::compat::Compat;
use proptest::prelude::*;

use crate::conversation::{self, Mode, budgeted_exchange, step};
use crate::fixtures::program::Program;
use crate::fixtures::{Call, Picker, Proxy, Scenario, TIMEOUTS, get, modes, post, until};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const SHORT: Duration = Duration::from_millis(100);
const CHAT: &str = r#"{"model":"/model/qwen","messages":[{"role":"user","content":"hello"}]}"#;

/// A completion of exactly `n_bytes`.
fn completion(n_bytes: usize) -> String {
    let (head, tail) = (r#"{"model":"/model/qwen","prompt":""#, r#""}"#);
    format!("{head}{}{tail}", "x".repeat(n_bytes - head.len() - tail.len()))
}

async fn metric(picker: &Picker, name: &str) -> usize {
    let metrics = picker.metrics().await;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_default()
}

/// A request whose body lacks its last byte.
async fn upload(proxy: &Proxy, body: &str, mode: BodySendMode) -> Call {
    let mut call = proxy.open().await;
    call.send_headers(Some(modes(mode, BodySendMode::None)), &post("/v1/completions"), None, false).await;
    if mode == BodySendMode::Buffered {
        call.next().await;
        return call;
    }
    for chunk in body.as_bytes()[..body.len() - 1].chunks(16 * KIB) {
        call.send_body(chunk, false).await;
    }
    call
}

#[tokio::test]
async fn three_hundred_slow_uploads_take_no_more_than_the_budget() {
    if test_skips::skips_slow() {
        return;
    }
    let (n_bytes, budget) = (20 * KIB, MIB);
    let picker = Scenario::new(1).max_buffered_bytes(budget).start().await;
    let body = completion(n_bytes);
    let mut uploads = Vec::new();
    for _ in 0..300 {
        uploads.push(upload(&picker.proxy().await, &body, BodySendMode::FullDuplexStreamed).await);
    }
    let n_most = budget / n_bytes;
    let refused = r#"epp_refusals_total{outcome="buffers_full"} "#;
    until(async || metric(&picker, refused).await >= 300 - n_most).await;
    let held = metric(&picker, "epp_buffered_bytes ").await;
    assert!(held <= budget && held > budget - n_bytes, "{held} bytes of {budget} are held");
    // Uploads that found room are answered when they end; the others were told when to try again.
    let (mut n_picked, mut n_refused) = (0, 0);
    for mut call in uploads {
        call.send_body(b"}", true).await;
        let answer = call.full_duplex_answer().await;
        match answer.refused {
            None => n_picked += 1,
            Some((code, body, details)) => {
                assert_eq!((code, details.as_str()), (503, "epp_buffers_full"));
                assert_eq!(body["error"]["type"], "ServiceUnavailableError");
                assert_eq!(answer.retry_after.as_deref(), Some("1"));
                n_refused += 1;
            }
        }
    }
    assert_eq!(n_refused, metric(&picker, refused).await);
    assert!((n_most - 1..=n_most).contains(&n_picked), "{n_picked} uploads were answered");
    until(async || metric(&picker, "epp_buffered_bytes ").await == 0).await;
    assert_eq!(picker.proxy().await.chat(CHAT).await.refused, None);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn bodies_that_lack_their_last_byte_take_about_their_length() {
    if test_skips::skips_slow() {
        return;
    }
    let (n_bodies, n_bytes) = (12, 3 * MIB);
    let program = Program::start(1000);
    let body = completion(n_bytes);
    let before = program.resident_bytes();
    let mut uploads = Vec::new();
    for _ in 0..n_bodies {
        let proxy = Proxy::connect(program.address("grpc")).await;
        uploads.push(upload(&proxy, &body, BodySendMode::FullDuplexStreamed).await);
    }
    let held = format!("epp_buffered_bytes {}", n_bodies * (n_bytes - 1));
    let all_came =
        async || get(program.address("metrics"), "/metrics").await.lines().any(|line| line == held);
    until(all_came).await;
    let grown = program.resident_bytes() - before;
    assert!(grown > n_bodies * n_bytes * 9 / 10, "{grown} bytes cannot be the bodies");
    assert!(grown < n_bodies * n_bytes * 13 / 10, "{grown} bytes for {} of bodies", n_bodies * n_bytes);
}

#[tokio::test]
async fn long_bodies_leave_room_for_short_ones() {
    let picker = Scenario::new(1).max_buffered_bytes(4 * MIB).start().await;
    let body = completion(MIB);
    let mut uploads = Vec::new();
    for _ in 0..4 {
        uploads.push(upload(&picker.proxy().await, &body, BodySendMode::FullDuplexStreamed).await);
    }
    until(async || metric(&picker, r#"epp_refusals_total{outcome="buffers_full"} "#).await == 1).await;
    assert_eq!(picker.proxy().await.chat(CHAT).await.refused, None);
    // A body that can never find room is too long, whatever else is held.
    drop(uploads);
    let proxy = picker.proxy().await;
    let body = completion(4 * MIB);
    let chunks: Vec<&[u8]> = body.as_bytes().chunks(16 * KIB).collect();
    let answer = proxy.full_duplex(&post("/v1/completions"), &chunks).await;
    assert_eq!(answer.code(), 413);
}

#[tokio::test]
async fn room_is_given_back_however_a_stream_ends() {
    let picker = Scenario::new(1).start().await;
    let body = completion(100 * KIB);
    for end in ["is cut", "is answered", "is malformed", "breaks the protocol"] {
        let mut call = upload(&picker.proxy().await, &body, BodySendMode::FullDuplexStreamed).await;
        until(async || metric(&picker, "epp_buffered_bytes ").await == 100 * KIB - 1).await;
        match end {
            "is answered" => {
                call.send_body(b"}", true).await;
                assert_eq!(call.full_duplex_answer().await.refused, None);
            }
            "is malformed" => {
                call.send_body(b"]", true).await;
                assert_eq!(call.full_duplex_answer().await.code(), 400);
            }
            "breaks the protocol" => {
                call.send_headers(None, &post("/v1/completions"), None, false).await;
                assert!(call.try_next().await.is_err());
            }
            _ => drop(call),
        }
        until(async || metric(&picker, "epp_buffered_bytes ").await == 0).await;
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    if test_skips::skips_slow() {
        return;
    }
    let long = TIMEOUTS.total;
    for (timeouts, expected) in [
        (Timeouts { idle: 5 * SHORT, total: long }, "nothing of the body came for 500ms"),
        (Timeouts { idle: long, total: 5 * SHORT }, "the body was not complete after 500ms"),
    ] {
        let picker = Scenario::new(1).body_timeouts(timeouts).start().await;
        for mode in [BodySendMode::FullDuplexStreamed, BodySendMode::Buffered] {
            let mut call = upload(&picker.proxy().await, &completion(20 * KIB), mode).await;
            let (code, body, details) = call.full_duplex_answer().await.refused.expect("a refusal");
            assert_eq!((code, details.as_str()), (408, "epp_body_timeout"));
            assert_eq!(body["error"]["message"], expected);
            assert_eq!(body["error"]["type"], "RequestTimeoutError");
        }
        assert_eq!(metric(&picker, r#"epp_refusals_total{outcome="body_timeout"} "#).await, 2);
        until(async || metric(&picker, "epp_buffered_bytes ").await == 0).await;
        // A stream on which nothing arrives at all cannot be answered.
        let mut silent = picker.proxy().await.open().await;
        assert_eq!(silent.try_next().await.unwrap_err().code(), tonic::Code::FailedPrecondition);
    }
}

#[tokio::test]
async fn a_body_that_trickles_in_is_given_up_in_total() {
    let timeouts = Timeouts { idle: 10 * SHORT, total: 5 * SHORT };
    let picker = Scenario::new(1).body_timeouts(timeouts).start().await;
    let mut call = upload(&picker.proxy().await, &completion(100), BodySendMode::FullDuplexStreamed).await;
    for _ in 0..10 {
        call.send_body(b" ", false).await;
        tokio::time::sleep(SHORT).await;
    }
    assert_eq!(call.full_duplex_answer().await.code(), 408);
}

#[tokio::test]
async fn a_response_may_take_its_time() {
    // Control: the limits for bodies end no request that was answered.
    let timeouts = Timeouts { idle: 10 * SHORT, total: 10 * SHORT };
    let picker = Scenario::new(1).body_timeouts(timeouts).start().await;
    let mut call = picker.proxy().await.open().await;
    call.send_headers(None, &post("/v1/completions"), None, false).await;
    call.send_body(completion(100).as_bytes(), true).await;
    assert_eq!(call.full_duplex_answer().await.refused, None);
    tokio::time::sleep(12 * SHORT).await;
    call.finish_response().await;
}

#[test]
fn a_refused_body_is_not_counted_and_a_sent_one_no_longer() {
    let budget = Arc::new(Budget::new(100_000));
    let text = completion(60_000).replacen("/model/qwen", "m", 1) + &" ".repeat(10);
    let half = |exchange: &mut _, part: &str, end| {
        step(exchange, Mode::FULL_DUPLEX, conversation::body(part, end)).unwrap()
    };
    let mut first = budgeted_exchange(&budget, MIB, Compat::None);
    let mut second = budgeted_exchange(&budget, MIB, Compat::None);
    for exchange in [&mut first, &mut second] {
        assert!(step(exchange, Mode::FULL_DUPLEX, conversation::post()).unwrap().is_empty());
    }
    assert!(half(&mut first, &text[..59_999], false).is_empty());
    assert_eq!(budget.held_bytes(), 59_999);
    assert_eq!(half(&mut second, &text, false).len(), 1, "not refused at once");
    assert_eq!(budget.held_bytes(), 59_999);
    // Its answers hold the body until they are taken.
    assert!(half(&mut first, &text[59_999..], true).len() >= 2);
    assert_eq!(budget.held_bytes(), 60_000);
    first.note_sent();
    assert_eq!(budget.held_bytes(), 0);
}

proptest! {
    /// The sum is right and within the bound after any reservations and releases.
    #[test]
    fn the_sum_is_bounded(steps in prop::collection::vec((0_usize..8, 0_usize..(600 * KIB)), 1..200)) {
            let budget = Arc::new(Budget::new(2 * MIB));
        let mut held: Vec<_> = (0..8).map(|_| (budget.reserve(), 0)).collect();
        for (idx, n_bytes) in steps {
            let sum: usize = held.iter().map(|(_, n_bytes)| n_bytes).sum();
            let (reservation, n_held) = &mut held[idx];
            if n_bytes % 7 == 0 {
                reservation.release();
                *n_held = 0;
            } else {
                let is_short = *n_held + n_bytes <= 256 * KIB;
                let max = if is_short { 2 * MIB } else { budget.longest_body() };
                let expected = if sum + n_bytes <= max { Ok(()) } else { Err(Full) };
                prop_assert_eq!(reservation.try_grow(n_bytes), expected);
                *n_held += if expected.is_ok() { n_bytes } else { 0 };
            }
            let sum: usize = held.iter().map(|(_, n_bytes)| n_bytes).sum();
            prop_assert_eq!(budget.held_bytes(), sum);
        }
        drop(held);
        prop_assert_eq!(budget.held_bytes(), 0);
    }
}

#[test]
fn a_response_that_finds_no_room_is_not_held() {
    for (max_bytes, expected) in [(100_000, 0), (1_000, 1)] {
        let budget = Arc::new(Budget::new(max_bytes));
        let mut exchange = budgeted_exchange(&budget, MIB, Compat::GieV04);
        let mut send = |request| step(&mut exchange, Mode::FULL_DUPLEX, request).unwrap();
        send(conversation::post());
        send(conversation::body(conversation::BODY, true));
        send(conversation::response("200", "application/json"));
        let answers = send(conversation::response_body(&"x".repeat(2_000), false));
        assert_eq!(answers.len(), expected);
        drop(exchange);
        assert_eq!(budget.held_bytes(), 0);
    }
}
