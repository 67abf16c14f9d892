//! A conversation as chat templates take it: what is left of a request's messages once they are checked.

use serde_json::{Map, Value};

/// One conversation, and what its template is told besides.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chat {
    pub messages: Vec<ChatMessage>,
    /// Functions that may be called, each `{"type": .., "function": {..}}`; `None` when the request has no such field.
    pub tools: Option<Vec<Value>>,
    /// Variables of the template: `add_generation_prompt`, `chat_template_kwargs`, ...
    pub variables: Map<String, Value>,
    /// The request's own template.
    pub template: Option<String>,
    /// The tokenizer puts BOS and the like around what the template made.
    pub add_special_tokens: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatMessage {
    pub role: String,
    pub content: Vec<ContentPart>,
    /// What templates see besides role and content: `tool_calls` (arguments as objects), `reasoning`, `name`, ...
    pub extra: Map<String, Value>,
}

/// Clients that send a string send one text.
#[derive(Clone, Debug, PartialEq)]
pub enum ContentPart {
    Text {
        text: String,
        /// Fields that the API does not know, which templates may read.
        extra: Map<String, Value>,
    },
    /// The name of a tool that the template is to show in full.
    ToolReference(String),
    /// An image or a sound, which no model here can take.
    Media,
}

// === impl Chat ===

impl Chat {
    /// The content of the last message of role `user`.
    pub fn last_user_text(&self) -> Option<String> {
        self.messages.iter().rfind(|message| message.role == "user").map(ChatMessage::text)
    }
}

// === impl ChatMessage ===

impl ChatMessage {
    pub fn new(role: &str, text: &str) -> Self {
        Self { role: role.to_owned(), content: vec![ContentPart::text(text)], extra: Map::new() }
    }

    /// The parts that are not empty, a line each: the content for templates that take a string.
    pub fn text(&self) -> String {
        let texts = self.content.iter().map(|part| match part {
            ContentPart::Text { text, extra: _ } => text.as_str(),
            ContentPart::ToolReference(name) => name,
            ContentPart::Media => "",
        });
        texts.filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n")
    }
}

// === impl ContentPart ===

impl ContentPart {
    pub fn text(text: &str) -> Self {
        Self::Text { text: text.to_owned(), extra: Map::new() }
    }
}
