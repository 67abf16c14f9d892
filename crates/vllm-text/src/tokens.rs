//! Text to token ids and back: the built-in Qwen tokenizers, or any `tokenizer.json`, and the chat template. It does
//! not know requests, replies or HTTP.

pub mod chat_template;
pub mod chat;
pub mod detokenizer;
#[cfg(feature = "tokenizer-json")]
mod hugging_face;
mod files;
pub mod memo;
pub mod qwen;
mod added_tokens;

use added_tokens::Segment;
use detokenizer::Detokenizer;
use files::FileTokenizer;
use qwen::{QwenFamily, QwenTokenizer};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Tokenizer that all requests share; cheap to clone.
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
    #[error(
        "{0}: this program was built without the reader of tokenizer.json, which takes long to compile: build it with \
         `cargo build --release --package mock-vllm --features tokenizer-json`"
    )]
    NotBuilt(PathBuf),
}

/// Visibility of tokens like `<|im_end|>` in decoded text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialTokens {
    Show,
    Skip,
}

/// Source of a tokenizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerSource {
    BuiltIn(QwenFamily),
    /// A `tokenizer.json`, or a directory with one.
    Files(PathBuf),
}

#[derive(Debug)]
enum Backend {
    Qwen(Box<QwenTokenizer>),
    Files(Box<dyn FileTokenizer>),
}

/// Reads a `tokenizer.json`.
type FileReader = fn(PathBuf) -> Result<Box<dyn FileTokenizer>, TokenizerError>;

#[cfg(feature = "tokenizer-json")]
const FILE_READER: Option<FileReader> = Some(hugging_face::read);
#[cfg(not(feature = "tokenizer-json"))]
const FILE_READER: Option<FileReader> = None;

// === impl Tokenizer ===

impl Tokenizer {
    /// Opens a tokenizer.
    ///
    /// # Errors
    /// Fails for files that [`Tokenizer::load`] cannot load.
    pub fn open(source: &TokenizerSource) -> Result<Self, TokenizerError> {
        match source {
            TokenizerSource::BuiltIn(family) => Ok(Self::qwen(*family)),
            TokenizerSource::Files(path) => Self::load(path),
        }
    }

    /// Returns Qwen2.5's tokenizer, with a vocabulary of 151,665 tokens.
    pub fn qwen25() -> Self {
        Self::qwen(QwenFamily::Qwen25)
    }

    /// Returns a tokenizer that is compiled into the program.
    pub fn qwen(family: QwenFamily) -> Self {
        Self { backend: Arc::new(Backend::Qwen(Box::new(QwenTokenizer::new(family)))) }
    }

    /// Loads `tokenizer.json` from a directory, or the file itself.
    ///
    /// # Errors
    /// Fails if there is no such file, if the `tokenizers` library cannot read it, or without the feature
    /// `tokenizer-json`.
    pub fn load(path: &Path) -> Result<Self, TokenizerError> {
        Self::load_with(FILE_READER, path)
    }

    fn load_with(reader: Option<FileReader>, path: &Path) -> Result<Self, TokenizerError> {
        let file = if path.is_dir() { path.join("tokenizer.json") } else { path.to_owned() };
        if !file.is_file() {
            return Err(TokenizerError::Missing(path.to_owned()));
        }
        let Some(read) = reader else { return Err(TokenizerError::NotBuilt(file)) };
        Ok(Self { backend: Arc::new(Backend::Files(read(file)?)) })
    }

