//! Converts chats to prompts: renders a model's Jinja template like vLLM and transformers do, and converts the text to
//! token ids.

mod template;
mod continuation;
mod conversation;
mod jinja;

use super::Tokenizer;
use super::chat::{Chat, ContentPart};
use super::memo::{self, PromptEncoder};
use super::special_token;
use serde_json::{Map, Value};
use std::time::Duration;
use template::Template;

/// Configuration from the flags of `serve` about chats.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChatTemplateConfig {
    /// Jinja text that replaces the model's own.
    pub template: Option<String>,
    /// Format of contents; `None` to find it out from the template.
    pub content_format: Option<ContentFormat>,
    /// `--default-chat-template-kwargs`
    pub default_variables: Map<String, Value>,
    /// `--trust-request-chat-template`
    pub trusts_requests: bool,
}

/// Form in which a template takes the content of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentFormat {
    String,
    /// List of `{"type": "text", "text": ..}`.
    OpenAi,
}

/// Reason why a chat has no prompt; the client is at fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    #[error(
        "Chat template is passed with request, but --trust-request-chat-template is not set. Refused request with untrusted \
         chat template."
    )]
    UntrustedTemplate,
    #[error(
        "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if the \
         tokenizer does not define one."
    )]
    NoTemplate,
    #[error("the model is not a multimodal model")]
    Media,
    /// Error that the template raised itself, or that its rendering met.
    #[error("{0}")]
    Rejected(String),
}

/// Error of a template that does not compile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TemplateSyntaxError(String);

#[derive(Debug)]
pub struct ChatTemplate {
    encoder: PromptEncoder,
    /// Templates for chats without tools and with tools, which are equal for most models. `None` if the model has none.
    templates: Option<[Template; 2]>,
    config: ChatTemplateConfig,
    /// Variables of every template: `bos_token`, `eos_token`, ...
    special_tokens: Map<String, Value>,
    now: fn() -> Duration,
}

/// Tokens that tokenizer_config.json may define and templates may read.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

// === impl ChatTemplate ===

impl ChatTemplate {
    /// Compiles the templates. `now` returns the time since 1970, which templates may print.
    ///
    /// # Errors
    /// Fails if the template of `config`, or else the tokenizer's, is not valid Jinja.
    pub fn try_new(
        tokenizer: Tokenizer,
        config: ChatTemplateConfig,
        now: fn() -> Duration,
    ) -> Result<Self, TemplateSyntaxError> {
        let source = |with_tools| config.template.as_deref().or_else(|| tokenizer.chat_template(with_tools));
        let compile = |source: &str| Template::try_new(source, config.content_format, now);
        let templates = match (source(false), source(true)) {
            (Some(plain), Some(with_tools)) => Some([compile(plain)?, compile(with_tools)?]),
            (_, _) => None,
        };
        let tokens = tokenizer.config();
        let defined = |name: &&str| Some(((*name).to_owned(), Value::from(special_token(&tokens, name)?)));
        let special_tokens = SPECIAL_TOKENS.iter().filter_map(defined).collect();
        drop(tokens);
        let encoder = PromptEncoder::new(tokenizer, memo::DEFAULT_LIMIT);
        Ok(Self { encoder, templates, config, special_tokens, now })
    }

    /// Returns the text that the model would see.
    ///
    /// # Errors
    /// Fails if the template raises or fails on the chat, or if a message to continue is not in its text.
    pub fn render(&self, chat: &Chat) -> Result<String, ChatError> {
        let mut parts = chat.messages.iter().flat_map(|message| &message.content);
        if parts.any(|part| *part == ContentPart::Media) {
            return Err(ChatError::Media);
        }
        let own;
        let template = match (&chat.template, &self.templates) {
            (Some(_), _) if !self.config.trusts_requests => return Err(ChatError::UntrustedTemplate),
            (Some(source), _) => {
                own = Template::try_new(source, self.config.content_format, self.now)
                    .map_err(|TemplateSyntaxError(reason)| ChatError::Rejected(reason))?;
                &own
            }
            (None, Some([plain, _])) if chat.tools.is_none() => plain,
            (None, Some([_, with_tools])) => with_tools,
            (None, None) => return Err(ChatError::NoTemplate),
        };
        template.render(chat, self.variables(chat)).map_err(ChatError::Rejected)
    }

    /// Returns the ids of [`Self::render`]'s text.
    ///
    /// # Errors
    /// Fails like [`Self::render`].
    pub fn encode(&self, chat: &Chat) -> Result<Vec<u32>, ChatError> {
        let text = self.render(chat)?;
        Ok(if chat.add_special_tokens {
            self.encoder.encode_with_special_tokens(&text)
        } else {
            self.encoder.encode(&text)
        })
    }

    /// Returns the encoder, which converts texts to ids and remembers them.
    pub fn encoder(&self) -> &PromptEncoder {
        &self.encoder
    }

    /// Returns the value of `--chat-template`.
    pub fn configured(&self) -> Option<&str> {
        self.config.template.as_deref()
    }

    /// Merges variables like vLLM's `merge_kwargs`: those that the request sets have priority over the server's.
    fn variables(&self, chat: &Chat) -> Map<String, Value> {
        let mut variables = self.special_tokens.clone();
        let unset = [("documents", Value::Null), ("add_generation_prompt", Value::from(false))];
        variables.extend(unset.map(|(name, value)| (name.to_owned(), value)));
        variables.extend(self.config.default_variables.clone());
        let is_set = |value: &Value| !value.is_null() && value != "auto";
        variables.extend(chat.variables.clone().into_iter().filter(|(_, value)| is_set(value)));
        variables.insert("tools".to_owned(), Value::from(chat.tools.clone()));
        variables
    }
}
