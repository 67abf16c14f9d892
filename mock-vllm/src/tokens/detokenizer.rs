//! Token by token to text, as vLLM streams it: bytes that do not yet make a character are held back.

use super::{SpecialTokens, Tokenizer};

const REPLACEMENT: char = '\u{fffd}';

#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    /// The tokens whose text has not been given out, after one that gives them their context (a leading space).
    ids: Vec<u32>,
    /// How much of the text of `ids` has been given out, in bytes.
    n_given: usize,
}

// === impl Detokenizer ===

impl Detokenizer {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), n_given: 0 }
    }

    /// The text that `id` completes; empty while a character is split. What is still split at the end never shows, as in vLLM.
    pub fn push(&mut self, id: u32) -> String {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids, SpecialTokens::Skip);
        if text.len() <= self.n_given || text.ends_with(REPLACEMENT) {
            return String::new();
        }
        let new_text = text.get(self.n_given..).unwrap_or_default().to_owned();
        self.ids.clear();
        self.ids.push(id);
        self.n_given = self.tokenizer.decode(&self.ids, SpecialTokens::Skip).len();
        new_text
    }
}
