//! Reads `tools`, `tool_choice` and `parallel_tool_calls`, checks them with vLLM's error texts, and decides which tools
//! are called.
//!
//! `tool_choice: auto` calls a tool if the conversation's last message is the user's and names the tool: its
//! name as a whole word, in any case. All named tools are called in the order of their mention, but only one without
//! `parallel_tool_calls`. Nothing else makes a call, except a scripted reply that is written as calls
//! ([`reply::ToolReply::parse`]). `required` calls the named tools too, or else one drawn at random.

pub mod stream;
pub mod reply;

use super::schema::{Schema, SchemaError};
use rand::{Rng, RngExt};
use reply::{PlannedCall, Syntax, ToolReply};
use serde_json::{Map, Value, json};

/// Tools that may be called.
#[derive(Clone, Debug)]
pub struct ToolRequest {
    /// Tools, at least one.
    tools: Vec<Tool>,
    choice: ToolChoice,
    multiplicity: Multiplicity,
}

#[derive(Clone, Debug)]
pub struct Tool {
    pub name: String,
    parameters: Schema,
}

/// `tool_choice`; `none` makes no [`ToolRequest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    Auto,
    Required,
    Named { tool_idx: usize },
}

/// `parallel_tool_calls`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Multiplicity {
    One,
    Many,
}

/// Last message of the conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LastMessage<'a> {
    /// Message of the user, with its text.
    User(&'a str),
    /// Message of a tool, the assistant or the system.
    Other,
}

/// Errors, each of which is a 400 of type `BadRequestError` with the `Display` text as message.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error(
        "`tools` must not be an empty array. Either provide at least one tool or omit the field entirely."
    )]
    EmptyTools,
    #[error("When using `tool_choice`, `tools` must be set.")]
    ChoiceWithoutTools,
    #[error(
        "Invalid value for `tool_choice`: {0}! Only named tools, \"none\", \"auto\" or \"required\" are supported."
    )]
    InvalidChoice(String),
    #[error("Invalid value for `function`: `{0}` in `tool_choice`! {CORRECT_USAGE}")]
    InvalidFunction(String),
    #[error("Expected field `name` in `function` in `tool_choice`! {CORRECT_USAGE}")]
    MissingName,
    #[error("Invalid `name` in `function`: `{0}` in `tool_choice`! {CORRECT_USAGE}")]
    InvalidName(String),
    #[error("The tool specified in `tool_choice` does not match any of the specified `tools`")]
    UnknownTool,
    #[error("tools.{tool_idx}: {reason}")]
    InvalidTool { tool_idx: usize, reason: &'static str },
    #[error("Failed to transform json schema into a grammar: {source} (tool {name})")]
    Schema { name: String, source: SchemaError },
}

const CORRECT_USAGE: &str =
    "Correct usage: `{\"type\": \"function\", \"function\": {\"name\": \"my_function\"}}`";

// === impl ToolRequest ===

impl ToolRequest {
    /// Reads the fields; `None` if no tool may be called: there are none, or `tool_choice` is `none`. (The prompt may
    /// still show them.)
    ///
    /// # Errors
    /// Fails for what vLLM rejects, for malformed tools, and for parameters whose schema is not supported.
    pub fn parse(body: &Map<String, Value>) -> Result<Option<Self>, ToolError> {
        let tools = body.get("tools").filter(|tools| !tools.is_null());
        if tools.and_then(Value::as_array).is_some_and(Vec::is_empty) {
            return Err(ToolError::EmptyTools);
        }
        let choice = body.get("tool_choice").filter(|choice| !choice.is_null());
        if choice.and_then(Value::as_str) == Some("none") {
            return Ok(None);
        }
        let Some(tools) = tools else {
            return if choice.is_some() { Err(ToolError::ChoiceWithoutTools) } else { Ok(None) };
        };
        let not_a_list = ToolError::InvalidTool { tool_idx: 0, reason: "`tools` must be a list" };
        let raw_tools = tools.as_array().ok_or(not_a_list)?;
        let choice = parse_choice(choice, raw_tools)?;
        let tools = raw_tools.iter().enumerate().map(|(tool_idx, tool)| Tool::parse(tool_idx, tool));
        let is_single = body.get("parallel_tool_calls") == Some(&Value::Bool(false));
        Ok(Some(Self {
            tools: tools.collect::<Result<_, _>>()?,
            choice,
            multiplicity: if is_single { Multiplicity::One } else { Multiplicity::Many },
        }))
    }

    pub fn choice(&self) -> ToolChoice {
        self.choice
    }

    /// Returns the tools, at least one.
    pub fn tools(&self) -> &[Tool] {
        &self.tools
    }

