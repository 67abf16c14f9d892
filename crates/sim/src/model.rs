//! A model as servers run it: turns a conversation into the token ids of its prompt, and makes the reply.

use std::time::Duration;

use serde_json::{Map, Value};
use vllm_text::reply::scripted::Script;
use vllm_text::reply::{Limits, Prompt, Replier};
use vllm_text::tokens::chat::{Chat, ChatMessage};
use vllm_text::tokens::chat_template::{ChatTemplate, ChatTemplateConfig};
use vllm_text::tokens::{SpecialTokens, Tokenizer};

/// A model with its tokenizer, its chat template and its replies.
#[derive(Debug)]
pub struct ChatModel {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    replier: Replier,
}

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub role: &'static str,
    pub content: String,
}

/// Reply of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedReply {
    /// Token ids, with the EOS if the reply ends with it.
    pub tokens: Vec<u32>,
    pub text: String,
}

#[derive(Debug, thiserror::Error)]
#[error("the model's chat template: {0}")]
pub struct TemplateError(String);

impl ChatModel {
    /// Makes Qwen2.5 as a mock server without further flags serves it.
    ///
    /// # Errors
    /// When its template cannot be compiled.
    pub fn qwen25() -> Result<Self, TemplateError> {
        let tokenizer = Tokenizer::qwen25();
        let replier = Replier::new(Script::built_in(&tokenizer), &tokenizer, 0);
        // Qwen's template does not print the date.
        let template =
            ChatTemplate::try_new(tokenizer.clone(), ChatTemplateConfig::default(), || Duration::ZERO);
        let template = template.map_err(|error| TemplateError(error.to_string()))?;
        Ok(Self { tokenizer, template, replier })
    }

    /// Returns the token ids of the prompt for the next answer.
    ///
    /// # Errors
    /// When the template refuses the conversation.
    pub fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>, TemplateError> {
        let messages = messages.iter().map(|message| ChatMessage::new(message.role, &message.content));
        let variables = Map::from_iter([("add_generation_prompt".to_owned(), Value::Bool(true))]);
        let chat = Chat { messages: messages.collect(), variables, ..Chat::default() };
        self.template.encode(&chat).map_err(|error| TemplateError(error.to_string()))
    }

    /// Returns the reply to a prompt whose last user message is `last_user_text`.
    #[must_use]
    pub fn reply(&self, ids: &[u32], last_user_text: &str, max_tokens: u32) -> DecodedReply {
        let limits = Limits { max_tokens, ..Limits::default() };
        let prompt =
            Prompt { ids, last_user_text: Some(last_user_text), limits: &limits, sample_idx: 0, text: None };
        let tokens = self.replier.reply(&prompt).tokens.to_vec();
        let text = self.tokenizer.decode(&tokens, SpecialTokens::Skip);
        DecodedReply { tokens, text }
    }
}
