//! `/tokenize` and `/detokenize`.

use super::Pod;
use super::body::Fields;
use super::error::ApiError;
use super::messages::chat_prompt;
use super::request::PromptInput;
use crate::tokens::SpecialTokens;
use axum::response::{IntoResponse, Json, Response};
use serde::Serialize;

#[derive(Serialize)]
struct Tokenized {
    count: usize,
    max_model_len: u32,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Detokenized {
    prompt: String,
}

/// A prompt as text, or messages through the chat template.
///
/// # Errors
/// When the body has neither, or names another model.
pub(super) fn tokenize(pod: &Pod, body: &[u8]) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = fields.string("model");
    let wants_strings = fields.boolean("return_token_strs").unwrap_or_default();
    let text = fields.string("prompt").map(PromptInput::Text);
    let prompt = text.or_else(|| chat_prompt(&mut fields));
    fields.finish()?;
    pod.resolve_model(model.as_deref())?;
    let prompt = prompt.unwrap_or(PromptInput::TokenIds(Vec::new()));
    let tokens = pod.prompt_ids(&prompt)?;
    let strings = || tokens.iter().map(|id| pod.tokenizer.token_string(*id).into_owned()).collect();
    let token_strs = wants_strings.then(strings);
    let max_model_len = pod.config.max_model_len;
    Ok(Json(Tokenized { count: tokens.len(), max_model_len, tokens, token_strs }).into_response())
}

/// # Errors
/// When the body has no list of ids.
pub(super) fn detokenize(pod: &Pod, body: &[u8]) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = fields.string("model");
    let tokens = fields.integers("tokens");
    let tokens = fields.required("tokens", tokens).unwrap_or_default();
    fields.finish()?;
    pod.resolve_model(model.as_deref())?;
    Ok(Json(Detokenized { prompt: pod.tokenizer.decode(&tokens, SpecialTokens::Show) }).into_response())
}
