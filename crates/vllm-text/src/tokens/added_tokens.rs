//! Tokens that stand for a fixed text wherever it is spelled out, before anything else looks at a text.

use aho_corasick::{AhoCorasick, MatchKind};

/// A set of added tokens.
pub(super) struct AddedTokens {
    contents: AhoCorasick,
    /// By pattern of `contents`.
    ids: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Segment<'a> {
    /// Not empty, without an added token.
    Plain(&'a str),
    Added(u32),
}

// === impl AddedTokens ===

impl AddedTokens {
    /// `None` when the contents are too many or too long to search for.
    pub(super) fn new<'a>(tokens: impl IntoIterator<Item = (&'a str, u32)>) -> Option<Self> {
        let (contents, ids): (Vec<_>, _) =
            tokens.into_iter().filter(|(content, _)| !content.is_empty()).unzip();
        // As in the `tokenizers` library: the first in the text, of several there the longest.
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
