//! `messages` and what goes with them, as `/v1/chat/completions` and `/tokenize` take them.

use super::body::Fields;
use super::request::PromptInput;
use crate::tokens::chat::{Chat, ChatMessage, ContentPart};
use serde_json::{Map, Value};

/// A variable of templates that is a field of the request.
const ADD_GENERATION_PROMPT: &str = "add_generation_prompt";

/// `None` when `fields` have errors.
pub(crate) fn chat_prompt(fields: &mut Fields) -> Option<PromptInput> {
    let messages =
        fields.typed("messages", "list_type", "Input should be a valid list of messages", |value| {
            value.as_array()?.iter().map(message).collect::<Option<Vec<_>>>()
        });
    let messages = fields.required("messages", messages)?;
    let adds = fields.boolean(ADD_GENERATION_PROMPT).unwrap_or(true);
    let variables = Map::from_iter([(ADD_GENERATION_PROMPT.to_owned(), Value::from(adds))]);
    Some(PromptInput::Chat(Chat { messages, tools: None, variables }))
}

fn message(value: &Value) -> Option<ChatMessage> {
    let message = value.as_object()?;
    let role = message.get("role")?.as_str()?.to_owned();
    let content = match message.get("content") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) => vec![ContentPart { text: text.clone(), extra: Map::new() }],
        Some(Value::Array(parts)) => parts.iter().map(content_part).collect::<Option<Vec<_>>>()?,
        Some(Value::Bool(_) | Value::Number(_) | Value::Object(_)) => return None,
    };
    Some(ChatMessage { role, content, extra: Map::new() })
}

fn content_part(part: &Value) -> Option<ContentPart> {
    let text = part.as_str().or_else(|| part.get("text").or_else(|| part.get("refusal"))?.as_str())?;
    Some(ContentPart { text: text.to_owned(), extra: Map::new() })
}
