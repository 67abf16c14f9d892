//! Messages in the form that vLLM gives to a template.

use super::ContentFormat;
use crate::tokens::chat::{Chat, ChatMessage, ContentPart};
use serde_json::{Map, Value, json};

/// Names of a message's reasoning, in the order in which transformers looks for them.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Returns the messages of `chat` for the template `source`.
pub(super) fn conversation(chat: &Chat, format: ContentFormat, source: &str) -> Vec<Value> {
    let has_developer = chat.messages.iter().any(|message| message.role == "developer");
    let knows_developer = source.contains("\"developer\"") || source.contains("'developer'");
    let messages =
        if has_developer && !knows_developer { &system_first(&chat.messages) } else { &chat.messages };
    messages.iter().map(|message| Value::Object(fields(message, format))).collect()
}

/// Works around templates that do not know the role developer, like vLLM: those messages become system messages, and
/// all system messages become the first message.
fn system_first(messages: &[ChatMessage]) -> Vec<ChatMessage> {
    let as_system = |message: &ChatMessage| {
        let mut message = message.clone();
        if message.role == "developer" {
            message.role = "system".to_owned();
            message.extra.remove("tools");
        }
        message
    };
    let messages: Vec<ChatMessage> = messages.iter().map(as_system).collect();
    let is_system = |message: &ChatMessage| message.role == "system";
    if messages.iter().skip(1).all(|message| !is_system(message)) {
        return messages;
    }
    let (system, others): (Vec<_>, Vec<_>) = messages.into_iter().partition(is_system);
    let texts: Vec<String> = system.iter().map(ChatMessage::text).filter(|text| !text.is_empty()).collect();
    std::iter::once(ChatMessage::new("system", &texts.join("\n\n"))).chain(others).collect()
}

fn fields(message: &ChatMessage, format: ContentFormat) -> Map<String, Value> {
    let ChatMessage { role, content, extra } = message;
    let is_text = content.iter().all(|part| matches!(part, ContentPart::Text { .. }));
    let content = match format {
        ContentFormat::OpenAi if role != "tool" || !is_text => content.iter().map(part).collect(),
        ContentFormat::OpenAi | ContentFormat::String => Value::from(message.text()),
    };
    let mut fields = Map::new();
    let reasoning = REASONING.iter().find_map(|name| extra.get(*name).filter(|value| !value.is_null()));
    if let Some(reasoning) = reasoning {
        fields.insert("thinking".to_owned(), reasoning.clone());
    }
    fields.insert("role".to_owned(), Value::from(role.as_str()));
    fields.insert("content".to_owned(), content);
    fields.extend(extra.clone());
    if let Some(reasoning) = reasoning {
        fields.insert("reasoning_content".to_owned(), reasoning.clone());
    }
    fields
}

fn part(part: &ContentPart) -> Value {
    match part {
        ContentPart::Text { text, extra } => {
            let mut fields = Map::from_iter([
                ("type".to_owned(), Value::from("text")),
                ("text".to_owned(), Value::from(text.as_str())),
            ]);
            fields.extend(extra.clone());
            Value::Object(fields)
        }
        ContentPart::ToolReference(name) => json!({"type": "tool_reference", "name": name}),
        ContentPart::Media => Value::Null,
    }
}
