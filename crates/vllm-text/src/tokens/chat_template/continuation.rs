//! `continue_final_message`: the prompt ends within the last message. Like transformers, this puts a mark there and
//! cuts the text at it.

use serde_json::{Map, Value};

/// Mark after the text to continue, until the template is rendered.
const MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";
/// Names of the fields that hold the reasoning: templates read one of these copies.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

#[derive(Debug)]
pub(super) struct Continuation {
    final_text: String,
}

// === impl Continuation ===

impl Continuation {
    /// Marks the last message if `variables` ask to continue it: their `continue_final_message` is true, or names the
    /// field.
    ///
    /// # Errors
    /// Fails if there is nothing to continue, or if the prompt should begin a new answer too.
    pub(super) fn begin(
        variables: &Map<String, Value>,
        messages: &mut [Value],
        source: &str,
    ) -> Result<Option<Self>, String> {
        let field = match variables.get("continue_final_message") {
            Some(Value::Bool(true)) => "content",
            Some(Value::String(field)) if !field.is_empty() => field,
            Some(_) | None => return Ok(None),
        };
        if variables.get("add_generation_prompt").is_some_and(|adds| adds == true) {
            return Err("continue_final_message and add_generation_prompt are not compatible. Use continue_final_message when you \
                        want the model to continue the final message, and add_generation_prompt when you want to add a header \
                        that will prompt it to start a new assistant message instead."
                .to_owned());
        }
        let last =
            messages.last_mut().ok_or("continue_final_message is set but the conversation is empty!")?;
        let Some(final_value) = last.get(field).filter(|value| !value.is_null()).cloned() else {
            return Err(format!(
                "continue_final_message is set but the final message has no \"{field}\" to continue!"
            ));
        };
        let mut fields = vec![field];
        if REASONING.contains(&field) {
            fields = REASONING.into_iter().filter(|name| last.get(name) == Some(&final_value)).collect();
        }
        if !fields.iter().any(|name| source.contains(name)) {
            return Err(format!(
                "continue_final_message is set to \"{field}\" but this is not an accepted field in the chat_template"
            ));
        }
        let mut final_text = None;
        for name in fields {
            final_text = last.get_mut(name).and_then(mark);
        }
        let final_text = final_text.ok_or(
            "continue_final_message is set but we could not find any text to continue in the final message!",
        )?;
        Ok(Some(Self { final_text }))
    }

    /// Returns `text` up to the mark.
    ///
    /// # Errors
    /// Fails if the template has dropped the message.
    pub(super) fn end(self, mut text: String) -> Result<String, String> {
        let final_text = self.final_text.trim();
        let mark_start = text.rfind(MARK.trim_end()).filter(|_| text.contains(final_text));
        let Some(mark_start) = mark_start else {
            return Err(format!(
                "continue_final_message is set but the final message does not appear in the chat after applying the chat \
                 template! This can happen if the chat template deletes portions of the final message. Please verify the chat \
                 template and final message in your chat to ensure they are compatible.Final message to continue: \
                 {final_text}\nRendered chat:\n{text}"
            ));
        };
        let keeps_spaces = text[mark_start..].starts_with(MARK);
        text.truncate(mark_start);
        if !keeps_spaces {
            // The template trims the message, so it would have trimmed the text before the mark too.
            text.truncate(text.trim_end().len());
        }
        Ok(text)
    }
}

/// Appends the mark to a text, or to the last text of a list of parts. Returns the text before it.
fn mark(content: &mut Value) -> Option<String> {
    let text = match content {
        Value::Array(parts) => parts.iter_mut().rev().find_map(|part| part.get_mut("text"))?,
        text => text,
    };
    let unmarked = text.as_str()?.to_owned();
    *text = Value::from(format!("{unmarked}{MARK}"));
    Some(unmarked)
}
