//! Added tokens, which represent a fixed text. They are found in a text before anything else.

use aho_corasick::{AhoCorasick, MatchKind};

/// A set of added tokens.
pub(super) struct AddedTokens {
    contents: AhoCorasick,
    /// Ids by pattern of `contents`.
    ids: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Segment<'a> {
    /// Text that is not empty and has no added token.
    Plain(&'a str),
    Added(u32),
}

// === impl AddedTokens ===

impl AddedTokens {
    /// Makes the set; `None` if the contents are too many or too long for the search.
    pub(super) fn new<'a>(tokens: impl IntoIterator<Item = (&'a str, u32)>) -> Option<Self> {
        let (contents, ids): (Vec<_>, _) =
            tokens.into_iter().filter(|(content, _)| !content.is_empty()).unzip();
        // Matches like the `tokenizers` library: the first in the text, and the longest if several begin there.
        let contents = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(contents).ok()?;
        Some(Self { contents, ids })
    }

    /// Calls `take` with the pieces of `text`, in order.
    pub(super) fn split<'a>(&self, text: &'a str, mut take: impl FnMut(Segment<'a>)) {
        let mut end = 0;
        for found in self.contents.find_iter(text) {
            if found.start() > end {
                take(Segment::Plain(&text[end..found.start()]));
            }
            take(Segment::Added(self.ids[found.pattern().as_usize()]));
            end = found.end();
        }
        if end < text.len() {
            take(Segment::Plain(&text[end..]));
        }
    }
}

impl std::fmt::Debug for AddedTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AddedTokens").field("n", &self.ids.len()).finish_non_exhaustive()
    }
}
