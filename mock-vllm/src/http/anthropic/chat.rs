//! Converts messages of the Messages API to messages of a chat, like vLLM's `_convert_system_message` and
//! `_convert_messages`.

use super::blocks::{Block, Content, Message, Role, image_url};
use serde_json::{Value, json};
use vllm_text::python_text;

/// Beginning of texts of Claude Code's that vLLM drops, because they differ from request to request.
const BILLING_HEADER: &str = "x-anthropic-billing-header";

/// Place of system messages that come within a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LateSystem {
    InPlace,
    /// In the first message, for templates that take no later one.
    First,
}

pub(super) fn chat_messages(
    system: Option<&Content>,
    messages: &[Message],
    late_system: LateSystem,
) -> Vec<Value> {
    let mut converted = Vec::new();
    let mut first: String = match system {
        Some(Content::Text(text)) => text.clone(),
        Some(content) => system_text(content),
        None => String::new(),
    };
    let is_system = |message: &&Message| message.role == Role::System;
    if late_system == LateSystem::First {
        first.extend(messages.iter().filter(is_system).map(|message| system_text(&message.content)));
    }
    if !first.is_empty() {
        converted.push(json!({"role": "system", "content": first}));
    }
    for message in messages {
        match (message.role, late_system) {
            (Role::System, LateSystem::First) => {}
            (Role::System, LateSystem::InPlace) => {
                let text = system_text(&message.content);
                converted.extend((!text.is_empty()).then(|| json!({"role": "system", "content": text})));
            }
            (Role::User | Role::Assistant, _) => convert(message, &mut converted),
        }
    }
    converted
}

/// Joins the texts of a system message.
fn system_text(content: &Content) -> String {
    let is_kept = |text: &&str| !text.starts_with(BILLING_HEADER);
    match content {
        Content::Text(text) => Some(text.as_str()).filter(is_kept).unwrap_or_default().to_owned(),
        Content::Blocks(blocks) => {
            let texts = blocks.iter().filter_map(|block| match block {
                Block::Text(text) => Some(text.as_str()),
                _ => None,
            });
            texts.filter(is_kept).collect()
        }
    }
}

fn convert(message: &Message, converted: &mut Vec<Value>) {
    let mut chat = json!({"role": message.role.as_json()});
    if let Content::Text(text) = &message.content {
        chat["content"] = text.as_str().into();
        converted.push(chat);
        return;
    }
    let (mut parts, mut calls, mut thoughts) = (Vec::new(), Vec::new(), Vec::new());
    for block in message.content.blocks() {
        match block {
            Block::Text(text) => parts.push(json!({"type": "text", "text": text})),
            Block::Image(url) => parts.push(image_part(url)),
            Block::Thinking(text) => thoughts.push(text.as_str()),
            Block::ToolUse { id, name, input } => {
                let function = json!({"name": name, "arguments": input});
                calls.push(json!({"id": id, "type": "function", "function": function}));
            }
            // A result goes before the rest of its message.
            Block::ToolResult { tool_use_id, content } if message.role == Role::User => {
                tool_result(tool_use_id, content, converted);
            }
            Block::ToolResult { tool_use_id: _, content } => {
                let text = format!("Tool result: {}", python_str(content));
                parts.push(json!({"type": "text", "text": text}));
            }
            Block::Silent | Block::ToolChange => {}
        }
    }
    if !thoughts.is_empty() {
        chat["reasoning"] = thoughts.concat().into();
    }
    if !calls.is_empty() {
        chat["tool_calls"] = calls.into();
    }
    let is_said = !parts.is_empty();
    match parts.as_slice() {
        [] => {}
        [part] if part["type"] == "text" => chat["content"] = part["text"].clone(),
        _ => chat["content"] = parts.into(),
    }
    if is_said || message.role == Role::Assistant {
        converted.push(chat);
    }
}

/// Converts a result: its text, then its images as a user's message, then the tools that it refers to.
fn tool_result(tool_use_id: &str, content: &Value, converted: &mut Vec<Value>) {
    let (mut texts, mut images, mut references) = (Vec::new(), Vec::new(), Vec::new());
    for part in content.as_array().into_iter().flatten() {
        let text = |name: &str| part.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        match part.get("type").and_then(Value::as_str) {
            Some("text") => texts.push(text("text").unwrap_or_default()),
            Some("image") => {
                let url = part.get("source").and_then(Value::as_object).map(image_url).unwrap_or_default();
                images.extend((!url.is_empty()).then(|| image_part(&url)));
            }
            Some("tool_reference") => {
                let name = text("tool_name").or_else(|| text("name"));
                references.extend(name.map(|name| json!({"type": "tool_reference", "name": name})));
            }
            Some(_) | None => {}
        }
    }
    let text = content.as_str().map_or_else(|| texts.join("\n"), str::to_owned);
    converted.push(json!({"role": "tool", "tool_call_id": tool_use_id, "content": text}));
    if !images.is_empty() {
        converted.push(json!({"role": "user", "content": images}));
    }
    if !references.is_empty() {
        converted.push(json!({"role": "tool", "tool_call_id": tool_use_id, "content": references}));
    }
}

fn image_part(url: &str) -> Value {
    json!({"type": "image_url", "image_url": {"url": url}})
}

/// Python's `str(content) if content else ""`.
fn python_str(content: &Value) -> String {
    match content {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(parts) if parts.is_empty() => String::new(),
        other => python_text::repr(other),
    }
}
