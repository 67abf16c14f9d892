//! `messages` and `system` of the Messages API, checked as vLLM's `AnthropicMessage` and `AnthropicContentBlock` are.

use crate::http::body::Fields;
use serde_json::{Map, Value, json};

const BLOCK_TYPES: &str = "'text', 'image', 'tool_use', 'tool_result', 'tool_reference', 'thinking', 'redacted_thinking', \
                           'tool_addition' or 'tool_removal'";
/// Fields of a block, whatever its type: vLLM has one class for all types.
const TEXTS: [&str; 8] = ["text", "id", "tool_use_id", "name", "tool_name", "thinking", "signature", "data"];
const OBJECTS: [&str; 2] = ["source", "input"];

#[derive(Debug)]
pub(super) struct Message {
    pub(super) role: Role,
    pub(super) content: Content,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    User,
    Assistant,
    System,
}

#[derive(Debug)]
pub(super) enum Content {
    Text(String),
    Blocks(Vec<Block>),
}

/// Content block of a message, as far as a model sees it.
#[derive(Debug)]
pub(super) enum Block {
    Text(String),
    /// URL of an image.
    Image(String),
    Thinking(String),
    ToolUse {
        id: String,
        name: String,
        input: Map<String, Value>,
    },
    ToolResult {
        tool_use_id: String,
        /// Content of the result: a string, a list of objects, or null.
        content: Value,
    },
    /// A block that adds nothing, like redacted thinking or an empty text.
    Silent,
    /// `tool_addition` or `tool_removal`
    ToolChange,
}

/// Checks the messages, and reports to `fields` what is wrong.
pub(super) fn messages(fields: &mut Fields) -> Vec<Message> {
    let list = fields
        .typed("messages", "list_type", "Input should be a valid list", |value| value.as_array().cloned());
    let list = fields.required("messages", list).unwrap_or_default();
    let checked = list.into_iter().enumerate();
    checked.filter_map(|(message_idx, message)| check(fields, message_idx, message)).collect()
}

/// Checks `system`; `None` without one.
pub(super) fn system(fields: &mut Fields) -> Option<Content> {
    let system = fields.raw("system")?.clone();
    content(fields, "system", system)
}

/// Returns the URL of an image, like vLLM's `_convert_image_source_to_url`.
pub(super) fn image_url(source: &Map<String, Value>) -> String {
    let text =
        |name: &str, default: &str| source.get(name).and_then(Value::as_str).unwrap_or(default).to_owned();
    match source.get("type").and_then(Value::as_str) {
        Some("url") => text("url", ""),
        Some(_) | None => format!("data:{};base64,{}", text("media_type", "image/jpeg"), text("data", "")),
    }
}

// === impl Content ===

impl Content {
    pub(super) fn blocks(&self) -> &[Block] {
        match self {
            Self::Text(_) => &[],
            Self::Blocks(blocks) => blocks,
        }
    }
}

fn check(fields: &mut Fields, message_idx: usize, message: Value) -> Option<Message> {
    let loc = format!("messages.{message_idx}");
    let Value::Object(mut message) = message else {
        fields.model_error(&loc, "AnthropicMessage", message);
        return None;
    };
    let whole = Value::Object(message.clone());
    let mut required = |name: &str| {
        let value = message.shift_remove(name);
        if value.is_none() {
            fields.error("missing", &format!("{loc}.{name}"), "Field required", whole.clone());
        }
        value
    };
    let (role, told) = (required("role"), required("content"));
    let role = match role?.as_str() {
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        Some("system") => Role::System,
        _ => {
            let expected = "'user', 'assistant' or 'system'";
            fields.literal_error(&format!("{loc}.role"), expected, whole["role"].clone());
            return None;
        }
    };
    Some(Message { role, content: content(fields, &format!("{loc}.content"), told?)? })
}

