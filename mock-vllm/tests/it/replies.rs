//! Scripted and made-up replies.

use mock_vllm::engine::request::FinishReason;
use mock_vllm::reply::scripted::Script;
use mock_vllm::reply::{Limits, Prompt, Replier, Reply};
use mock_vllm::tokens::{SpecialTokens, Tokenizer};
use std::io::Write as _;

const LIMITS: Limits =
    Limits { max_tokens: 4_000, min_tokens: 0, ignore_eos: false, stop_token_ids: Vec::new(), seed: None };

fn reply(ids: &[u32], limits: &Limits) -> Reply {
    let tokenizer = Tokenizer::qwen25();
    let replier = Replier::new(Script::default(), &tokenizer, 0);
    replier.reply(&Prompt { ids, last_user_text: None, limits })
}

#[test]
fn made_up_text_survives_tokenization() {
    let tokenizer = Tokenizer::qwen25();
    for seed in 0..50 {
        let Reply { tokens, finish, stop_token } = reply(&[seed], &LIMITS);
        assert_eq!((finish, stop_token), (FinishReason::Stop, None));
        let (eos, text_tokens) = tokens.split_last().unwrap();
        assert_eq!(*eos, tokenizer.eos());
        let text = tokenizer.decode(text_tokens, SpecialTokens::Show);
        assert!(text.ends_with('.'), "{text}");
        assert_eq!(tokenizer.encode(&text), text_tokens);
    }
}

#[test]
fn limits_decide_the_end() {
    #[track_caller]
    fn check(limits: Limits, n_tokens: std::ops::RangeInclusive<usize>, finish: FinishReason) {
        let reply = reply(&[1, 2, 3], &limits);
        assert!(n_tokens.contains(&reply.tokens.len()), "{}", reply.tokens.len());
        assert_eq!(reply.finish, finish);
    }
    check(Limits { max_tokens: 3, ..LIMITS }, 3..=3, FinishReason::Length);
    check(Limits { max_tokens: 1_000, ignore_eos: true, ..LIMITS }, 1_000..=1_000, FinishReason::Length);
    check(Limits { min_tokens: 2_500, ..LIMITS }, 2_500..=2_600, FinishReason::Stop);
    check(LIMITS, 5..=2_050, FinishReason::Stop);
    let comma = Tokenizer::qwen25().encode(",")[0];
    let stopped = Limits { stop_token_ids: vec![comma], max_tokens: 4_000, ignore_eos: true, ..LIMITS };
    let stopped = reply(&[4], &stopped);
    assert_eq!((stopped.tokens.last(), stopped.stop_token), (Some(&comma), Some(comma)));
}

#[test]
fn scripts_are_read_from_yaml_and_json_and_errors_name_the_file() {
    let tokenizer = Tokenizer::qwen25();
    let load = |text: &str| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        Script::load(file.path(), &tokenizer).map_err(|error| error.to_string())
    };
    let yaml = load("- last_user_text: [ping, PING]\n  reply: pong\n").unwrap();
    let json = load(r#"[{"last_user_text": ["ping"], "reply": "pong"}]"#).unwrap();
    let pong = tokenizer.encode("pong");
    assert_eq!(yaml.find("PING"), Some(&pong[..]));
    assert_eq!(json.find("ping"), Some(&pong[..]));
    assert_eq!(json.find("ping "), None);
    assert!(load("- last_user_text: [a]\n  answer: b\n").unwrap_err().contains("scripted replies in"));
    assert!(load("- last_user_text: [a, a]\n  reply: b\n").unwrap_err().contains("two replies"));
    assert!(load("- last_user_text: [a]\n  reply: ''\n").unwrap_err().contains("empty reply"));
}
