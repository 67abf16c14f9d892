//! Compares token ids with the counts and ids that transformers gives for Qwen2.5.
#![expect(clippy::unwrap_used, reason = "a template that fails fails its test")]

use crate::tutorial::{ROUND1, ROUND2_QUOTED, round2_bash};
use serde_json::{Map, Value};
use std::time::Duration;
use vllm_text::tokens::chat::{Chat, ChatMessage};
use vllm_text::tokens::chat_template::{ChatTemplate, ChatTemplateConfig};
use vllm_text::tokens::{SpecialTokens, Tokenizer};

const ASSISTANT: &str =
    "Hi there! It looks like you're setting up a fun test. I'm ready to play Zork! You can";

fn messages(body: &str) -> Vec<ChatMessage> {
    let body: Value = serde_json::from_str(body).expect("the body is JSON");
    let text = |message: &Value, field: &str| message[field].as_str().expect("fields are text").to_owned();
    let messages = body["messages"].as_array().expect("messages are a list").iter();
    messages.map(|message| ChatMessage::new(&text(message, "role"), &text(message, "content"))).collect()
}

fn chat(messages: Vec<ChatMessage>, add_generation_prompt: bool) -> Chat {
    let variables =
        Map::from_iter([("add_generation_prompt".to_owned(), Value::from(add_generation_prompt))]);
    Chat { messages, variables, ..Chat::default() }
}

fn template(tokenizer: Tokenizer) -> ChatTemplate {
    ChatTemplate::try_new(tokenizer, ChatTemplateConfig::default(), || Duration::ZERO).unwrap()
}

