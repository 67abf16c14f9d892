//! Scripted replies by prompt: a YAML (or JSON) list, whose format the built-in file shows and explains.

use crate::tokens::Tokenizer;
use serde::Deserialize;
use std::collections::HashMap;
use std::path::Path;

/// Script of the tutorial's conversation.
const BUILT_IN: &str = include_str!("scripted.yaml");

/// Replies by prompt. Prompts are compared exactly, with whitespace and letter case.
#[derive(Debug, Default)]
pub struct Script {
    tokens_by_text: HashMap<String, Vec<u32>>,
}

#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    #[error("cannot read the scripted replies in {path}")]
    Unreadable { path: String, source: std::io::Error },
    #[error("scripted replies in {path}: {reason}")]
    Invalid { path: String, reason: String },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    last_user_text: Vec<String>,
    reply: String,
}

// === impl Script ===

impl Script {
    pub fn built_in(tokenizer: &Tokenizer) -> Self {
        Self::parse(BUILT_IN, "the built-in file", tokenizer).expect("the built-in file is tested")
    }

    /// Reads a file.
    ///
    /// # Errors
    /// Fails if the file cannot be read, or has other fields, an empty reply, or the same prompt twice.
    pub fn load(path: &Path, tokenizer: &Tokenizer) -> Result<Self, ScriptError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| ScriptError::Unreadable { path: name.clone(), source })?;
        Self::parse(&text, &name, tokenizer)
    }

    /// Returns the tokens of the reply, without EOS.
    pub fn find(&self, last_user_text: &str) -> Option<&[u32]> {
        self.tokens_by_text.get(last_user_text).map(Vec::as_slice)
    }

    fn parse(text: &str, path: &str, tokenizer: &Tokenizer) -> Result<Self, ScriptError> {
        let invalid = |reason: String| ScriptError::Invalid { path: path.to_owned(), reason };
        let entries: Vec<Entry> = serde_saphyr::from_str(text).map_err(|error| invalid(error.to_string()))?;
        let mut tokens_by_text = HashMap::new();
        for Entry { last_user_text, reply } in entries {
            let tokens = tokenizer.encode(&reply);
            if tokens.is_empty() {
                return Err(invalid(format!("empty reply for {last_user_text:?}")));
            }
            for text in last_user_text {
                if tokens_by_text.insert(text.clone(), tokens.clone()).is_some() {
                    return Err(invalid(format!("two replies for {text:?}")));
                }
            }
        }
        Ok(Self { tokens_by_text })
    }
}
