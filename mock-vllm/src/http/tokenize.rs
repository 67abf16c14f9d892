//! `/tokenize`, `/detokenize` and `/tokenizer_info`.

use super::Pod;
use super::body::Fields;
use super::error::ApiError;
use super::messages::tokenized_chat;
use super::prompt::PromptInput;
use axum::response::{IntoResponse, Json, Response};
use serde::Serialize;
use serde_json::{Map, Value};
use vllm_engine::vllm_version::VllmVersion;
use vllm_text::tokens::SpecialTokens;

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

/// Tokenizes a prompt of text, or messages through the chat template. More tokens than the model takes are not an
/// error.
///
/// # Errors
/// Fails if the body has neither, names another model, or its chat has no prompt.
pub(super) fn tokenize(pod: &Pod, body: &[u8]) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = fields.string("model");
    let wants_strings = fields.boolean("return_token_strs").unwrap_or_default();
    let prompt = prompt(&mut fields, pod.config.version)?;
    fields.finish()?;
    pod.resolve_model(model.as_deref())?;
    let prompt = prompt.unwrap_or(PromptInput::TokenIds(Vec::new()));
    let tokens = pod.prompt_ids(&prompt)?;
    let strings = || tokens.iter().map(|id| pod.tokenizer.token_string(*id).into_owned()).collect();
    let token_strs = wants_strings.then(strings);
    let max_model_len = pod.config.max_model_len;
    Ok(Json(Tokenized { count: tokens.len(), max_model_len, tokens, token_strs }).into_response())
}

/// Converts token ids to text.
///
/// # Errors
/// Fails if the body has no list of ids, or one with ids that the tokenizer does not have.
pub(super) fn detokenize(pod: &Pod, body: &[u8]) -> Result<Response, ApiError> {
    let mut fields = Fields::parse(body)?;
    let model = fields.string("model");
    let tokens = token_list(&mut fields);
    fields.finish()?;
    pod.resolve_model(model.as_deref())?;
    Ok(Json(Detokenized { prompt: pod.tokenizer.decode(&tokens, SpecialTokens::Show) }).into_response())
}

/// Answers tokenizer_config.json like vLLM: without files, with tokens as text, and with the server's own template.
pub(super) fn info(pod: &Pod) -> Response {
    let mut config = pod.tokenizer.config().into_owned();
    for file in ["vocab_file", "merges_file"] {
        config.shift_remove(file);
    }
    // vLLM wraps transformers' class in a cache.
    let class = config.shift_remove("tokenizer_class");
    let class = class.as_ref().and_then(Value::as_str).unwrap_or("TokenizersBackend");
    let class = format!("Cached{}", class.strip_suffix("Fast").unwrap_or(class));
    let mut info = Map::from_iter([("tokenizer_class".to_owned(), Value::from(class))]);
    info.extend(config.into_iter().map(|(name, value)| (name, without_token_objects(value))));
    if let Some(template) = pod.template.configured() {
        info.insert("chat_template".to_owned(), Value::from(template));
    }
    Json(info).into_response()
}

/// Reads the prompt. vLLM's type is a union: a body that fits neither of the two gets the errors of both.
fn prompt(fields: &mut Fields, version: VllmVersion) -> Result<Option<PromptInput>, ApiError> {
    if let Some(text) = fields.raw("prompt").and_then(Value::as_str).map(str::to_owned) {
        let adds = fields.boolean("add_special_tokens").unwrap_or(true);
        return Ok(Some(if adds { PromptInput::Text(text) } else { PromptInput::PlainText(text) }));
    }
    let mut as_chat = fields.clone();
    let chat = tokenized_chat(&mut as_chat, version)?;
    if !as_chat.has_errors() {
        return Ok(chat.map(PromptInput::Chat));
    }
    let text = fields.string("prompt");
    fields.required("prompt", text);
    tokenized_chat(fields, version)?;
    Ok(None)
}

/// Reads token ids, which may be of no token.
fn token_list(fields: &mut Fields) -> Vec<u32> {
    let tokens = fields
        .typed("tokens", "list_type", "Input should be a valid list", |value| value.as_array().cloned());
    let tokens = fields.required("tokens", tokens).unwrap_or_default();
    let mut token = |(token_idx, token): (usize, Value)| {
        let loc = format!("tokens.{token_idx}");
        match token.as_u64().map(u32::try_from) {
            Some(id) => return id.unwrap_or(u32::MAX),
            None if token.is_i64() => fields.bound_error(&loc, 0, token),
            None => fields.error("int_type", &loc, "Input should be a valid integer", token),
        }
        0
    };
    tokens.into_iter().enumerate().map(&mut token).collect()
}

fn without_token_objects(value: Value) -> Value {
    match value {
        Value::Object(mut object) => match object.remove("content") {
            Some(content) => content,
            None => Value::Object(
                object.into_iter().map(|(name, field)| (name, without_token_objects(field))).collect(),
            ),
        },
        Value::Array(items) => Value::Array(items.into_iter().map(without_token_objects).collect()),
        plain @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => plain,
    }
}