fn chat_ids(body: &str) -> Vec<u32> {
    template(Tokenizer::qwen25()).encode(&chat(messages(body), true)).unwrap()
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[test]
fn the_tutorials_prompts_have_their_known_ids() {
    let round1 = chat_ids(ROUND1);
    assert_eq!(round1.len(), 127);
    let first_block =
        [151_644, 8948, 198, 2610, 525, 1207, 16948, 11, 3465, 553, 54364, 14817, 13, 1446, 525, 264];
    assert_eq!(round1[..16], first_block);
    let second_block =
        [10950, 17847, 13, 151_645, 198, 151_644, 872, 198, 13048, 11, 1588, 594, 1045, 1849, 9934, 25];
    assert_eq!(round1[16..32], second_block);
    let tail = [894, 2033, 13, 525, 498, 5527, 30, 151_645, 198, 151_644, 77091, 198];
    assert_eq!(round1[115..], tail);
}

#[test]
fn the_tutorials_rounds_share_their_known_prefixes() {
    let (round1, quoted, bash) = (chat_ids(ROUND1), chat_ids(ROUND2_QUOTED), chat_ids(&round2_bash()));
    assert_eq!((quoted.len(), bash.len()), (230, 228));
    assert_eq!((common_prefix(&round1, &quoted), common_prefix(&round1, &bash)), (127, 127));
    let answer = Tokenizer::qwen25().encode(ASSISTANT);
    assert_eq!(answer.len(), 24);
    let with_answer = [round1, answer].concat();
    assert_eq!((common_prefix(&with_answer, &quoted), common_prefix(&with_answer, &bash)), (151, 133));
}

#[test]
fn the_answer_has_its_known_tokens() {
    let tokenizer = Tokenizer::qwen25();
    let pieces: Vec<_> =
        tokenizer.encode(ASSISTANT).iter().map(|id| tokenizer.decode(&[*id], SpecialTokens::Skip)).collect();
    assert_eq!(
        pieces.join("|"),
        "Hi| there|!| It| looks| like| you|'re| setting| up| a| fun| test|.| I|'m| ready| to| play| Z|ork|!| You| can"
    );
}

#[test]
fn added_tokens_split_the_text_before_anything_else() {
    let tokenizer = Tokenizer::qwen25();
    #[track_caller]
    fn check(tokenizer: &Tokenizer, text: &str, expected: &[u32]) {
        assert_eq!(tokenizer.encode(text), expected, "{text:?}");
    }
    check(&tokenizer, "<|endoftext|>", &[151_643]);
    check(&tokenizer, "<|im_start|><|im_end|>\n", &[151_644, 151_645, 198]);
    check(&tokenizer, "<tool_call>", &[151_657]);
    check(&tokenizer, "<|file_sep|>", &[151_664]);
    check(&tokenizer, "", &[]);
    // Qwen3's tokens are plain text for Qwen2.5.
    assert!(tokenizer.encode("<think>").len() > 1);
    assert!(tokenizer.encode("<|im_end").len() > 1);
}

#[test]
fn composed_and_decomposed_letters_are_the_same_tokens() {
    let tokenizer = Tokenizer::qwen25();
    assert_eq!(tokenizer.encode("cafe\u{301}"), tokenizer.encode("caf\u{e9}"));
}

#[test]
fn special_tokens_are_skipped_and_tool_tokens_are_shown() {
    let tokenizer = Tokenizer::qwen25();
    let ids = tokenizer.encode("<|im_start|>a<tool_call>b<|im_end|>");
    assert_eq!(tokenizer.decode(&ids, SpecialTokens::Skip), "a<tool_call>b");
    assert_eq!(tokenizer.decode(&ids, SpecialTokens::Show), "<|im_start|>a<tool_call>b<|im_end|>");
    assert_eq!(tokenizer.decode(&[151_900, 4_000_000_000], SpecialTokens::Show), "");
}

#[test]
fn messages_tokenized_one_by_one_equal_the_whole_text() {
    let tokenizer = Tokenizer::qwen25();
    let template = template(tokenizer.clone());
    let contents = [
        "",
        " ",
        "\n\n",
        "a\n",
        "<|im_end|>\n<|im_start|>user\nx",
        "<|im_",
        "é\u{301}",
        "你好 🙂",
        "| |>",
        "1234",
    ];
    for roles in [["system", "user"], ["user", "assistant"]] {
        for first in contents {
            for second in contents {
                for adds in [true, false] {
                    let messages =
                        vec![ChatMessage::new(roles[0], first), ChatMessage::new(roles[1], second)];
                    let chat = chat(messages, adds);
                    let whole = tokenizer.encode(&template.render(&chat).unwrap());
                    assert_eq!(template.encode(&chat).unwrap(), whole, "{chat:?}");
                }
            }
        }
    }
}

#[test]
fn split_characters_are_held_back() {
    let tokenizer = Tokenizer::qwen25();
    let text = "ok 🙂🏴\u{200d}☠️ 𒐫 good";
    let ids = tokenizer.encode(text);
    let mut detokenizer = tokenizer.detokenizer();
    let pieces: Vec<String> = ids.iter().map(|id| detokenizer.push(*id)).collect();
    assert_eq!(pieces.concat(), text);
    assert!(pieces.iter().any(String::is_empty), "no character of the text is split over tokens");
    assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')));
    // What is still incomplete at the end never shows.
    let mut cut = tokenizer.detokenizer();
    let first_split = pieces.iter().position(String::is_empty).expect("one is held back");
    let shown: String = ids[..=first_split].iter().map(|id| cut.push(*id)).collect();
    assert!(text.starts_with(&shown) && !shown.contains('\u{fffd}'));
}

/// Smallest tokenizer.json: three words and an end.
const TINY: &str = r#"{"version":"1.0","truncation":null,"padding":null,
    "added_tokens":[{"id":3,"content":"</s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
    "normalizer":null,"pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
    "model":{"type":"WordLevel","vocab":{"hello":0,"world":1,"?":2},"unk_token":"?"}}"#;

#[test]
fn a_tokenizer_json_takes_the_place_of_the_built_in_one() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("tokenizer.json"), TINY).unwrap();
    let tokenizer = Tokenizer::load(directory.path()).unwrap();
    assert_eq!(tokenizer.encode("hello world zork</s>"), [0, 1, 2, 3]);
    assert_eq!((tokenizer.eos(), tokenizer.vocabulary_len()), (3, 4));
    assert_eq!(tokenizer.decode(&[0, 1, 3], SpecialTokens::Skip), "hello world");
    let mut detokenizer = tokenizer.detokenizer();
    assert_eq!([0, 1, 3].map(|id| detokenizer.push(id)), ["hello", " world", ""]);
}

#[test]
fn a_directory_without_a_tokenizer_is_an_error_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let error = Tokenizer::load(directory.path()).unwrap_err().to_string();
    assert!(error.contains(&directory.path().display().to_string()), "{error}");
    std::fs::write(directory.path().join("tokenizer.json"), "{}").unwrap();
    assert!(Tokenizer::load(directory.path()).unwrap_err().to_string().contains("is not a tokenizer"));
}
