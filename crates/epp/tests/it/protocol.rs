//! The wire: both modes, every cut of a body, many streams, large bodies, broken streams.

use envoy_proto::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_proto::service::ext_proc::v3::HttpBody;
use envoy_proto::service::ext_proc::v3::processing_request::Request;
use tokio::task::JoinSet;
use tonic::Code;

use crate::fixtures::{Scenario, modes, post};

const CHAT: &str =
    r#"{"model":"/model/qwen","messages":[{"role":"user","content":"Grüß Gott\n"}],"stream":true}"#;

#[tokio::test]
async fn a_body_may_be_cut_anywhere() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    for size in 1..=CHAT.len() {
        let mut chunks: Vec<&[u8]> = CHAT.as_bytes().chunks(size).collect();
        if size % 2 == 0 {
            chunks.push(b"");
        }
        let answer = proxy.full_duplex(&post("/v1/chat/completions"), &chunks).await;
        assert_eq!(answer.picked(), picker.pods[0].address.to_string());
        assert_eq!(answer.body, CHAT.as_bytes(), "chunks of {size}");
        assert_eq!(answer.content_length, None);
    }
}

#[tokio::test]
async fn buffered_changes_nothing_but_the_destination() {
    let picker = Scenario::new(1).start().await;
    let answer = picker.proxy().await.buffered(&post("/v1/chat/completions"), CHAT.as_bytes()).await;
    assert_eq!(answer.picked(), picker.pods[0].address.to_string());
    assert_eq!((answer.body.as_slice(), answer.content_length), (CHAT.as_bytes(), None));
}

#[tokio::test]
async fn buffered_renames_the_model() {
    let picker = Scenario::new(1).targets("{name: qwen2-5-7b, weight: 1}").start().await;
    let answer = picker.proxy().await.buffered(&post("/v1/chat/completions"), CHAT.as_bytes()).await;
    let expected = CHAT.replace("/model/qwen", "qwen2-5-7b");
    assert_eq!(answer.body, expected.as_bytes());
    assert_eq!(answer.content_length, Some(expected.len().to_string()));
}

#[tokio::test]
async fn six_megabytes_pass_unchanged() {
    if test_skips::skips_slow() {
        return;
    }
    let picker = Scenario::new(2).start().await;
    let proxy = picker.proxy().await;
    let line = "a line of words that are all the same, ".repeat(4);
    let words: String = (0..40_000_u32).map(|n| format!("{n}: {line}\\n")).collect();
    let body = CHAT.replace("Grüß Gott\\n", &words);
    assert!(body.len() > 6 << 20);
    let chunks: Vec<&[u8]> = body.as_bytes().chunks(65_536).collect();
    let first = proxy.full_duplex(&post("/v1/chat/completions"), &chunks).await;
    assert!(first.body == body.as_bytes(), "the body changed");
    let second = proxy.buffered(&post("/v1/chat/completions"), body.as_bytes()).await;
    assert!(second.body == body.as_bytes(), "the body changed");
    assert_eq!(second.picked(), first.picked());
    assert!(picker.log.prefix_lines()[0].contains("\" 1.00 > 0.50\""));
}

#[tokio::test]
async fn a_body_over_the_limit_is_413() {
    let picker = Scenario::new(1).max_body_bytes(CHAT.len()).start().await;
    let proxy = picker.proxy().await;
    assert_eq!(proxy.chat(CHAT).await.body, CHAT.as_bytes());
    let longer = format!("{CHAT} ");
    assert_eq!(proxy.chat(&longer).await.code(), 413);
    assert_eq!(proxy.buffered(&post("/v1/chat/completions"), longer.as_bytes()).await.code(), 413);
}

