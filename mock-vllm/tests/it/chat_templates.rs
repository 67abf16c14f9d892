//! Compares prompts of chats with those of the official chat templates, which `make.py` beside their file recorded.

use crate::server_fixtures::{TestPod, start};
use serde::Deserialize;
use serde_json::Value;
use unicode_normalization::UnicodeNormalization as _;
use vllm_text::tokens::SpecialTokens;

const CHATS: &str = include_str!("../../../crates/vllm-text/tests/fixtures/tokens/chats.json");

#[derive(Deserialize)]
struct ChatRow {
    name: String,
    family: String,
    /// Body of `/v1/chat/completions` without its model.
    body: Value,
    text: String,
    ids: Vec<u32>,
}

async fn pod(family: &str) -> TestPod {
    start(&format!("--tokenizer {family} --enable-auto-tool-choice --tool-call-parser hermes")).await
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
