//! Qwen's tokenizers: the byte-pair vocabulary of `bpe-openai`, which all of them share, and each family's added
//! tokens.

mod family;

use super::SpecialTokens;
use super::added_tokens::{AddedTokens, Segment};
use family::FIRST_ADDED;
pub use family::QwenFamily;
use std::borrow::Cow;
use unicode_normalization::{IsNormalized, is_nfc_quick};
use unicode_normalization_alignments::UnicodeNormalization as _;

pub(super) struct QwenTokenizer {
    family: QwenFamily,
    bpe: &'static bpe_openai::Tokenizer,
    byte_spelling: [char; 256],
    added: AddedTokens,
}

// === impl QwenTokenizer ===

impl QwenTokenizer {
    pub(super) fn new(family: QwenFamily) -> Self {
        let added = AddedTokens::new(family.added().zip(FIRST_ADDED..));
        Self {
            family,
            bpe: bpe_openai::voyage3_base(),
            byte_spelling: byte_spelling(),
            added: added.expect("the lists are short"),
        }
    }

    pub(super) fn family(&self) -> QwenFamily {
        self.family
    }

    pub(super) fn split<'a>(&self, text: &'a str, take: impl FnMut(Segment<'a>)) {
        self.added.split(text, take);
    }

    /// Appends the ids of a text without added tokens.
    pub(super) fn encode_plain(&self, text: &str, ids: &mut Vec<u32>) {
        for piece in self.bpe.split(&composed(text)) {
            ids.extend(self.bpe.bpe.encode_via_backtracking(piece.as_bytes()));
        }
    }

    pub(super) fn token_bytes(&self, id: u32, special_tokens: SpecialTokens) -> &[u8] {
        if id < FIRST_ADDED {
            return self.bpe.bpe.token_bytes(id);
        }
        let added_idx = (id - FIRST_ADDED) as usize;
        match special_tokens {
            SpecialTokens::Skip if added_idx < family::N_SPECIAL => b"",
            SpecialTokens::Skip | SpecialTokens::Show => {
                self.family.added().nth(added_idx).map_or(b"", str::as_bytes)
            }
        }
    }

    /// Returns a vocabulary entry like vLLM shows it, in the byte-level spelling: a space is `Ġ`.
    pub(super) fn token_string(&self, id: u32) -> String {
        if id >= FIRST_ADDED {
            return String::from_utf8_lossy(self.token_bytes(id, SpecialTokens::Show)).into_owned();
        }
        self.bpe.bpe.token_bytes(id).iter().map(|byte| self.byte_spelling[usize::from(*byte)]).collect()
    }
}

impl std::fmt::Debug for QwenTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QwenTokenizer").field("family", &self.family).finish_non_exhaustive()
    }
}

/// Composes a text to NFC by the tables that the `tokenizers` library uses, which know fewer compositions than today's
/// Unicode.
fn composed(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.nfc().map(|(composed, _alignment)| composed).collect())
}

/// Returns GPT-2's printable character for each byte, in which byte-level vocabularies are written.
fn byte_spelling() -> [char; 256] {
    let mut spelling = ['\0'; 256];
    let mut n_shifted = 0;
    for byte in 0..=u8::MAX {
        spelling[usize::from(byte)] = match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => {
                n_shifted += 1;
                char::from_u32(255 + n_shifted).expect("256..=323 are characters")
            }
        };
    }
    spelling
}
