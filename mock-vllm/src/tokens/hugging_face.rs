//! Any `tokenizer.json`, read by the `tokenizers` library.

use super::{SpecialTokens, TokenizerError};
use serde_json::Value;
use std::path::Path;

#[derive(Debug)]
pub(super) struct HuggingFaceTokenizer {
    inner: tokenizers::Tokenizer,
    eos: u32,
}

/// Tokens that end a turn in models whose `tokenizer_config.json` is missing or names none, the likelier first.
const EOS_CANDIDATES: [&str; 5] = ["<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>"];

// === impl HuggingFaceTokenizer ===

impl HuggingFaceTokenizer {
    pub(super) fn load(path: &Path) -> Result<Self, TokenizerError> {
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        if !file.is_file() {
            return Err(TokenizerError::Missing(path.to_owned()));
        }
        let bytes = std::fs::read(&file)
            .map_err(|source| TokenizerError::Unreadable { path: file.clone(), source })?;
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| TokenizerError::Invalid { path: file.clone(), reason: error.to_string() })?;
        let eos = configured_eos(&file.with_file_name("tokenizer_config.json"))
            .and_then(|token| inner.token_to_id(&token))
            .or_else(|| EOS_CANDIDATES.iter().find_map(|token| inner.token_to_id(token)))
            .ok_or_else(|| TokenizerError::Invalid {
                path: file,
                reason: "no eos_token in tokenizer_config.json, and none of the usual ones in the vocabulary"
                    .to_owned(),
            })?;
        Ok(Self { inner, eos })
    }

    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        match self.inner.encode_fast(text, false) {
            Ok(encoding) => encoding.get_ids().to_vec(),
            Err(error) => {
                tracing::warn!(%error, "Tokenizer failed on a text, which counts as no tokens");
                Vec::new()
            }
        }
    }

    pub(super) fn decode(&self, ids: &[u32], special_tokens: SpecialTokens) -> String {
        self.inner.decode(ids, special_tokens == SpecialTokens::Skip).unwrap_or_default()
    }

    pub(super) fn token_string(&self, id: u32) -> String {
        self.inner.id_to_token(id).unwrap_or_default()
    }

    pub(super) fn eos(&self) -> u32 {
        self.eos
    }

    pub(super) fn vocabulary_len(&self) -> u32 {
        u32::try_from(self.inner.get_vocab_size(true)).unwrap_or(u32::MAX)
    }
}

fn configured_eos(path: &Path) -> Option<String> {
    let config: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let eos = config.get("eos_token")?;
    eos.as_str().or_else(|| eos.get("content")?.as_str()).map(str::to_owned)
}
