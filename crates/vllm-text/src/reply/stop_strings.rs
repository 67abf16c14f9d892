//! `stop`: strings that end a reply, matched in its text like in vLLM.

use std::sync::Arc;

/// Stop strings, none of them empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopStrings {
    strings: Vec<Arc<str>>,
    visibility: Visibility,
}

/// Visibility of the string or token that stopped a reply: `include_stop_str_in_output`.
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
    /// Makes the set, without empty strings.
    pub fn new(strings: impl IntoIterator<Item = String>, visibility: Visibility) -> Self {
        let strings = strings.into_iter().filter(|text| !text.is_empty());
        Self { strings: strings.map(Arc::from).collect(), visibility }
    }

    pub fn visibility(&self) -> Visibility {
        self.visibility
    }

    /// Returns how many characters at the end of a growing text a stream must hold back, because they may begin a stop
    /// string.
    pub fn n_held_chars(&self) -> usize {
        let longest = self.strings.iter().map(|text| text.chars().count()).max().unwrap_or_default();
        match self.visibility {
            Visibility::Hidden => longest.saturating_sub(1),
            Visibility::Shown => 0,
        }
    }

    /// Returns how many of `n_tokens` tokens the client gets the text of, if the last of them stopped the reply.
    pub fn n_visible_tokens(&self, n_tokens: usize) -> usize {
        match self.visibility {
            Visibility::Hidden => n_tokens.saturating_sub(1),
            Visibility::Shown => n_tokens,
        }
    }

    /// Returns the first string that the text of the tokens, added one by one, completes; of several in one token, the
    /// one that ends first. The text of the first `min_tokens` tokens completes none.
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
                // A match ends in the new text, so its begin is less than its own length before that text.
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
