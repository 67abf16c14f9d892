//! Converts a body of the Messages API to the chat that it asks for.

use super::blocks::{self, Block, Content, Message, Role};
use super::chat::{LateSystem, chat_messages};
use crate::http::body::Fields;
use crate::http::error::ApiError;
use crate::http::request::TextRequest;
use crate::http::wire::Api;
use serde_json::{Map, Value, json};
use vllm_engine::vllm_version::VllmVersion;
use vllm_text::tokens::chat::{Chat, ChatMessage};
use vllm_text::tokens::chat_template::ChatTemplate;

/// vLLM 0.33 `envs.py`: `VLLM_MAX_STOP_STRINGS`.
const STOP_MAX: usize = 4;
/// vLLM 0.33 `AnthropicThinkingConfigEnabled`
const BUDGET_MIN: i64 = 1_024;
/// vLLM 0.33 `AnthropicEffort`
const EFFORTS: [&str; 5] = ["low", "medium", "high", "xhigh", "max"];

/// Endpoint that a body is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Message,
    /// `/v1/messages/count_tokens`, which knows fewer fields.
    Count,
}

#[derive(Debug)]
pub(super) struct MessagesRequest {
    system: Option<Content>,
    messages: Vec<Message>,
    thinking: Thinking,
    /// Fields of the chat that are known already.
    chat: Map<String, Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thinking {
    Unsaid,
    Disabled,
}

// === impl MessagesRequest ===

impl MessagesRequest {
    /// Checks the fields of a body.
    ///
    /// # Errors
    /// Fails for fields that are missing or of the wrong type, with the web framework's error.
    pub(super) fn parse(body: &[u8], purpose: Purpose) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let mut chat = Map::new();
        let model = fields.string("model");
        let model = fields.required("model", model);
        if model.as_deref() == Some("") {
            fields.error("value_error", "model", "Value error, Model is required", "".into());
        }
        let messages = blocks::messages(&mut fields);
        let max_tokens = match purpose {
            Purpose::Message => sampling(&mut fields, &mut chat),
            Purpose::Count => None,
        };
        let system = blocks::system(&mut fields);
        output_config(&mut fields, &mut chat);
        let thinking = thinking(&mut fields, max_tokens);
        tools(&mut fields, &mut chat);
        let variables = fields.object("chat_template_kwargs");
        chat.extend(variables.map(|variables| ("chat_template_kwargs".to_owned(), variables.into())));
        fields.finish()?;
        chat.extend(model.map(|model| ("model".to_owned(), model.into())));
        Ok(Self { system, messages, thinking, chat })
    }

    /// Completes the chat and checks it.
    ///
    /// # Errors
    /// Fails for what vLLM rejects in the chat.
    pub(super) fn into_chat(self, template: &ChatTemplate) -> Result<TextRequest, ApiError> {
        let Self { system, messages, thinking, mut chat } = self;
        let contents = { system.iter() }.chain(messages.iter().map(|message| &message.content));
        if contents.flat_map(Content::blocks).any(|block| matches!(block, Block::ToolChange)) {
            let message = "tool_addition and tool_removal blocks are not supported by this server";
            return Err(ApiError::bad_request(message, Some("messages")));
        }
        let has_late_system = messages.iter().any(|message| message.role == Role::System);
        let late_system = if has_late_system && !takes_late_system(template) {
            LateSystem::First
        } else {
            LateSystem::InPlace
        };
        let messages = chat_messages(system.as_ref(), &messages, late_system);
        chat.insert("messages".to_owned(), messages.into());
        if thinking == Thinking::Disabled {
            chat.insert("reasoning_effort".to_owned(), disabled_thinking_effort(template).into());
        }
        TextRequest::from_fields(Api::Chat, VllmVersion::V0_33, Fields::of(chat))
    }
}

