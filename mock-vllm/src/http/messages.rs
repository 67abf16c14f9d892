//! `messages` and related fields of `/v1/chat/completions` and `/tokenize`: makes vLLM's checks, then the conversation
//! that its templates see.

mod shape;
mod tools;

use super::body::Fields;
use super::error::ApiError;
use super::prompt::PromptInput;
use serde_json::{Map, Value};
use vllm_engine::vllm_version::VllmVersion;
use vllm_text::tokens::chat::{Chat, ChatMessage, ContentPart};

/// Types of content parts: vLLM 0.33 `MM_PARSER_MAP`, sorted.
const PART_TYPES: [&str; 16] = [
    "audio_embeds",
    "audio_url",
    "image_embeds",
    "image_pil",
    "image_url",
    "input_audio",
    "input_image",
    "input_text",
    "output_text",
    "prompt_embeds",
    "refusal",
    "text",
    "thinking",
    "tool_reference",
    "video_embeds",
    "video_url",
];
/// Fields of content parts that the API knows; others go to the template.
const PART_FIELDS: [&str; 18] = [
    "audio_embeds",
    "audio_url",
    "closed",
    "data",
    "file",
    "image_embeds",
    "image_pil",
    "image_url",
    "input_audio",
    "name",
    "prompt_cache_breakpoint",
    "refusal",
    "text",
    "thinking",
    "type",
    "uuid",
    "video_embeds",
    "video_url",
];
/// Beginning of a line of Claude Code's that vLLM 0.33 drops, because it differs from request to request.
const BILLING_HEADER: &str = "x-anthropic-billing-header";
/// vLLM 0.33 `ReasoningEffort`
const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// Reads the chat of a request for an answer; `None` if `fields` have errors.
///
/// # Errors
/// Fails for what vLLM finds only after it has checked the shape of the body.
pub(crate) fn chat_prompt(
    fields: &mut Fields,
    version: VllmVersion,
) -> Result<Option<PromptInput>, ApiError> {
    let mut answered = Map::new();
    let documents = fields.typed("documents", "list_type", "Input should be a valid list", |value| {
        value.as_array().filter(|documents| documents.iter().all(Value::is_object)).cloned()
    });
    answered.extend(documents.map(|documents| ("documents".to_owned(), Value::Array(documents))));
    if let Some(effort) = reasoning_effort(fields) {
        let has_choice = fields
            .raw("chat_template_kwargs")
            .is_some_and(|variables| variables.get("enable_thinking").is_some());
        if version == VllmVersion::V0_33 && !has_choice {
            answered.insert("enable_thinking".to_owned(), Value::from(effort != "none"));
        }
        answered.insert("reasoning_effort".to_owned(), Value::from(effort));
    }
    let chat = tokenized_chat(fields, version)?;
    Ok(chat.map(|mut chat| {
        chat.variables.extend(answered);
        PromptInput::Chat(chat)
    }))
}

/// Reads the chat of a request for its tokens, which knows fewer fields.
///
/// # Errors
/// Fails like [`chat_prompt`].
pub(crate) fn tokenized_chat(fields: &mut Fields, version: VllmVersion) -> Result<Option<Chat>, ApiError> {
    let is_truthy = |fields: &Fields, name: &str| fields.raw(name).is_some_and(|value| *value == true);
    if is_truthy(fields, "continue_final_message") && is_truthy(fields, "add_generation_prompt") {
        let message = "Cannot set both `continue_final_message` and `add_generation_prompt` to True.";
        return Err(fields.refused(message, None));
    }
    let adds = fields.boolean("add_generation_prompt").unwrap_or(true);
    let continues = fields.boolean("continue_final_message").unwrap_or_default();
    let mut variables = fields.object("chat_template_kwargs").unwrap_or_default();
    let set = [("add_generation_prompt", adds), ("continue_final_message", continues)];
    variables.extend(set.map(|(name, value)| (name.to_owned(), Value::from(value))));
    let tools = tools::declared(fields, version);
    let template = fields.string("chat_template");
    let add_special_tokens = fields.boolean("add_special_tokens").unwrap_or_default();
    let Some(messages) = shape::messages(fields) else { return Ok(None) };
    let messages =
        messages.into_iter().map(|message| chat_message(message, version)).collect::<Result<_, _>>()?;
    Ok(Some(Chat { messages, tools, variables, template, add_special_tokens }))
}

