//! Every id against what the official tokenizers and chat templates give: `tests/fixtures/tokens/make.py` asked them.
#![expect(clippy::unwrap_used, reason = "a fixture that cannot be read fails its test")]

use crate::server_fixtures::{TestPod, start};
use mock_vllm::tokens::qwen::QwenFamily;
use mock_vllm::tokens::{SpecialTokens, Tokenizer};
use serde::Deserialize;
use serde_json::Value;
use unicode_normalization::UnicodeNormalization as _;

const STRINGS: &str = include_str!("../fixtures/tokens/strings.json");
const CHATS: &str = include_str!("../fixtures/tokens/chats.json");

#[derive(Deserialize)]
struct Row {
    text: String,
    /// Of Qwen2.5, and of Qwen3 unless it has others.
    ids: Vec<u32>,
    qwen3_ids: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct ChatRow {
    name: String,
    family: String,
    /// A body of `/v1/chat/completions` without its model.
    body: Value,
    text: String,
    ids: Vec<u32>,
}

fn rows() -> Vec<Row> {
    serde_json::from_str(STRINGS).unwrap()
}

async fn pod(family: &str) -> TestPod {
    start(&format!("--tokenizer {family} --enable-auto-tool-choice --tool-call-parser hermes")).await
}

#[test]
fn five_hundred_strings_have_the_official_ids() {
    let [old, new] = [QwenFamily::Qwen25, QwenFamily::Qwen3].map(Tokenizer::qwen);
    let rows = rows();
    assert!(rows.len() >= 500, "{}", rows.len());
    let mut n_different = 0;
    for Row { text, ids, qwen3_ids } in &rows {
        assert_eq!(&old.encode(text), ids, "Qwen2.5: {text:?}");
        assert_eq!(&new.encode(text), qwen3_ids.as_ref().unwrap_or(ids), "Qwen3: {text:?}");
        n_different += usize::from(qwen3_ids.is_some());
    }
    assert!(n_different > 10, "the families differ in their added tokens: {n_different}");
}

#[test]
fn ids_give_their_text_back_in_any_pieces() {
    let tokenizer = Tokenizer::qwen(QwenFamily::Qwen25);
    for Row { text, ids, .. } in rows() {
        let decoded = tokenizer.decode(&ids, SpecialTokens::Show);
        assert_eq!(decoded.nfc().collect::<String>(), text.nfc().collect::<String>());
        let mut detokenizer = tokenizer.detokenizer_with(SpecialTokens::Show);
        let streamed: String = ids.iter().map(|id| detokenizer.push(*id)).collect();
        // What ends in U+FFFD could still be half a character, and is held back.
        match decoded.ends_with('\u{fffd}') {
            true => assert!(decoded.starts_with(&streamed), "{text:?}"),
            false => assert_eq!(streamed, decoded, "{text:?}"),
        }
    }
}

#[tokio::test]
async fn every_chat_has_the_prompt_of_the_official_template() {
    let chats: Vec<ChatRow> = serde_json::from_str(CHATS).unwrap();
    assert!(chats.len() >= 60, "{}", chats.len());
    let pods = [("qwen2.5", pod("Qwen/Qwen2.5-7B-Instruct").await), ("qwen3", pod("Qwen/Qwen3-8B").await)];
    for ChatRow { name, family, mut body, text, ids } in chats {
        let (_, pod) = pods.iter().find(|(other, _)| *other == family).unwrap();
        body["max_completion_tokens"] = 1.into();
        body["return_token_ids"] = true.into();
        let answer = pod.post("/v1/chat/completions", body.to_string()).await.json();
        let tokens: Vec<u32> = serde_json::from_value(answer["prompt_token_ids"].clone())
            .unwrap_or_else(|error| panic!("{family}, {name}: {error}: {answer}"));
        let prompt = pod.pod.tokenizer.decode(&tokens, SpecialTokens::Show);
        assert_eq!(prompt, text.nfc().collect::<String>(), "{family}, {name}");
        assert_eq!(tokens, ids, "{family}, {name}");
    }
}
