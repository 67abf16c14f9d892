//! Scripted and made-up replies.

use proptest::prelude::{prop_assert, prop_assert_eq, proptest};
use std::io::Write as _;
use std::sync::LazyLock;
use vllm_text::reply::scripted::Script;
use vllm_text::reply::stop_strings::{StopStrings, Visibility};
use vllm_text::reply::visible_text::VisibleText;
use vllm_text::reply::{Limits, Prompt, Replier, Reply, ReplyEnd};
use vllm_text::tokens::{SpecialTokens, Tokenizer};

fn limits() -> Limits {
    Limits { max_tokens: 4_000, ..Limits::default() }
}

fn reply(ids: &[u32], limits: &Limits) -> Reply {
    let tokenizer = Tokenizer::qwen25();
    let replier = Replier::new(Script::default(), &tokenizer, 0);
    replier.reply(&Prompt { ids, last_user_text: None, limits, sample_idx: 0, text: None })
}

#[test]
fn made_up_text_survives_tokenization() {
    let tokenizer = Tokenizer::qwen25();
    for seed in 0..50 {
        let Reply { tokens, end } = reply(&[seed], &limits());
        assert_eq!(end, ReplyEnd::Eos);
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
    fn check(limits: Limits, n_tokens: std::ops::RangeInclusive<usize>, end: &ReplyEnd) {
        let reply = reply(&[1, 2, 3], &limits);
        assert!(n_tokens.contains(&reply.tokens.len()), "{}", reply.tokens.len());
        assert_eq!(reply.end, *end);
    }
    check(Limits { max_tokens: 3, ..limits() }, 3..=3, &ReplyEnd::Length);
    check(Limits { max_tokens: 1_000, ignore_eos: true, ..limits() }, 1_000..=1_000, &ReplyEnd::Length);
    check(Limits { min_tokens: 2_500, ..limits() }, 2_500..=2_600, &ReplyEnd::Eos);
    check(limits(), 5..=2_050, &ReplyEnd::Eos);
    let comma = Tokenizer::qwen25().encode(",")[0];
    let stopped = Limits { stop_token_ids: vec![comma], max_tokens: 4_000, ignore_eos: true, ..limits() };
    let stopped = reply(&[4], &stopped);
    assert_eq!((stopped.tokens.last(), stopped.end), (Some(&comma), ReplyEnd::StopToken(comma)));
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

/// Returns the reply to a prompt that is cut by `stop`, and the text of it that a client gets.
fn stopped(stop: &[&str], visibility: Visibility, min_tokens: u32) -> (Reply, String) {
    let tokenizer = Tokenizer::qwen25();
    let stop = StopStrings::new(stop.iter().map(|text| (*text).to_owned()), visibility);
    let limits = Limits { stop: stop.clone(), min_tokens, ..limits() };
    let reply = reply(&[11], &limits);
    let mut text = VisibleText::new(tokenizer.detokenizer(), reply.end.clone(), &stop);
    let mut visible = String::new();
    for (token_idx, token) in reply.tokens.iter().enumerate() {
        let is_last = token_idx + 1 == reply.tokens.len();
        text.push(*token, is_last.then(|| reply.end.finish_reason()));
        visible.push_str(&if is_last { text.take_rest(reply.end.finish_reason()) } else { text.take() });
    }
    (reply, visible)
}

#[test]
fn a_stop_string_ends_the_reply_and_is_not_shown() {
    let (_, whole) = stopped(&[], Visibility::Hidden, 0);
    // From the middle of one token to the middle of another, so that no token boundary helps.
    let (begin, end) = (20, 31);
    let stop = &whole[begin..end];
    let at = whole.find(stop).unwrap();
    let (reply, visible) = stopped(&["never said", stop], Visibility::Hidden, 0);
    assert_eq!(visible, whole[..at]);
    assert_eq!(reply.end, ReplyEnd::StopString { text: stop.into(), n_visible: at });
    let generated = Tokenizer::qwen25().decode(&reply.tokens, SpecialTokens::Show);
    assert!(generated.len() >= at + stop.len(), "the last token completes the string");
    assert!(!generated[..generated.len() - 1].ends_with(stop), "and no token comes after it: {generated}");
    let (_, shown) = stopped(&[stop], Visibility::Shown, 0);
    assert_eq!(shown, whole[..at + stop.len()]);
}

#[test]
fn the_first_tokens_complete_no_stop_string() {
    let (reply, whole) = stopped(&[], Visibility::Hidden, 0);
    let n_min = 13;
    let (cut, _) = stopped(&[" "], Visibility::Hidden, n_min);
    assert_eq!(cut.tokens.len(), 14, "{whole}");
    assert_eq!(cut.tokens[..], reply.tokens[..14]);
    let (early, text) = stopped(&[" "], Visibility::Hidden, 0);
    assert_eq!((early.tokens.len(), text.as_str()), (2, whole.split(' ').next().unwrap()));
}

proptest! {
    /// Whatever is held back on the way, the client gets the text up to the string, and never a part of the string.
    #[test]
    fn nothing_of_a_stop_string_gets_out(begin in 1..300usize, n_bytes in 1..30usize) {
        static WHOLE: LazyLock<String> = LazyLock::new(|| stopped(&[], Visibility::Hidden, 0).1);
        let whole = WHOLE.as_str();
        let begin = begin.min(whole.len() - 1);
        let stop = &whole[begin..(begin + n_bytes).min(whole.len())];
        let (reply, visible) = stopped(&[stop], Visibility::Hidden, 0);
        let is_stopped = matches!(reply.end, ReplyEnd::StopString { .. });
        prop_assert!(is_stopped);
        prop_assert_eq!(visible.as_str(), &whole[..whole.find(stop).unwrap()]);
    }
}