/// Takes over the fields of a request for an answer, and returns the limit on its tokens.
fn sampling(fields: &mut Fields, chat: &mut Map<String, Value>) -> Option<i64> {
    let max_tokens = fields.integer("max_tokens");
    let max_tokens = fields.required("max_tokens", max_tokens);
    if let Some(max_tokens) = max_tokens.filter(|max_tokens| *max_tokens <= 0) {
        let message = "Value error, max_tokens must be positive";
        fields.error("value_error", "max_tokens", message, max_tokens.into());
    }
    let _metadata = fields.object("metadata");
    let stop = fields.typed("stop_sequences", "list_type", "Input should be a valid list", |value| {
        value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
    });
    if let Some(stop) = stop.as_ref().filter(|stop| stop.len() > STOP_MAX) {
        let message =
            format!("List should have at most {STOP_MAX} items after validation, not {}", stop.len());
        fields.error("too_long", "stop_sequences", &message, stop.clone().into());
    }
    let streams = fields.boolean("stream").unwrap_or_default();
    let numbers = ["temperature", "top_p"].map(|name| (name, fields.number(name).map(Value::from)));
    let top_k = ("top_k", fields.integer("top_k").map(Value::from));
    let salt = ("cache_salt", fields.raw("cache_salt").cloned());
    let limits = ["max_tokens", "max_completion_tokens"].map(|name| (name, max_tokens.map(Value::from)));
    let stop = ("stop", stop.map(Value::from));
    let all = numbers.into_iter().chain(limits).chain([top_k, salt, stop]);
    chat.extend(all.filter_map(|(name, value)| Some((name.to_owned(), value?))));
    if streams {
        chat.insert("stream".to_owned(), true.into());
        let options = json!({"include_usage": true, "continuous_usage_stats": true});
        chat.insert("stream_options".to_owned(), options);
    }
    max_tokens
}

fn output_config(fields: &mut Fields, chat: &mut Map<String, Value>) {
    let Some(config) = fields.object("output_config") else { return };
    let schema = config.get("format").and_then(|format| format.get("schema")?.as_object());
    if let Some(schema) = schema.filter(|schema| !schema.is_empty()) {
        let format = json!({"type": "json_schema", "json_schema": {"name": "json_schema", "schema": schema}});
        chat.insert("response_format".to_owned(), format);
    }
    match config.get("effort").filter(|effort| !effort.is_null()) {
        Some(effort) if effort.as_str().is_some_and(|effort| EFFORTS.contains(&effort)) => {
            chat.insert("reasoning_effort".to_owned(), effort.clone());
        }
        Some(effort) => {
            let expected = "'low', 'medium', 'high', 'xhigh' or 'max'";
            fields.literal_error("output_config.effort", expected, effort.clone());
        }
        None => {}
    }
}

fn thinking(fields: &mut Fields, max_tokens: Option<i64>) -> Thinking {
    let Some(thinking) = fields.object("thinking") else { return Thinking::Unsaid };
    match thinking.get("type").and_then(Value::as_str) {
        Some("disabled") => return Thinking::Disabled,
        Some("adaptive") => {}
        Some("enabled") => match thinking.get("budget_tokens").map(Value::as_i64) {
            Some(Some(budget)) if budget < BUDGET_MIN => {
                fields.bound_error("thinking.enabled.budget_tokens", BUDGET_MIN, budget.into());
            }
            Some(Some(budget)) if max_tokens.is_some_and(|max_tokens| budget >= max_tokens) => {
                let message = "Value error, thinking.budget_tokens must be less than max_tokens";
                fields.error("value_error", "thinking", message, thinking.into());
            }
            Some(Some(_)) => {}
            Some(None) => {
                let budget = thinking["budget_tokens"].clone();
                let loc = "thinking.enabled.budget_tokens";
                fields.error("int_type", loc, "Input should be a valid integer", budget);
            }
            None => {
                let loc = "thinking.enabled.budget_tokens";
                fields.error("missing", loc, "Field required", thinking.into());
            }
        },
        Some(_) | None => {
            let message = "Input tag found using 'type' does not match any of the expected tags: 'enabled', 'disabled', \
                           'adaptive'";
            fields.error("union_tag_invalid", "thinking", message, thinking.into());
        }
    }
    Thinking::Unsaid
}

