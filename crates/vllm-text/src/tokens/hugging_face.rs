//! Any `tokenizer.json`, read by the `tokenizers` library, with the `tokenizer_config.json` beside it.

use super::added_tokens::{AddedTokens, Segment};
use super::files::{DecodeState, FileTokenizer};
use super::{SpecialTokens, TokenizerError, special_token};
use serde_json::{Map, Value};
use std::path::PathBuf;
use tokenizers::PostProcessor as _;

pub(super) struct HuggingFaceTokenizer {
    inner: tokenizers::Tokenizer,
    eos: u32,
    /// Added tokens; `None` if the text around them changes how a piece is read.
    added: Option<AddedTokens>,
    /// Contents of `tokenizer_config.json`; empty without the file.
    config: Map<String, Value>,
    /// Contents of `chat_template.jinja`, which newer models have instead of the field in the configuration.
    template_file: Option<String>,
}

/// Tokens that end a turn in models whose `tokenizer_config.json` is missing or names none, the likelier ones first.
const EOS_CANDIDATES: [&str; 5] = ["<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>"];
/// Texts around an added token that a tokenizer with context would read differently: the start of a word, spaces, line
/// breaks.
const PROBES: [(&str, &str); 5] = [("a", "b"), ("a ", " b"), ("\n", "\n\nb"), ("It's 1", "2 x"), ("", "b")];

/// Reads a `tokenizer.json`, and what lies beside it.
///
/// # Errors
/// Fails if a file cannot be read or is not valid, or if no token ends a text.
pub(super) fn read(file: PathBuf) -> Result<Box<dyn FileTokenizer>, TokenizerError> {
    Ok(Box::new(HuggingFaceTokenizer::load(file)?))
}

// === impl HuggingFaceTokenizer ===

impl HuggingFaceTokenizer {
    fn load(file: PathBuf) -> Result<Self, TokenizerError> {
        let bytes = std::fs::read(&file)
            .map_err(|source| TokenizerError::Unreadable { path: file.clone(), source })?;
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| TokenizerError::Invalid { path: file.clone(), reason: error.to_string() })?;
        let config = read_config(file.with_file_name("tokenizer_config.json"))?;
        let eos = special_token(&config, "eos_token")
            .and_then(|token| inner.token_to_id(token))
            .or_else(|| EOS_CANDIDATES.iter().find_map(|token| inner.token_to_id(token)))
            .ok_or_else(|| TokenizerError::Invalid {
                path: file.clone(),
                reason: "no eos_token in tokenizer_config.json, and none of the usual ones in the vocabulary"
                    .to_owned(),
            })?;
        let template_file = std::fs::read_to_string(file.with_file_name("chat_template.jinja")).ok();
        let added = splitting_tokens(&inner);
        Ok(Self { inner, eos, added, config, template_file })
    }
}

impl FileTokenizer for HuggingFaceTokenizer {
    fn split<'a>(&self, text: &'a str, take: &mut dyn FnMut(Segment<'a>)) {
        match &self.added {
            Some(added) => added.split(text, take),
            None if text.is_empty() => {}
            None => take(Segment::Plain(text)),
        }
    }

    fn encode_plain(&self, text: &str, ids: &mut Vec<u32>) {
        ids.extend(encode(&self.inner, text, false));
    }

    fn encode_with_special_tokens(&self, text: &str) -> Vec<u32> {
        encode(&self.inner, text, true)
    }

    fn adds_special_tokens(&self) -> bool {
        self.inner.get_post_processor().is_some_and(|processor| processor.added_tokens(false) > 0)
    }

    fn decode(&self, ids: &[u32], special_tokens: SpecialTokens) -> String {
        self.inner.decode(ids, special_tokens == SpecialTokens::Skip).unwrap_or_default()
    }

    fn decode_next(&self, state: &mut DecodeState, id: u32, special_tokens: SpecialTokens) -> String {
        let skips = special_tokens == SpecialTokens::Skip;
        let step = |state: &mut DecodeState| {
            let DecodeState { ids, prefix, prefix_idx } = state;
            tokenizers::step_decode_stream(&self.inner, vec![id], skips, ids, prefix, prefix_idx)
        };
        let piece = step(state).or_else(|_invalid_prefix| {
            // vLLM starts again when a decoder takes back what it has returned.
            *state = DecodeState::default();
            step(state)
        });
        piece.ok().flatten().unwrap_or_default()
    }

    fn token_string(&self, id: u32) -> String {
        self.inner.id_to_token(id).unwrap_or_default()
    }

    fn eos(&self) -> u32 {
        self.eos
    }

    fn vocabulary_len(&self) -> u32 {
        u32::try_from(self.inner.get_vocab_size(true)).unwrap_or(u32::MAX)
    }

    fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    fn chat_template(&self, with_tools: bool) -> Option<&str> {
        if let Some(template) = &self.template_file {
            return Some(template);
        }
        match self.config.get("chat_template")? {
            Value::String(template) => Some(template),
            Value::Array(templates) => {
                let named = |name: &str| {
                    let is_named = |template: &&Value| template.get("name").is_some_and(|it| it == name);
                    templates.iter().find(is_named)?.get("template")?.as_str()
                };
                with_tools.then(|| named("tool_use")).flatten().or_else(|| named("default"))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
        }
    }
}

impl std::fmt::Debug for HuggingFaceTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HuggingFaceTokenizer").field("eos", &self.eos).finish_non_exhaustive()
    }
}

fn read_config(path: PathBuf) -> Result<Map<String, Value>, TokenizerError> {
    let Ok(bytes) = std::fs::read(&path) else { return Ok(Map::new()) };
    serde_json::from_slice(&bytes)
        .map_err(|error| TokenizerError::Invalid { path, reason: error.to_string() })
}

fn encode(inner: &tokenizers::Tokenizer, text: &str, add_special_tokens: bool) -> Vec<u32> {
    match inner.encode_fast(text, add_special_tokens) {
        Ok(encoding) => encoding.get_ids().to_vec(),
        Err(error) => {
            tracing::warn!(%error, "Tokenizer failed on a text, which counts as no tokens");
            Vec::new()
        }
    }
}

/// Returns the added tokens, if cutting a text at them and reading the pieces one by one gives the same ids as the
/// whole.
fn splitting_tokens(inner: &tokenizers::Tokenizer) -> Option<AddedTokens> {
    let decoder = inner.get_added_tokens_decoder();
    // Other tokens are searched for after normalization, within the pieces.
    let tokens: Vec<(u32, tokenizers::AddedToken)> =
        decoder.into_iter().filter(|(_, token)| !token.normalized).collect();
    if tokens.iter().any(|(_, token)| token.lstrip || token.rstrip || token.single_word) {
        return None;
    }
    let (first_id, first) = tokens.iter().min_by_key(|(id, _)| *id)?;
    let reads_alike = PROBES.iter().all(|(before, after)| {
        let whole = encode(inner, &format!("{before}{}{after}", first.content), false);
        let pieces = [encode(inner, before, false), vec![*first_id], encode(inner, after, false)].concat();
        whole == pieces
    });
    reads_alike.then(|| AddedTokens::new(tokens.iter().map(|(id, token)| (token.content.as_str(), *id))))?
}
