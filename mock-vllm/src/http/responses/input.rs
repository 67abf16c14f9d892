//! A body of `/v1/responses` as the chat that it asks for, and as what the answer repeats of it.

use super::output::Told;
use crate::http::body::Fields;
use crate::http::error::ApiError;
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value, json};

/// Fields that a chat has by the same name.
const SHARED: [&str; 11] = [
    "model",
    "stream",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "stop",
    "ignore_eos",
    "cache_salt",
    "priority",
    "request_id",
];

#[derive(Debug)]
pub(super) struct ResponsesRequest {
    /// A body of `/v1/chat/completions`.
    pub(super) chat: Bytes,
    pub(super) told: Told,
}

// === impl ResponsesRequest ===

impl ResponsesRequest {
    /// # Errors
    /// For fields that are missing or of the wrong type, and for what needs more than text.
    pub(super) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let instructions = fields.string("instructions");
        let messages =
            fields.typed("input", "list_type", "Input should be a string or a list of messages", messages);
        let messages = fields.required("input", messages);
        let max_output_tokens = fields.integer("max_output_tokens");
        let previous = fields.string("previous_response_id");
        let wants_tools =
            fields.raw("tools").and_then(Value::as_array).is_some_and(|tools| !tools.is_empty());
        let format = fields.object("text").and_then(|text| text.get("format").cloned());
        let told = Told::of(&fields);
        let mut chat: Map<String, Value> =
            SHARED.iter().filter_map(|name| Some(((*name).to_owned(), fields.raw(name)?.clone()))).collect();
        fields.finish()?;
        if let Some(id) = previous {
            return Err(not_stored(&id));
        }
        if wants_tools {
            let message = "tools are not served at /v1/responses, only at /v1/chat/completions";
            return Err(ApiError::bad_request(message, Some("tools")));
        }
        let system = instructions.map(|text| json!({"role": "system", "content": text}));
        let messages: Vec<Value> = system.into_iter().chain(messages.unwrap_or_default()).collect();
        chat.insert("messages".to_owned(), messages.into());
        if let Some(max_tokens) = max_output_tokens {
            chat.insert("max_tokens".to_owned(), max_tokens.into());
        }
        if let Some(format) = format.map(response_format) {
            chat.insert("response_format".to_owned(), format);
        }
        let chat = serde_json::to_vec(&chat).expect("a map of JSON is JSON");
        Ok(Self { chat: chat.into(), told })
    }
}

/// vLLM without `VLLM_ENABLE_RESPONSES_API_STORE`.
fn not_stored(id: &str) -> ApiError {
    ApiError {
        status: StatusCode::NOT_FOUND,
        kind: "invalid_request_error",
        message: format!("Response with id '{id}' not found."),
        older: None,
        param: Some("response_id".to_owned()),
    }
}

/// `text.format` is flat where `response_format` is not.
fn response_format(mut format: Value) -> Value {
    match format.get("type").and_then(Value::as_str) {
        Some("json_schema") => {
            let inner = format.as_object_mut().map(std::mem::take).unwrap_or_default();
            json!({"type": "json_schema", "json_schema": inner})
        }
        _ => format,
    }
}

/// `None` for what is no text.
fn messages(input: &Value) -> Option<Vec<Value>> {
    match input {
        Value::String(text) => Some(vec![json!({"role": "user", "content": text})]),
        Value::Array(items) => items.iter().map(message).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

fn message(item: &Value) -> Option<Value> {
    let kind = item.get("type").map_or(Some("message"), Value::as_str)?;
    let role = item.get("role")?.as_str()?;
    let role = if role == "developer" { "system" } else { role };
    let content = match item.get("content")? {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().map(part_text).collect::<Option<Vec<_>>>()?.join("\n"),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => return None,
    };
    (kind == "message").then(|| json!({"role": role, "content": content}))
}

fn part_text(part: &Value) -> Option<&str> {
    match part.get("type")?.as_str()? {
        "input_text" | "output_text" | "text" => part.get("text")?.as_str(),
        _ => None,
    }
}
