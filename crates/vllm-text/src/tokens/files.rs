//! The trait of tokenizers that are read from files, whichever library reads them.

use super::SpecialTokens;
use super::added_tokens::Segment;
use serde_json::{Map, Value};
use std::fmt::Debug;

pub(super) trait FileTokenizer: Debug + Send + Sync {
    /// Calls `take` with pieces of `text` whose ids do not depend on each other, in order.
    fn split<'a>(&self, text: &'a str, take: &mut dyn FnMut(Segment<'a>));

    /// Appends the ids of a piece that `split` returned.
    fn encode_plain(&self, text: &str, ids: &mut Vec<u32>);

    /// Returns the ids with what the model's post-processor adds to a text, like BOS.
    fn encode_with_special_tokens(&self, text: &str) -> Vec<u32>;

    fn adds_special_tokens(&self) -> bool;

    fn decode(&self, ids: &[u32], special_tokens: SpecialTokens) -> String;

    /// Returns the text that `id` completes, like vLLM's `FastIncrementalDetokenizer`.
    fn decode_next(&self, state: &mut DecodeState, id: u32, special_tokens: SpecialTokens) -> String;

    fn token_string(&self, id: u32) -> String;

    fn eos(&self) -> u32;

    fn vocabulary_len(&self) -> u32;

    /// Returns the contents of `tokenizer_config.json`.
    fn config(&self) -> &Map<String, Value>;

    /// Returns the model's template for chats, with tools or without.
    fn chat_template(&self, with_tools: bool) -> Option<&str>;
}

/// State of one reply's decoding: tokens whose text is not complete, and the text before them.
#[derive(Debug, Default)]
#[cfg_attr(not(feature = "tokenizer-json"), expect(dead_code, reason = "nothing reads files"))]
pub(super) struct DecodeState {
    pub(super) ids: Vec<u32>,
    pub(super) prefix: String,
    pub(super) prefix_idx: usize,
}