fn reasoning_effort(fields: &mut Fields) -> Option<String> {
    let effort = fields.raw("reasoning_effort")?.clone();
    match effort.as_str().filter(|effort| EFFORTS.contains(effort)) {
        Some(effort) => Some(effort.to_owned()),
        None => {
            let (last, others) = EFFORTS.split_last().expect("there are some");
            let expected = format!("'{}' or '{last}'", others.join("', '"));
            fields.literal_error("reasoning_effort", &expected, effort);
            None
        }
    }
}

fn chat_message(mut message: Map<String, Value>, version: VllmVersion) -> Result<ChatMessage, ApiError> {
    let role = message.get("role").and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut content = match message.remove("content") {
        Some(Value::String(text)) => vec![ContentPart::text(&text)],
        Some(Value::Array(parts)) => {
            let parts: Result<Vec<_>, _> = parts.into_iter().map(content_part).collect();
            parts?.into_iter().flatten().collect()
        }
        Some(Value::Object(_)) => return Err(part_error("Missing 'type' field in multimodal part.")),
        None | Some(Value::Null | Value::Bool(_) | Value::Number(_)) => Vec::new(),
    };
    if role == "system" && version == VllmVersion::V0_33 {
        content.retain_mut(drop_billing_header);
    }
    let mut extra = Map::new();
    let mut keep = |name: &str, value: Option<Value>| {
        extra.extend(value.filter(|value| !value.is_null()).map(|value| (name.to_owned(), value)));
    };
    match role.as_str() {
        "assistant" => {
            keep("tool_calls", tools::called(message.remove("tool_calls"))?);
            let given = ["reasoning", "reasoning_content"].into_iter().find_map(|name| message.get(name));
            let reasoning = given.filter(|reasoning| reasoning.is_string()).cloned();
            keep("reasoning", reasoning.clone());
            keep("reasoning_content", reasoning);
        }
        "tool" => keep("tool_call_id", message.remove("tool_call_id")),
        _ => {}
    }
    for name in ["name", "task"] {
        keep(name, message.remove(name).filter(Value::is_string));
    }
    if role == "developer" {
        keep("tools", message.remove("tools"));
    }
    Ok(ChatMessage { role, content, extra })
}

/// Reads a content part; `None` for a part without content.
fn content_part(part: Value) -> Result<Option<ContentPart>, ApiError> {
    let mut part = match part {
        Value::String(text) => return Ok(Some(ContentPart::text(&text))),
        Value::Object(part) => part,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
            return Err(part_error("Missing 'type' field in multimodal part."));
        }
    };
    let kind = match part.get("type") {
        Some(Value::String(kind)) => kind.clone(),
        None | Some(Value::Null) => {
            match PART_TYPES.iter().find(|kind| part.contains_key(**kind) && **kind != "text") {
                Some(kind) => (*kind).to_owned(),
                None => return Err(part_error("Missing 'type' field in multimodal part.")),
            }
        }
        Some(_) => return Err(part_error("Invalid 'type' field in multimodal part.")),
    };
    let field = match kind.as_str() {
        "text" | "input_text" | "output_text" => "text",
        "refusal" | "thinking" => &kind,
        "tool_reference" => "name",
        kind if PART_TYPES.contains(&kind) => return Ok(Some(ContentPart::Media)),
        kind => {
            let message = format!(
                "Unsupported chat content part type: '{kind}'. Supported types: {}.",
                PART_TYPES.join(", ")
            );
            return Err(ApiError::bad_parameter(&message, "type", kind));
        }
    };
    let text = match part.shift_remove(field) {
        Some(Value::String(text)) => text,
        None | Some(Value::Null) => return Ok(None),
        Some(other) => {
            let message =
                format!("content part of type '{kind}': `{field}` should be a valid string, got {other}");
            return Err(part_error(&message));
        }
    };
    if kind == "tool_reference" {
        return Ok(Some(ContentPart::ToolReference(text)));
    }
    let extra = part.into_iter().filter(|(name, _)| !PART_FIELDS.contains(&name.as_str())).collect();
    Ok(Some(ContentPart::Text { text, extra }))
}

fn part_error(message: &str) -> ApiError {
    ApiError::bad_request(format!("{message} (parameter=type)"), Some("type"))
}

/// Removes the line; returns whether the part has text left.
fn drop_billing_header(part: &mut ContentPart) -> bool {
    if let ContentPart::Text { text, .. } = part
        && text.starts_with(BILLING_HEADER)
    {
        let rest = text.split_once('\n').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        *text = rest;
        return !text.is_empty();
    }
    true
}
