//! Compares every id with the official tokenizers', which `tests/fixtures/tokens/make.py` recorded.
#![expect(clippy::unwrap_used, reason = "a fixture that cannot be read fails its test")]

use serde::Deserialize;
use unicode_normalization::UnicodeNormalization as _;
use vllm_text::tokens::qwen::QwenFamily;
use vllm_text::tokens::{SpecialTokens, Tokenizer};

const STRINGS: &str = include_str!("../fixtures/tokens/strings.json");

#[derive(Deserialize)]
struct Row {
    text: String,
    /// Ids of Qwen2.5, and of Qwen3 unless it has others.
    ids: Vec<u32>,
    qwen3_ids: Option<Vec<u32>>,
}

fn rows() -> Vec<Row> {
    serde_json::from_str(STRINGS).unwrap()
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
        // A text that ends in U+FFFD could end in half a character, which is held back.
        match decoded.ends_with('\u{fffd}') {
            true => assert!(decoded.starts_with(&streamed), "{text:?}"),
            false => assert_eq!(streamed, decoded, "{text:?}"),
        }
    }
}
