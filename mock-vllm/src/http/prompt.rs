//! The text or tokens that a request asks the model to continue.

use vllm_text::tokens::chat::Chat;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PromptInput {
    Chat(Chat),
    /// Text with what the tokenizer adds to it, like BOS.
    Text(String),
    PlainText(String),
    TokenIds(Vec<u32>),
}

impl PromptInput {
    /// Text by which scripted replies are found.
    pub(crate) fn last_user_text(&self) -> Option<String> {
        match self {
            Self::Chat(chat) => chat.last_user_text(),
            Self::Text(text) | Self::PlainText(text) => Some(text.clone()),
            Self::TokenIds(_) => None,
        }
    }
}