    /// Returns the ids of `text`. Added tokens that are spelled out in it become their own ids, as in vLLM; no BOS is
    /// added.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.split(text, |segment| match segment {
            Segment::Added(id) => ids.push(id),
            Segment::Plain(text) => self.encode_plain(text, &mut ids),
        });
        ids
    }

    /// Returns the ids of `text` with the tokens that the model adds to every text, like BOS; Qwen adds none.
    pub fn encode_with_special_tokens(&self, text: &str) -> Vec<u32> {
        match &*self.backend {
            Backend::Qwen(_) => self.encode(text),
            Backend::Files(tokenizer) => tokenizer.encode_with_special_tokens(text),
        }
    }

    /// Returns the text of `ids`. Bytes that are not UTF-8 become U+FFFD; ids outside the vocabulary become nothing.
    pub fn decode(&self, ids: &[u32], special_tokens: SpecialTokens) -> String {
        match &*self.backend {
            Backend::Qwen(qwen) => {
                let mut bytes = Vec::new();
                for id in ids {
                    bytes.extend_from_slice(qwen.token_bytes(*id, special_tokens));
                }
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Backend::Files(tokenizer) => tokenizer.decode(ids, special_tokens),
        }
    }

    /// Returns the vocabulary's own spelling of an id, for `/tokenize` with `return_token_strs`.
    pub fn token_string(&self, id: u32) -> Cow<'_, str> {
        match &*self.backend {
            Backend::Qwen(qwen) => Cow::Owned(qwen.token_string(id)),
            Backend::Files(tokenizer) => Cow::Owned(tokenizer.token_string(id)),
        }
    }

    /// Returns a detokenizer for one reply: it takes the tokens in order and returns the text that is certain, without
    /// special tokens.
    pub fn detokenizer(&self) -> Detokenizer {
        self.detokenizer_with(SpecialTokens::Skip)
    }

    /// Returns a detokenizer for the request's `skip_special_tokens`.
    pub fn detokenizer_with(&self, special_tokens: SpecialTokens) -> Detokenizer {
        Detokenizer::new(self.clone(), special_tokens)
    }

    /// Returns the token that ends a chat turn and is never shown.
    pub fn eos(&self) -> u32 {
        match &*self.backend {
            Backend::Qwen(_) => QwenFamily::IM_END,
            Backend::Files(tokenizer) => tokenizer.eos(),
        }
    }

    /// Returns the highest id that a prompt may have, plus 1.
    pub fn vocabulary_len(&self) -> u32 {
        match &*self.backend {
            Backend::Qwen(qwen) => qwen.family().model_vocabulary_len(),
            Backend::Files(tokenizer) => tokenizer.vocabulary_len(),
        }
    }

    /// Returns the contents of `tokenizer_config.json`, for `/tokenizer_info`.
    pub fn config(&self) -> Cow<'_, Map<String, Value>> {
        match &*self.backend {
            Backend::Qwen(qwen) => Cow::Owned(qwen.family().config()),
            Backend::Files(tokenizer) => Cow::Borrowed(tokenizer.config()),
        }
    }

    /// Returns the model's own chat template, for chats with tools or without; `None` if it has none.
    pub fn chat_template(&self, with_tools: bool) -> Option<&str> {
        match &*self.backend {
            Backend::Qwen(qwen) => Some(qwen.family().chat_template()),
            Backend::Files(tokenizer) => tokenizer.chat_template(with_tools),
        }
    }

    fn adds_special_tokens(&self) -> bool {
        match &*self.backend {
            Backend::Qwen(_) => false,
            Backend::Files(tokenizer) => tokenizer.adds_special_tokens(),
        }
    }

    /// Calls `take` with pieces of `text` whose ids do not depend on each other, in order.
    fn split<'a>(&self, text: &'a str, mut take: impl FnMut(Segment<'a>)) {
        match &*self.backend {
            Backend::Qwen(qwen) => qwen.split(text, take),
            Backend::Files(tokenizer) => tokenizer.split(text, &mut take),
        }
    }

    fn encode_plain(&self, text: &str, ids: &mut Vec<u32>) {
        match &*self.backend {
            Backend::Qwen(qwen) => qwen.encode_plain(text, ids),
            Backend::Files(tokenizer) => tokenizer.encode_plain(text, ids),
        }
    }
}

/// Returns the text of `eos_token`, `bos_token`, ... in `tokenizer_config.json`, which has it either bare or in an
/// object.
fn special_token<'a>(config: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    let token = config.get(name)?;
    token.as_str().or_else(|| token.get("content")?.as_str())
}

#[cfg(test)]
mod tests {
    use super::{FILE_READER, Tokenizer, TokenizerError};

    #[test]
    fn without_a_reader_of_files_the_error_says_how_to_build_one() {
        let directory = tempfile::tempdir().expect("a directory can be made");
        let load = |reader| Tokenizer::load_with(reader, directory.path()).err();
        assert!(matches!(load(None), Some(TokenizerError::Missing(_))));
        let file = directory.path().join("tokenizer.json");
        std::fs::write(&file, "{}").expect("a file can be written");
        let error = load(None).expect("nothing reads files").to_string();
        assert!(
            error.contains(&file.display().to_string()) && error.contains("--features tokenizer-json"),
            "{error}"
        );
        // The control: a reader reads the file, and finds no tokenizer in it.
        assert!(matches!(load(FILE_READER), Some(TokenizerError::Invalid { .. })));
    }
}
