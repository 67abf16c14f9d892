//! One compiled template, and the form of chats that it takes.

use super::continuation::Continuation;
use super::conversation::conversation;
use super::{ContentFormat, TemplateSyntaxError, jinja};
use crate::tokens::chat::Chat;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind};
use serde_json::{Map, Value, json};
use std::time::Duration;

#[derive(Debug)]
pub(super) struct Template {
    /// Environment that holds the template under [`NAME`].
    environment: Environment<'static>,
    source: String,
    content_format: ContentFormat,
}

const NAME: &str = "chat";
/// Text that no template contains.
const PROBE: &str = "e4c1f7b0";

// === impl Template ===

impl Template {
    /// Compiles a template.
    ///
    /// # Errors
    /// Fails if `source` is not valid Jinja.
    pub(super) fn try_new(
        source: &str,
        content_format: Option<ContentFormat>,
        now: fn() -> Duration,
    ) -> Result<Self, TemplateSyntaxError> {
        let source = jinja::portable(source);
        let mut environment = jinja::environment(now);
        environment
            .add_template_owned(NAME, source.clone())
            .map_err(|error| TemplateSyntaxError(jinja::reason(&error)))?;
        let mut template = Self { environment, source, content_format: ContentFormat::String };
        template.content_format = content_format.unwrap_or_else(|| template.detect_content_format());
        Ok(template)
    }

    /// Renders a chat.
    ///
    /// # Errors
    /// Returns the message that vLLM sends to the client.
    pub(super) fn render(&self, chat: &Chat, mut variables: Map<String, Value>) -> Result<String, String> {
        let mut messages = conversation(chat, self.content_format, &self.source);
        let continuation = Continuation::begin(&variables, &mut messages, &self.source)?;
        let is_empty = messages.is_empty();
        variables.insert("messages".to_owned(), Value::Array(messages));
        let text = self.render_variables(variables).map_err(|error| match error.kind() {
            // Jinja's message for templates that look at the first message.
            ErrorKind::UndefinedError if is_empty => "list object has no element 0".to_owned(),
            _ => jinja::reason(&error),
        })?;
        match continuation {
            Some(continuation) => continuation.end(text),
            None => Ok(text),
        }
    }

    fn render_variables(&self, variables: Map<String, Value>) -> Result<String, minijinja::Error> {
        self.environment.get_template(NAME)?.render(Serde(variables))
    }

    /// Finds the format of contents. vLLM searches the syntax tree for a loop over the content of a message; here a
    /// test rendering shows whether the template has one.
    fn detect_content_format(&self) -> ContentFormat {
        let part = json!({"type": "text", "text": PROBE});
        let Value::Object(variables) =
            json!({"messages": [{"role": "user", "content": [part.clone()]}], "tools": null})
        else {
            unreachable!("an object is written above")
        };
        let text = self.render_variables(variables).unwrap_or_default();
        // A template that expects a string prints the whole list.
        let is_whole =
            [r#"'text': '"#, r#""text": ""#].iter().any(|key| text.contains(&format!("{key}{PROBE}")));
        if text.contains(PROBE) && !is_whole { ContentFormat::OpenAi } else { ContentFormat::String }
    }
}