/// A message may have 1 MiB besides the longest body; a longer one is not even read.
#[tokio::test]
async fn a_body_in_a_message_that_is_not_read_is_413() {
    let picker = Scenario::new(1).max_body_bytes(CHAT.len()).start().await;
    let proxy = picker.proxy().await;
    let longer = format!("{CHAT}{}", " ".repeat(2 << 20));
    for answer in [
        proxy.chat(&longer).await,
        proxy.full_duplex(&post("/v1/chat/completions"), &[CHAT.as_bytes(), longer.as_bytes()]).await,
        proxy.buffered(&post("/v1/chat/completions"), longer.as_bytes()).await,
    ] {
        let (code, body, details) = answer.refused.expect("a refusal");
        assert_eq!((code, details.as_str()), (413, "epp_body_too_large"));
        let limit = format!("the body is longer than {} bytes", CHAT.len());
        assert_eq!(body["error"]["message"], limit.as_str());
    }
    // The control: nothing can be refused when the response is on its way, so that such a message ends the stream.
    let mut call = proxy.open().await;
    call.send_headers(None, &post("/v1/chat/completions"), None, false).await;
    call.send_body(CHAT.as_bytes(), true).await;
    call.full_duplex_answer().await.picked();
    call.start_response().await;
    call.send(Request::ResponseBody(HttpBody { body: longer.into(), ..HttpBody::default() })).await;
    assert_eq!(call.try_next().await.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test]
async fn bad_json_is_400() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    // The tutorial's request as dash makes it, sent with `--data-binary`.
    let broken = CHAT.replace("\\n", "\n");
    for answer in [
        proxy.chat(&broken).await,
        proxy.buffered(&post("/v1/chat/completions"), broken.as_bytes()).await,
        proxy.chat("").await,
        proxy.chat(&CHAT.replace("model", "modell")).await,
    ] {
        assert_eq!(answer.code(), 400);
    }
    let outcomes = picker.decisions(0).await;
    assert!(outcomes.iter().all(|decision| decision["outcome"] == "bad_request"));
    assert_eq!(outcomes.len(), 4);
    // Control: JSON without a prompt is for the engine to refuse, in its own words.
    assert_eq!(proxy.chat(&CHAT.replace("messages", "prompt")).await.refused, None);
}

#[tokio::test]
async fn sixty_four_streams_at_once() {
    let picker = Scenario::new(4).start().await;
    let proxy = picker.proxy().await;
    let mut calls = JoinSet::new();
    for n in 0..64 {
        let proxy = proxy.clone();
        calls.spawn(async move {
            let body = CHAT.replace("Gott", &format!("Gott {n} {}", "x".repeat(n * 3000)));
            let answer = proxy.chat(&body).await;
            assert!(answer.body == body.as_bytes(), "stream {n} got another body");
            answer.picked().to_owned()
        });
    }
    let picked = calls.join_all().await;
    for pod in &picker.pods {
        assert!(picked.iter().any(|picked| *picked == pod.address.to_string()), "{} got nothing", pod.name);
    }
    assert_eq!(picker.decisions(0).await.len(), 64);
}

#[tokio::test]
async fn a_stream_without_config_is_full_duplex() {
    let picker = Scenario::new(1).start().await;
    let mut call = picker.proxy().await.open().await;
    call.send_headers(None, &post("/v1/chat/completions"), None, false).await;
    assert!(call.is_silent().await, "the headers wait for the body");
    call.send_body(CHAT.as_bytes(), true).await;
    assert_eq!(call.full_duplex_answer().await.body, CHAT.as_bytes());
    // A second end of stream is not answered.
    call.send_body(b"", true).await;
    assert!(call.is_silent().await);
}

#[tokio::test]
async fn a_stream_cut_short_never_ends_well() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    let config = modes(BodySendMode::FullDuplexStreamed, BodySendMode::FullDuplexStreamed);
    let call = proxy.open().await;
    call.send_headers(Some(config), &post("/v1/chat/completions"), None, false).await;
    call.send_body(&CHAT.as_bytes()[..20], false).await;
    assert_eq!(call.close().message().await.unwrap_err().code(), Code::Aborted);
    let call = proxy.open().await;
    call.send_body(b"{}", true).await;
    assert_eq!(call.close().message().await.unwrap_err().code(), Code::FailedPrecondition);
    // Control: the picker still serves.
    assert_eq!(proxy.chat(CHAT).await.body, CHAT.as_bytes());
}

#[tokio::test]
async fn clients_that_disconnect_leave_nothing_behind() {
    let picker = Scenario::new(1).start().await;
    let proxy = picker.proxy().await;
    for _ in 0..50 {
        let call = proxy.open().await;
        call.send_headers(None, &post("/v1/chat/completions"), None, false).await;
        call.send_body(&CHAT.as_bytes()[..30], false).await;
        drop(call);
    }
    let open = async || {
        let metrics = picker.metrics().await;
        metrics.lines().any(|line| line == "epp_streams 0")
    };
    crate::fixtures::until(open).await;
}
