//! The tutorial's two requests, in the three forms that a shell makes of them.

use crate::fixtures::{Proxy, Scenario};

const HEAD: &str = "hi hi hi hi hi hi hi hi hi hi.For user 3, here are some other context: hi hi hi hi hi hi hi hi hi hi \
    hi hi hi hi hi hi hi hi hi hi.I would like to test your intelligence. for this purpose I would like you to play zork. \
    you can interact with the game by typing in commands. I will forward these commands to the game and type in any \
    response. are you ready?";
const TAIL: &str =
    r#""model":"/model/qwen","stream":true,"stream_options":{"include_usage":true},"temperature":0}"#;

/// Form in which a shell passes on the documents' apostrophes and `\n`.
struct Shell {
    you_are: &'static str,
    i_am: &'static str,
    newline: &'static str,
    /// Length of the second body, as `curl -d @file` sends it.
    round2_bytes: usize,
}

/// The quotes around `you're` and `I'm` toggle, and the apostrophes are lost.
const BASH: Shell = Shell { you_are: "youre", i_am: "Im", newline: r"\n", round2_bytes: 969 };
/// The form that the tutorial intends.
const QUOTED: Shell = Shell { you_are: "you're", i_am: "I'm", newline: r"\n", round2_bytes: 971 };
/// `echo` turns `\n` into newlines, which `curl -d` strips.
const DASH: Shell = Shell { you_are: "youre", i_am: "Im", newline: "", round2_bytes: 955 };

impl Shell {
    fn round1(&self) -> String {
        let content = format!("Hi, here's some system prompt: {HEAD}");
        format!(r#"{{"max_tokens":24,"messages":[{{"content":"{content}","role":"user"}}],{TAIL}"#)
    }

    fn round2(&self) -> String {
        let Self { you_are, i_am, newline: n, round2_bytes } = self;
        let messages = [
            (format!("Hi, here's some system prompt: {HEAD}"), "user"),
            (
                format!(
                    "Hi there! It looks like {you_are} setting up a fun test. {i_am} ready to play Zork! You can"
                ),
                "assistant",
            ),
            (
                format!(
                    "% zork{n}Welcome to Dungeon. This version created 11-MAR-91.{n}You are in an open field west \
                     of a big white house with a boarded{n}front door.{n}There is a small mailbox here.{n}>"
                ),
                "user",
            ),
            ("Great!".to_owned(), "assistant"),
            (format!("Opening the mailbox reveals:{n} A leaflet.{n}>"), "user"),
        ];
        let message =
            |(content, role): &(String, &str)| format!(r#"{{"content":"{content}","role":"{role}"}}"#);
        let messages: Vec<String> = messages.iter().map(message).collect();
        let body = format!(r#"{{"max_tokens":3,"messages":[{}],{TAIL}"#, messages.join(","));
        assert_eq!(body.len(), *round2_bytes, "the body of the tutorial");
        body
    }
}

async fn chat(proxy: &Proxy, body: &str) -> String {
    let answer = proxy.chat(body).await;
    assert_eq!(String::from_utf8(answer.body.clone()).unwrap(), body);
    answer.picked().to_owned()
}

async fn check_rounds(shell: &Shell, matching_ratio: &str) {
    let picker = Scenario::new(5).start().await;
    let proxy = picker.proxy().await;
    let first = chat(&proxy, &shell.round1()).await;
    assert_eq!(picker.log.prefix_lines(), Vec::<String>::new(), "nothing is cached yet");
    let second = chat(&proxy, &shell.round2()).await;
    assert_eq!(second, first);
    let lines = picker.log.prefix_lines();
    let [line] = lines.as_slice() else { panic!("expected one line, got {lines:?}") };
    let decisions = picker.decisions(1).await;
    let request = decisions[0]["request"].as_str().unwrap();
    assert_eq!(*line, format!(r#"{{"request": "{request}", "matching ratio": "{matching_ratio}"}}"#));
    assert!(request.len() == 10 && request.chars().all(|char| "bcdfghjklmnpqrstvwxz2456789".contains(char)));
}

#[tokio::test]
async fn bash_prints_054() {
    check_rounds(&BASH, " 0.54 > 0.50").await;
}

#[tokio::test]
async fn proper_quotes_print_054() {
    check_rounds(&QUOTED, " 0.54 > 0.50").await;
}

#[tokio::test]
async fn dash_prints_054() {
    check_rounds(&DASH, " 0.54 > 0.50").await;
}

#[tokio::test]
async fn round2_first_prints_nothing() {
    let picker = Scenario::new(5).start().await;
    let proxy = picker.proxy().await;
    chat(&proxy, &BASH.round2()).await;
    assert_eq!(picker.log.prefix_lines(), Vec::<String>::new());
    // Control: the whole prefix of a repeated request is cached.
    chat(&proxy, &BASH.round2()).await;
    assert!(picker.log.prefix_lines()[0].contains("\" 1.00 > 0.50\""));
}

#[tokio::test]
async fn the_strategy_is_swapped_live() {
    let picker = Scenario::new(5).start().await;
    let proxy = picker.proxy().await;
    chat(&proxy, &BASH.round1()).await;
    picker.change_strategy("DEFAULT").await;
    chat(&proxy, &BASH.round2()).await;
    assert_eq!(picker.log.prefix_lines(), Vec::<String>::new());
    // Control: with the other strategy, the same request is routed by the prefixes of round 1.
    picker.change_strategy("PREFIX_CACHE").await;
    chat(&proxy, &BASH.round2()).await;
    assert_eq!(picker.log.prefix_lines().len(), 1);
}

#[tokio::test]
async fn the_record_says_why() {
    let picker = Scenario::new(2).start().await;
    let proxy = picker.proxy().await;
    chat(&proxy, &BASH.round1()).await;
    let picked = chat(&proxy, &BASH.round2()).await;
    let decisions = picker.decisions(0).await;
    assert_eq!(decisions.len(), 2);
    assert_eq!((&decisions[0]["seq"], &decisions[0]["reason"]), (&1.into(), &"load".into()));
    let second = &decisions[1];
    let expected = serde_json::json!({
        "seq": 2, "x_request_id": "4c9f", "pool": "default/vllm-qwen-pool", "model": "/model/qwen",
        "target_model": "/model/qwen", "strategy": "PREFIX_CACHE", "outcome": "picked", "endpoint": picked,
        "reason": "prefix", "matched_bytes": 392, "total_bytes": 728, "threshold": 0.5, "n_candidates": 2,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&second[key], value, "{key}");
    }
    assert_eq!(second["candidates"].as_array().unwrap().len(), 2);
    assert_eq!(picker.decisions(1).await.len(), 1);
}