    /// Decides the calls of the reply, with arguments drawn from the parameters' schemas; `None` for a reply in words.
    ///
    /// # Errors
    /// Fails if no arguments satisfy a tool's schema.
    pub fn decide(
        &self,
        last_message: LastMessage<'_>,
        syntax: Syntax,
        rng: &mut dyn Rng,
    ) -> Result<Option<ToolReply>, ToolError> {
        let mut called = match self.choice {
            ToolChoice::Named { tool_idx } => vec![tool_idx],
            ToolChoice::Auto | ToolChoice::Required => self.named_in(last_message),
        };
        if called.is_empty() && self.choice == ToolChoice::Required {
            called.push(rng.random_range(0..self.tools.len()));
        }
        if self.multiplicity == Multiplicity::One {
            called.truncate(1);
        }
        let mut calls = Vec::new();
        for tool_idx in called {
            let Tool { name, parameters } = &self.tools[tool_idx];
            let arguments = parameters
                .generate(rng)
                .map_err(|source| ToolError::Schema { name: name.clone(), source })?;
            calls.push(PlannedCall { id: reply::new_id(rng), name: name.clone(), arguments });
        }
        Ok((!calls.is_empty()).then(|| ToolReply::new(calls, self.choice, syntax)))
    }

    /// Returns the indices of tools in the order of their first mention.
    fn named_in(&self, last_message: LastMessage<'_>) -> Vec<usize> {
        let LastMessage::User(text) = last_message else { return Vec::new() };
        let text = text.to_lowercase();
        let mentions = self.tools.iter().enumerate().filter_map(|(tool_idx, tool)| {
            find_word(&text, &tool.name.to_lowercase()).map(|offset| (offset, tool_idx))
        });
        let mut mentions: Vec<_> = mentions.collect();
        mentions.sort_unstable();
        mentions.into_iter().map(|(_offset, tool_idx)| tool_idx).collect()
    }
}

// === impl Tool ===

impl Tool {
    fn parse(tool_idx: usize, tool: &Value) -> Result<Self, ToolError> {
        let invalid = |reason| ToolError::InvalidTool { tool_idx, reason };
        if tool.get("type").is_some_and(|kind| kind != "function") {
            return Err(invalid("only tools of type `function` are supported"));
        }
        let function = tool.get("function").and_then(Value::as_object);
        let function = function.ok_or_else(|| invalid("`function` must be an object"))?;
        let name = function.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| invalid("`function.name` must be a non-empty string"))?.to_owned();
        let parameters = match function.get("parameters").filter(|parameters| !parameters.is_null()) {
            // Arguments are an object, even if their schema does not say so.
            Some(Value::Object(keywords)) if !keywords.contains_key("type") => {
                let mut keywords = keywords.clone();
                keywords.insert("type".to_owned(), "object".into());
                Schema::parse(&Value::Object(keywords))
            }
            Some(parameters) => Schema::parse(parameters),
            None => Schema::parse(&json!({"type": "object", "additionalProperties": false})),
        };
        let parameters = parameters.map_err(|source| ToolError::Schema { name: name.clone(), source })?;
        Ok(Self { name, parameters })
    }
}

// === impl ToolError ===

impl ToolError {
    /// Returns the `param` of the error on the wire.
    pub fn param(&self) -> Option<&'static str> {
        match self {
            Self::EmptyTools | Self::InvalidTool { .. } => Some("tools"),
            Self::ChoiceWithoutTools | Self::InvalidChoice(_) | Self::UnknownTool => Some("tool_choice"),
            Self::InvalidFunction(_) => Some("tool_choice.function"),
            Self::MissingName | Self::InvalidName(_) => Some("tool_choice.function.name"),
            Self::Schema { .. } => None,
        }
    }
}

fn parse_choice(choice: Option<&Value>, tools: &[Value]) -> Result<ToolChoice, ToolError> {
    let named = match choice {
        None => return Ok(ToolChoice::Auto),
        Some(Value::String(choice)) if choice == "auto" => return Ok(ToolChoice::Auto),
        Some(Value::String(choice)) if choice == "required" => return Ok(ToolChoice::Required),
        Some(Value::String(other)) => return Err(ToolError::InvalidChoice(other.clone())),
        Some(Value::Object(named)) => named,
        Some(other) => return Err(ToolError::InvalidChoice(other.to_string())),
    };
    let none = Value::from("None");
    let function = named.get("function").unwrap_or(&none);
    let Value::Object(fields) = function else {
        return Err(ToolError::InvalidFunction(
            function.as_str().map_or(function.to_string(), str::to_owned),
        ));
    };
    let name = fields.get("name").ok_or(ToolError::MissingName)?;
    let name = match name {
        Value::String(text) if !text.is_empty() => text,
        Value::String(empty) => return Err(ToolError::InvalidName(empty.clone())),
        other => return Err(ToolError::InvalidName(other.to_string())),
    };
    let is_it = |tool: &Value| tool.pointer("/function/name").and_then(Value::as_str) == Some(name);
    let tool_idx = tools.iter().position(is_it).ok_or(ToolError::UnknownTool)?;
    Ok(ToolChoice::Named { tool_idx })
}

/// Returns the place of `word` in `text`, in bytes, without characters of a name around it.
fn find_word(text: &str, word: &str) -> Option<usize> {
    let is_of_name = |character: char| character.is_alphanumeric() || "_-".contains(character);
    text.match_indices(word).map(|(offset, _)| offset).find(|offset| {
        let (before, rest) = text.split_at(*offset);
        !before.ends_with(is_of_name) && !rest[word.len()..].starts_with(is_of_name)
    })
}
