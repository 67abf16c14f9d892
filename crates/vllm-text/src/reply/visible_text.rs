//! Text of a reply that the client gets: token by token, without what stopped it, and held back as long as a stop
//! string may begin in it.

use super::ReplyEnd;
use super::stop_strings::{StopStrings, Visibility};
use crate::tokens::detokenizer::Detokenizer;
use vllm_engine::request::FinishReason;

#[derive(Debug)]
pub struct VisibleText {
    detokenizer: Detokenizer,
    end: ReplyEnd,
    visibility: Visibility,
    n_held_chars: usize,
    /// Text that was not taken yet.
    pending: String,
    n_taken: usize,
}

// === impl VisibleText ===

impl VisibleText {
    pub fn new(detokenizer: Detokenizer, end: ReplyEnd, stop: &StopStrings) -> Self {
        Self {
            detokenizer,
            end,
            visibility: stop.visibility(),
            n_held_chars: stop.n_held_chars(),
            pending: String::new(),
            n_taken: 0,
        }
    }

    /// Adds the next token; `finish` is the engine's reason on the last one.
    pub fn push(&mut self, token: u32, finish: Option<FinishReason>) {
        let is_hidden = match (&self.end, finish) {
            (ReplyEnd::Eos | ReplyEnd::StopToken(_), Some(FinishReason::Stop)) => {
                self.visibility == Visibility::Hidden
            }
            (_, _) => false,
        };
        if !is_hidden {
            let text = self.detokenizer.push(token);
            if self.pending.is_empty() {
                self.pending = text;
            } else {
                self.pending.push_str(&text);
            }
        }
    }

    /// Takes the text that is certain by now.
    pub fn take(&mut self) -> String {
        let text = match self.n_held_chars {
            0 => std::mem::take(&mut self.pending),
            n_held => {
                let held_from = self.pending.char_indices().rev().nth(n_held - 1).map_or(0, |(idx, _)| idx);
                let held = self.pending.split_off(held_from);
                std::mem::replace(&mut self.pending, held)
            }
        };
        self.n_taken += text.len();
        text
    }

    /// Takes the rest of the text, after the last token was added.
    pub fn take_rest(&mut self, finish: FinishReason) -> String {
        if let (ReplyEnd::StopString { n_visible, .. }, FinishReason::Stop) = (&self.end, finish) {
            self.pending.truncate(n_visible.saturating_sub(self.n_taken));
        }
        self.n_taken += self.pending.len();
        std::mem::take(&mut self.pending)
    }

    /// Returns the end of the reply if it matches the engine's `finish`: the context may have cut the reply before its
    /// own end.
    pub fn end(&self, finish: FinishReason) -> Option<&ReplyEnd> {
        (finish == self.end.finish_reason()).then_some(&self.end)
    }
}
