//! Converts tokens to text one by one, as vLLM streams them: bytes of an incomplete character are held back.

use super::files::DecodeState;
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
    /// The text is the bytes of the tokens.
    Bytes(HeldBytes),
    /// The text of a token depends on the tokens before it.
    Context(DecodeState),
}

/// Bytes that were taken and are held back. The work per token is never more than its bytes.
#[derive(Debug, Default)]
struct HeldBytes {
    /// Complete characters; they end with U+FFFD unless there are none.
    text: String,
    /// Begin of a character, at most 3 bytes.
    partial: Vec<u8>,
}

// === impl Detokenizer ===

impl Detokenizer {
    pub(super) fn new(tokenizer: Tokenizer, special_tokens: SpecialTokens) -> Self {
        let state = match &*tokenizer.backend {
            Backend::Qwen(_) => State::Bytes(HeldBytes::default()),
            Backend::Files(_) => State::Context(DecodeState::default()),
        };
        Self { tokenizer, special_tokens, state }
    }

    /// Returns the text that `id` completes. A text that ends in a broken character is held back, since the next token
    /// may complete it. What is still held at the end never shows, as in vLLM.
    pub fn push(&mut self, id: u32) -> String {
        match (&*self.tokenizer.backend, &mut self.state) {
            (Backend::Qwen(qwen), State::Bytes(held)) => held.push(qwen.token_bytes(id, self.special_tokens)),
            (Backend::Files(tokenizer), State::Context(state)) => {
                tokenizer.decode_next(state, id, self.special_tokens)
            }
            (Backend::Qwen(_), State::Context(_)) | (Backend::Files(_), State::Bytes(_)) => {
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
            // Only the last chunk can begin a character: the others are followed by a byte that does not continue them.
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

/// Returns whether more bytes can make `invalid` a character.
fn may_continue(invalid: &[u8]) -> bool {
    std::str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none())
}
