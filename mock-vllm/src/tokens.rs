//! Text to token ids and back: the built-in Qwen2.5 tokenizer, or any `tokenizer.json`, and the chat template.
//! Knows nothing of requests, replies or HTTP.

pub mod chat;
pub mod chat_template;
pub mod detokenizer;
mod hugging_face;
mod qwen;

use detokenizer::Detokenizer;
use hugging_face::HuggingFaceTokenizer;
use qwen::QwenTokenizer;
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Cheap to clone; shared by all requests.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    backend: Arc<Backend>,
}

#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    #[error("no tokenizer.json in {0}")]
    Missing(PathBuf),
    #[error("cannot read {path}")]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a tokenizer: {reason}")]
    Invalid { path: PathBuf, reason: String },
}

/// Whether tokens like `<|im_end|>` appear in decoded text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    Show,
    Skip,
}

#[derive(Debug)]
enum Backend {
    Qwen(Box<QwenTokenizer>),
    HuggingFace(Box<HuggingFaceTokenizer>),
}

// === impl Tokenizer ===

impl Tokenizer {
    /// Qwen2.5's vocabulary of 151,665 tokens, compiled into the program.
    pub fn qwen25() -> Self {
        Self { backend: Arc::new(Backend::Qwen(Box::new(QwenTokenizer::new()))) }
    }

    /// Loads `tokenizer.json` from a directory, or the file itself.
    ///
    /// # Errors
    /// When there is no such file, or it is not one that the `tokenizers` library reads.
    pub fn load(path: &Path) -> Result<Self, TokenizerError> {
        let tokenizer = HuggingFaceTokenizer::load(path)?;
        Ok(Self { backend: Arc::new(Backend::HuggingFace(Box::new(tokenizer))) })
    }

    /// Ids of `text`. Added tokens that are spelled out in it become their own ids, as vLLM does; no BOS is put first.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        match &*self.backend {
            Backend::Qwen(qwen) => qwen.encode(text),
            Backend::HuggingFace(tokenizer) => tokenizer.encode(text),
        }
    }

    /// Text of `ids`; bytes that are no UTF-8 become U+FFFD, ids outside the vocabulary nothing.
    pub fn decode(&self, ids: &[u32], special_tokens: SpecialTokens) -> String {
        match &*self.backend {
            Backend::Qwen(qwen) => {
                let mut bytes = Vec::new();
                for id in ids {
                    bytes.extend_from_slice(qwen.token_bytes(*id, special_tokens));
                }
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Backend::HuggingFace(tokenizer) => tokenizer.decode(ids, special_tokens),
        }
    }

    /// The vocabulary's own spelling of one id: for `/tokenize` with `return_token_strs`.
    pub fn token_string(&self, id: u32) -> Cow<'_, str> {
        match &*self.backend {
            Backend::Qwen(qwen) => Cow::Owned(qwen.token_string(id)),
            Backend::HuggingFace(tokenizer) => Cow::Owned(tokenizer.token_string(id)),
        }
    }

    /// For one reply: takes its tokens in order and gives the text that is certain.
    pub fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(self.clone())
    }

    /// The token that ends a chat turn, and is never shown.
    pub fn eos(&self) -> u32 {
        match &*self.backend {
            Backend::Qwen(_) => qwen::IM_END,
            Backend::HuggingFace(tokenizer) => tokenizer.eos(),
        }
    }

    /// One above the highest id that can appear in a prompt.
    pub fn vocabulary_len(&self) -> u32 {
        match &*self.backend {
            Backend::Qwen(_) => qwen::MODEL_VOCABULARY_LEN,
            Backend::HuggingFace(tokenizer) => tokenizer.vocabulary_len(),
        }
    }
}
