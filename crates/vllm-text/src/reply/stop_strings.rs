//! `stop`: strings that end a reply, matched in its text as vLLM matches them.

use std::sync::Arc;

/// None of them is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopStrings {
    strings: Vec<Arc<str>>,
    visibility: Visibility,
}

/// `include_stop_str_in_output`: whether the client gets what stopped a reply, be it a string or a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Visibility {
    #[default]
    Hidden,
    Shown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StopMatch {
    pub(super) text: Arc<str>,
    /// Tokens up to the one that completes the string.
    pub(super) n_tokens: usize,
    /// Bytes of text that the client gets.
    pub(super) n_visible: usize,
}

// === impl StopStrings ===

impl StopStrings {
    /// Empty strings are left out.
    pub fn new(strings: impl IntoIterator<Item = String>, visibility: Visibility) -> Self {
        let strings = strings.into_iter().filter(|text| !text.is_empty());
        Self { strings: strings.map(Arc::from).collect(), visibility }
    }

    pub fn visibility(&self) -> Visibility {
        self.visibility
    }

    /// Characters at the end of a growing text that may yet turn out to begin a stop string, so that a stream keeps them back.
    pub fn n_held_chars(&self) -> usize {
        let longest = self.strings.iter().map(|text| text.chars().count()).max().unwrap_or_default();
        match self.visibility {
            Visibility::Hidden => longest.saturating_sub(1),
            Visibility::Shown => 0,
        }
    }

    /// Of `n_tokens`, of which the last one stopped the reply, those whose text the client gets.
    pub fn n_visible_tokens(&self, n_tokens: usize) -> usize {
        match self.visibility {
            Visibility::Hidden => n_tokens.saturating_sub(1),
            Visibility::Shown => n_tokens,
        }
    }

    /// The string that is complete first, in the text that the tokens make one by one; of several in one token the one that
    /// ends first. Text of the first `min_tokens` tokens completes none.
    pub(super) fn first_match(
        &self,
        texts: impl Iterator<Item = String>,
        min_tokens: u32,
    ) -> Option<StopMatch> {
        if self.strings.is_empty() {
            return None;
        }
        let mut text = String::new();
        for (token_idx, new_text) in texts.enumerate() {
            let n_before = text.len();
            text.push_str(&new_text);
            if token_idx < min_tokens as usize || new_text.is_empty() {
                continue;
            }
            let ends = self.strings.iter().filter_map(|stop| {
                // A match ends in the new text, so it begins less than its own length before it.
                let mut from = (n_before + 1).saturating_sub(stop.len());
                while !text.is_char_boundary(from) {
                    from += 1;
                }
                let begin = from + text[from..].find(&**stop)?;
                let end = begin + stop.len();
                (end > n_before).then_some((end, begin, stop))
            });
            if let Some((end, begin, stop)) = ends.min_by_key(|(end, ..)| *end) {
                let n_visible = match self.visibility {
                    Visibility::Hidden => begin,
                    Visibility::Shown => end,
                };
                return Some(StopMatch { text: stop.clone(), n_tokens: token_idx + 1, n_visible });
            }
        }
        None
    }
}