fn content(fields: &mut Fields, loc: &str, content: Value) -> Option<Content> {
    match content {
        Value::String(text) => Some(Content::Text(text)),
        Value::Array(blocks) => {
            let blocks = blocks.into_iter().enumerate();
            let blocks: Vec<_> = blocks
                .map(|(block_idx, value)| block(fields, &format!("{loc}.{block_idx}"), value))
                .collect();
            Some(Content::Blocks(blocks.into_iter().collect::<Option<_>>()?))
        }
        other => {
            fields.error("string_type", loc, "Input should be a valid string", other.clone());
            fields.error("list_type", loc, "Input should be a valid list", other);
            None
        }
    }
}

fn block(fields: &mut Fields, loc: &str, value: Value) -> Option<Block> {
    let Value::Object(mut block) = value else {
        fields.model_error(loc, "AnthropicContentBlock", value);
        return None;
    };
    let Some(kind) = block.get("type").cloned() else {
        fields.error("missing", &format!("{loc}.type"), "Field required", Value::Object(block));
        return None;
    };
    let known = kind.as_str().filter(|kind| BLOCK_TYPES.contains(&format!("'{kind}'")));
    if known.is_none() {
        fields.literal_error(&format!("{loc}.type"), BLOCK_TYPES, kind.clone());
    }
    if !has_right_fields(fields, loc, &block) {
        return None;
    }
    let mut text = |name: &str| match block.shift_remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    };
    let or_silent = |block: Option<Block>| Some(block.unwrap_or(Block::Silent));
    match known? {
        "text" => or_silent(text("text").filter(|text| !text.is_empty()).map(Block::Text)),
        "thinking" => or_silent(text("thinking").map(Block::Thinking)),
        "tool_use" => {
            let [id, name] = ["id", "name"].map(|name| text(name).unwrap_or_default());
            let input = block.get("input").and_then(Value::as_object).cloned().unwrap_or_default();
            Some(Block::ToolUse { id, name, input })
        }
        "tool_result" => {
            let tool_use_id = text("tool_use_id").unwrap_or_default();
            Some(Block::ToolResult { tool_use_id, content: block.remove("content").unwrap_or_default() })
        }
        "image" => {
            let source = block.get("source").and_then(Value::as_object).filter(|source| !source.is_empty());
            or_silent(source.map(|source| Block::Image(image_url(source))))
        }
        "tool_addition" | "tool_removal" => Some(Block::ToolChange),
        _ => Some(Block::Silent),
    }
}

/// Returns whether all fields that a block may have are of their types.
fn has_right_fields(fields: &mut Fields, loc: &str, block: &Map<String, Value>) -> bool {
    let mut is_right = true;
    let mut complain = |name: &str, (kind, message): (&'static str, &str), value: &Value| {
        fields.error(kind, &format!("{loc}.{name}"), message, value.clone());
        is_right = false;
    };
    let given = |name: &'static str| Some((name, block.get(name).filter(|value| !value.is_null())?));
    for (name, value) in TEXTS.into_iter().filter_map(given).filter(|(_, value)| !value.is_string()) {
        complain(name, ("string_type", "Input should be a valid string"), value);
    }
    for (name, value) in OBJECTS.into_iter().filter_map(given).filter(|(_, value)| !value.is_object()) {
        complain(name, ("dict_type", "Input should be a valid dictionary"), value);
    }
    if let Some((name, value)) = given("content") {
        match value {
            Value::String(_) => {}
            Value::Array(parts) => {
                for (part_idx, part) in parts.iter().enumerate().filter(|(_, part)| !part.is_object()) {
                    let name = format!("{name}.{part_idx}");
                    complain(&name, ("dict_type", "Input should be a valid dictionary"), part);
                }
            }
            other => complain(name, ("string_type", "Input should be a valid string"), other),
        }
    }
    is_right
}

// === impl Role ===

impl Role {
    pub(super) fn as_json(self) -> Value {
        json!(match self {
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::System => "system",
        })
    }
}
