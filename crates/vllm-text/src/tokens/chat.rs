//! A conversation in the form that chat templates take: the checked messages of a request.

use serde_json::{Map, Value};

/// One conversation, with the other inputs of its template.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chat {
    pub messages: Vec<ChatMessage>,
    /// Functions that may be called, each `{"type": .., "function": {..}}`; `None` if the request has no such field.
    pub tools: Option<Vec<Value>>,
    /// Variables of the template: `add_generation_prompt`, `chat_template_kwargs`, ...
    pub variables: Map<String, Value>,
    /// Template of the request itself.
    pub template: Option<String>,
    /// True if the tokenizer adds BOS and the like to the template's text.
    pub add_special_tokens: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatMessage {
    pub role: String,
    pub content: Vec<ContentPart>,
    /// Fields for templates besides role and content: `tool_calls` (arguments as objects), `reasoning`, `name`, ...
    pub extra: Map<String, Value>,
}

/// Part of a message's content. A string in a request is a single text.
#[derive(Clone, Debug, PartialEq)]
pub enum ContentPart {
    Text {
        text: String,
        /// Fields that the API does not know, but that templates may read.
        extra: Map<String, Value>,
    },
    /// Name of a tool that the template should show in full.
    ToolReference(String),
    /// An image or a sound, which no model here takes.
    Media,
}

// === impl Chat ===

impl Chat {
    /// Returns the content of the last message of role `user`.
    pub fn last_user_text(&self) -> Option<String> {
        self.messages.iter().rfind(|message| message.role == "user").map(ChatMessage::text)
    }
}

// === impl ChatMessage ===

impl ChatMessage {
    pub fn new(role: &str, text: &str) -> Self {
        Self { role: role.to_owned(), content: vec![ContentPart::text(text)], extra: Map::new() }
    }

    /// Joins the parts that are not empty, one per line: the content for templates that take a string.
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
