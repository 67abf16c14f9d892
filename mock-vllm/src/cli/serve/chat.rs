//! Flags of `serve` about chats: the template and its variables.

use super::values::json_object;
use clap::{Args, ValueEnum};
use std::io::ErrorKind;
use vllm_text::tokens::chat_template::{ChatTemplateConfig, ContentFormat};

#[derive(Debug, Args)]
#[command(next_help_heading = "Chat (as vLLM)")]
pub(super) struct ChatArgs {
    /// Jinja template of chats, as a file or inline, instead of the model's own
    #[arg(long, value_name = "FILE|JINJA")]
    chat_template: Option<String>,
    /// Form in which the template takes a message's content; auto: found out from the template
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "auto")]
    chat_template_content_format: ContentFormatName,
    /// Variables of the template, like {"enable_thinking": false}; a request's chat_template_kwargs override them
    #[arg(long, value_name = "JSON", action = clap::ArgAction::Append)]
    default_chat_template_kwargs: Vec<String>,
    /// Render templates that requests bring along
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    trust_request_chat_template: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ContentFormatName {
    Auto,
    String,
    Openai,
}

// === impl ChatArgs ===

impl ChatArgs {
    /// Converts the flags into the template's configuration.
    ///
    /// # Errors
    /// Fails if the template's file cannot be read or the variables are not an object.
    pub(super) fn config(self) -> Result<ChatTemplateConfig, String> {
        let Self {
            chat_template,
            chat_template_content_format,
            default_chat_template_kwargs,
            trust_request_chat_template,
        } = self;
        let default_variables = json_object(&default_chat_template_kwargs)
            .map_err(|error| format!("--default-chat-template-kwargs: {error}"))?;
        Ok(ChatTemplateConfig {
            template: chat_template.map(|value| template_text(&value)).transpose()?,
            content_format: match chat_template_content_format {
                ContentFormatName::Auto => None,
                ContentFormatName::String => Some(ContentFormat::String),
                ContentFormatName::Openai => Some(ContentFormat::OpenAi),
            },
            default_variables,
            trusts_requests: trust_request_chat_template,
        })
    }
}

/// Works like vLLM's `load_chat_template`: a value that opens is a file, and one that looks like Jinja is Jinja.
fn template_text(value: &str) -> Result<String, String> {
    match std::fs::read_to_string(value) {
        Ok(text) => Ok(text),
        Err(_) if value.contains(['{', '}', '\n']) => Ok(value.to_owned()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(format!("--chat-template {value}: looks like a path, and there is no such file"))
        }
        Err(error) => Err(format!("--chat-template {value}: {error}")),
    }
}
