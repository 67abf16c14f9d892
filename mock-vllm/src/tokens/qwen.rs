//! The Qwen2.5 tokenizer: the byte-pair vocabulary of `bpe-openai`, and the added tokens on top of it.

use super::SpecialTokens;
use std::collections::HashMap;

/// `vocab_size` of Qwen2.5-7B's config.json; prompts by id may use ids up to here, though nothing decodes them.
pub(super) const MODEL_VOCABULARY_LEN: u32 = 152_064;
pub(super) const IM_END: u32 = 151_645;

/// Qwen2.5 tokenizer_config.json `added_tokens_decoder`: the first id, and the tokens in order of id.
const FIRST_ADDED: u32 = 151_643;
const ADDED: [&str; 22] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
];
/// `"special": true` ends before `<tool_call>`: the tokens after it are shown even when special ones are skipped.
const N_SPECIAL: usize = 14;

pub(super) struct QwenTokenizer {
    bpe: &'static bpe_openai::Tokenizer,
    byte_spelling: [char; 256],
    added_ids: HashMap<&'static str, u32>,
}

// === impl QwenTokenizer ===

impl QwenTokenizer {
    pub(super) fn new() -> Self {
        let added_ids = ADDED.iter().copied().zip(FIRST_ADDED..).collect();
        Self { bpe: bpe_openai::voyage3_base(), byte_spelling: byte_spelling(), added_ids }
    }

    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut rest = text;
        while let Some((start, token)) = next_added(rest) {
            self.encode_plain(&rest[..start], &mut ids);
            ids.push(self.added_ids[token]);
            rest = &rest[start + token.len()..];
        }
        self.encode_plain(rest, &mut ids);
        ids
    }

    pub(super) fn token_bytes(&self, id: u32, special_tokens: SpecialTokens) -> &[u8] {
        if id < FIRST_ADDED {
            return self.bpe.bpe.token_bytes(id);
        }
        let added_idx = (id - FIRST_ADDED) as usize;
        match special_tokens {
            SpecialTokens::Skip if added_idx < N_SPECIAL => b"",
            SpecialTokens::Skip | SpecialTokens::Show => {
                ADDED.get(added_idx).map_or(b"", |token| token.as_bytes())
            }
        }
    }

    /// vLLM shows a vocabulary entry in the byte-level spelling: a space is `Ġ`.
    pub(super) fn token_string(&self, id: u32) -> String {
        if id >= FIRST_ADDED {
            return String::from_utf8_lossy(self.token_bytes(id, SpecialTokens::Show)).into_owned();
        }
        self.bpe.bpe.token_bytes(id).iter().map(|byte| self.byte_spelling[usize::from(*byte)]).collect()
    }

    fn encode_plain(&self, text: &str, ids: &mut Vec<u32>) {
        if !text.is_empty() {
            ids.extend(self.bpe.encode(text));
        }
    }
}

impl std::fmt::Debug for QwenTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QwenTokenizer").finish_non_exhaustive()
    }
}

/// The added token that begins first in `text`, and where. No added token is the start of another, so the first is the only one.
fn next_added(text: &str) -> Option<(usize, &'static str)> {
    let bytes = text.as_bytes();
    let mut from = 0;
    while let Some(offset) = bytes[from..].iter().position(|byte| *byte == b'<') {
        let start = from + offset;
        if let Some(token) = ADDED.iter().find(|token| bytes[start..].starts_with(token.as_bytes())) {
            return Some((start, token));
        }
        from = start + 1;
    }
    None
}

/// GPT-2's printable stand-in for each byte, which byte-level vocabularies are written in.
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