/// Takes over `tools` and `tool_choice`; without tools the choice has no meaning.
fn tools(fields: &mut Fields, chat: &mut Map<String, Value>) {
    let choice = tool_choice(fields);
    let list =
        fields.typed("tools", "list_type", "Input should be a valid list", |value| value.as_array().cloned());
    let tools: Vec<Value> = { list.unwrap_or_default().into_iter().enumerate() }
        .filter_map(|(tool_idx, tool)| function(fields, &format!("tools.{tool_idx}"), tool))
        .collect();
    if tools.is_empty() {
        return;
    }
    chat.insert("tools".to_owned(), tools.into());
    if let Some((choice, is_parallel)) = choice {
        chat.insert("tool_choice".to_owned(), choice);
        chat.insert("parallel_tool_calls".to_owned(), is_parallel.into());
    }
}

/// Returns the choice in a chat's form, and whether the model may make several calls.
fn tool_choice(fields: &mut Fields) -> Option<(Value, bool)> {
    let choice = fields.object("tool_choice")?;
    let name = choice.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
    let converted = match choice.get("type").and_then(Value::as_str) {
        Some("auto") => "auto".into(),
        Some("any") => "required".into(),
        Some("none") => "none".into(),
        Some("tool") => match name {
            Some(name) => json!({"type": "function", "function": {"name": name}}),
            None => {
                let message = "Value error, tool_choice.name is required when type is 'tool'";
                fields.error("value_error", "tool_choice", message, choice.into());
                return None;
            }
        },
        Some(_) | None => {
            let kind = choice.get("type").cloned().unwrap_or_default();
            fields.literal_error("tool_choice.type", "'auto', 'any', 'tool' or 'none'", kind);
            return None;
        }
    };
    Some((converted, choice.get("disable_parallel_tool_use") != Some(&Value::Bool(true))))
}

fn function(fields: &mut Fields, loc: &str, tool: Value) -> Option<Value> {
    let Value::Object(tool) = tool else {
        fields.model_error(loc, "AnthropicTool", tool);
        return None;
    };
    let mut required = |name: &str, is_it: fn(&Value) -> bool, (kind, message): (&'static str, &str)| {
        let loc = format!("{loc}.{name}");
        match tool.get(name) {
            Some(value) if is_it(value) => return Some(value.clone()),
            Some(value) => fields.error(kind, &loc, message, value.clone()),
            None => fields.error("missing", &loc, "Field required", Value::Object(tool.clone())),
        }
        None
    };
    let name = required("name", Value::is_string, ("string_type", "Input should be a valid string"));
    let schema =
        required("input_schema", Value::is_object, ("dict_type", "Input should be a valid dictionary"));
    let (name, mut schema) = (name?, schema?);
    if let Some(schema) = schema.as_object_mut() {
        schema.entry("type").or_insert_with(|| "object".into());
    }
    let mut function = json!({"name": name, "description": tool.get("description"), "parameters": schema});
    for field in ["strict", "defer_loading"] {
        function[field] = tool.get(field).cloned().unwrap_or_default();
    }
    Some(json!({"type": "function", "function": function}))
}

/// Runs vLLM's probe: whether the template renders a system message that is not the first, with tools and without.
fn takes_late_system(template: &ChatTemplate) -> bool {
    let messages: Vec<_> =
        ["system", "user", "system", "user"].map(|role| ChatMessage::new(role, "t")).into();
    let probe = |tools| Chat { messages: messages.clone(), tools, ..Chat::default() };
    [None, Some(Vec::new())].into_iter().all(|tools| template.render(&probe(tools)).is_ok())
}

/// Runs vLLM's probe: returns `none`, unless the template rejects it or renders it like one of the efforts.
fn disabled_thinking_effort(template: &ChatTemplate) -> &'static str {
    let probe = |effort: &str| {
        let variables = json!({
            "add_generation_prompt": true, "enable_thinking": effort != "none", "reasoning_effort": effort,
        });
        let variables = variables.as_object().cloned().unwrap_or_default();
        let messages = vec![ChatMessage::new("user", "Hi")];
        template.render(&Chat { messages, variables, ..Chat::default() }).ok()
    };
    match probe("none") {
        Some(none) if EFFORTS.iter().all(|effort| probe(effort).as_ref() != Some(&none)) => "none",
        Some(_) | None => "low",
    }
}
