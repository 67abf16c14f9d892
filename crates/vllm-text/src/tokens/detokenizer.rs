//! Token by token to text, as vLLM streams it: bytes that do not yet make a character are held back.

use super::hugging_face::DecodeState;
use super::{Backend, SpecialTokens, Tokenizer};

const REPLACEMENT: char = '\u{fffd}';

#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    special_tokens: SpecialTokens,
    state: State,
}

#[derive(Debug)]
enum State {
    /// A text is the bytes of its tokens.
    Bytes(HeldBytes),
    /// How a token reads depends on those before it.
    Context(DecodeState),
}

/// What has been taken and not given out: never more work per token than the token has bytes.
#[derive(Debug, Default)]
struct HeldBytes {
    /// Ends with U+FFFD when it is not empty.
    text: String,
    /// The start of a character, at most 3 bytes.
    partial: Vec<u8>,
}

// === impl Detokenizer ===

impl Detokenizer {
    pub(super) fn new(tokenizer: Tokenizer, special_tokens: SpecialTokens) -> Self {
        let state = match &*tokenizer.backend {
            Backend::Qwen(_) => State::Bytes(HeldBytes::default()),
            Backend::HuggingFace(_) => State::Context(DecodeState::default()),
        };
        Self { tokenizer, special_tokens, state }
    }

    /// The text that `id` completes. Nothing is given out that ends in a broken character, since the next token may complete it;
    /// what is still held at the end never shows, as in vLLM.
    pub fn push(&mut self, id: u32) -> String {
        match (&*self.tokenizer.backend, &mut self.state) {
            (Backend::Qwen(qwen), State::Bytes(held)) => held.push(qwen.token_bytes(id, self.special_tokens)),
            (Backend::HuggingFace(tokenizer), State::Context(state)) => {
                tokenizer.decode_next(state, id, self.special_tokens)
            }
            (Backend::Qwen(_), State::Context(_)) | (Backend::HuggingFace(_), State::Bytes(_)) => {
                unreachable!("the state is made for the tokenizer")
            }
        }
    }
}

// === impl HeldBytes ===

impl HeldBytes {
    fn push(&mut self, bytes: &[u8]) -> String {
        self.partial.extend_from_slice(bytes);
        let mut n_decided = 0;
        for chunk in self.partial.utf8_chunks() {
            self.text.push_str(chunk.valid());
            n_decided += chunk.valid().len();
            let invalid = chunk.invalid();
            // Only the last chunk can be the start of a character: a byte follows the others and does not continue them.
            if n_decided + invalid.len() < self.partial.len() || !may_continue(invalid) {
                if !invalid.is_empty() {
                    self.text.push(REPLACEMENT);
                }
                n_decided += invalid.len();
            }
        }
        self.partial.drain(..n_decided);
        if self.partial.is_empty() && !self.text.ends_with(REPLACEMENT) {
            std::mem::take(&mut self.text)
        } else {
            String::new()
        }
    }
}

/// Whether more bytes can make `invalid` a character.
fn may_continue(invalid: &[u8]) -> bool {
    std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none())
}
