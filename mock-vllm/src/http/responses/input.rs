//! Converts a body of `/v1/responses` to the chat that it asks for, and to the fields that the answer repeats.

use super::items::Conversation;
use super::output::Told;
use super::tools::Tools;
use crate::http::body::Fields;
use crate::http::error::ApiError;
use crate::http::request::TextRequest;
use crate::http::shape::ToolCalling;
use crate::http::wire::Api;
use http::StatusCode;
use serde_json::{Map, Value, json};
use vllm_engine::vllm_version::VllmVersion;

/// Fields that a chat has under the same name.
const SHARED: [&str; 21] = [
    "cache_salt",
    "chat_template_kwargs",
    "frequency_penalty",
    "ignore_eos",
    "include_stop_str_in_output",
    "min_p",
    "model",
    "parallel_tool_calls",
    "presence_penalty",
    "priority",
    "repetition_penalty",
    "request_id",
    "seed",
    "stop",
    "stop_token_ids",
    "stream",
    "structured_outputs",
    "temperature",
    "top_k",
    "top_p",
    "watermarking",
];

#[derive(Debug)]
pub(super) struct ResponsesRequest {
    pub(super) chat: TextRequest,
    pub(super) told: Told,
}

// === impl ResponsesRequest ===

impl ResponsesRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// Fails for fields that are missing or of the wrong type, and for what needs stored responses.
    pub(super) fn parse(
        body: &[u8],
        version: VllmVersion,
        tool_calling: ToolCalling,
    ) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        refuse_stored_forms(&fields)?;
        let tools = Tools::parse(&mut fields)?;
        let instructions = fields.string("instructions").filter(|text| !text.is_empty());
        let conversation = Conversation::of_input(&mut fields)?;
        let max_output_tokens = fields.integer("max_output_tokens");
        let [previous, _user] = ["previous_response_id", "user"].map(|field| fields.string(field));
        let format = fields.object("text").and_then(|mut text| text.remove("format"));
        let effort = fields.object("reasoning").and_then(|mut reasoning| reasoning.remove("effort"));
        let mut chat: Map<String, Value> =
            SHARED.iter().filter_map(|name| Some(((*name).to_owned(), fields.raw(name)?.clone()))).collect();
        fields.clone().finish()?;
        if let Some(id) = previous {
            return Err(not_stored(&id));
        }
        let Conversation { messages, continues } = conversation.expect("its errors were told");
        let system = instructions.map(|text| json!({"role": "system", "content": text}));
        let messages = system.into_iter().chain(messages.into_iter().map(Value::Object));
        let mut set = |field: &str, value: Option<Value>| {
            chat.extend(value.filter(|value| !value.is_null()).map(|value| (field.to_owned(), value)));
        };
        set("messages", Some(messages.collect()));
        set("max_tokens", max_output_tokens.map(Value::from));
        set("response_format", constraint(&fields, format)?);
        set("reasoning_effort", effort);
        if continues {
            set("continue_final_message", Some(true.into()));
            set("add_generation_prompt", Some(false.into()));
        }
        if !tools.declared.is_empty() {
            // Without a parser the tools are in the prompt, and everything that the model writes is text.
            let choice = match tool_calling {
                ToolCalling::Off => Some("none".into()),
                ToolCalling::On => tools.chat_choice()?,
            };
            set("tools", Some(tools.declared.clone().into()));
            set("tool_choice", choice);
        } else if tool_calling == ToolCalling::On {
            tools.chat_choice()?;
        }
        let told = Told::new(&fields, tools);
        let mut chat = TextRequest::from_fields(Api::Chat, version, Fields::of(chat))?;
        chat.sampling = chat.sampling.limited_by("max_output_tokens");
        Ok(Self { chat, told })
    }
}

/// Error of vLLM without `VLLM_ENABLE_RESPONSES_API_STORE`.
pub(super) fn not_stored(id: &str) -> ApiError {
    ApiError {
        status: StatusCode::NOT_FOUND,
        kind: "invalid_request_error",
        message: format!("Response with id '{id}' not found."),
        older: None,
        param: Some("response_id".to_owned()),
    }
}

fn refuse_stored_forms(fields: &Fields) -> Result<(), ApiError> {
    let is = |field: &str, expected: bool| fields.raw(field).is_some_and(|value| *value == expected);
    if fields.has("prompt") {
        return Err(fields.refused("prompt template is not supported", Some("prompt")));
    }
    if !is("background", true) {
        return Ok(());
    }
    if is("store", false) {
        return Err(fields.refused("background can only be used when `store` is true", Some("background")));
    }
    let message = "This vLLM engine does not support `store=True` and therefore does not support the background mode. \
        To enable these features, set the environment variable `VLLM_ENABLE_RESPONSES_API_STORE=1` when launching the \
        vLLM server.";
    let kind = "invalid_request_error";
    Err(ApiError { kind, ..ApiError::bad_request(message, Some("background")) })
}

/// Converts `text.format`, which is flat, to `response_format`, which is not.
fn constraint(fields: &Fields, format: Option<Value>) -> Result<Option<Value>, ApiError> {
    let Some(mut format) = format.filter(|format| !format.is_null()) else { return Ok(None) };
    if fields.has("structured_outputs") {
        let message = "Cannot specify both structured_outputs and text.format";
        return Err(fields.refused(message, Some("structured_outputs")));
    }
    Ok(Some(match format.get("type").and_then(Value::as_str) {
        Some("json_schema") => {
            let inner = format.as_object_mut().map(std::mem::take).unwrap_or_default();
            json!({"type": "json_schema", "json_schema": inner})
        }
        _ => format,
    }))
}
