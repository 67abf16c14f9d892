//! Shape that a request's replies must have: tool calls, JSON, a choice, or words. It is decided for each sample.

use super::body::Fields;
use super::error::ApiError;
use super::prompt::PromptInput;
use super::wire::Api;
use crate::structured::constraint::{Constraint, ConstraintError};
use crate::structured::tools::reply::{Syntax, ToolReply};
use crate::structured::tools::{LastMessage, ToolChoice, ToolError, ToolRequest};
use rand::Rng;
use serde_json::{Map, Value};
use std::sync::Arc;
use vllm_engine::vllm_version::VllmVersion;

/// `--enable-auto-tool-choice` with its parser.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ToolCalling {
    #[default]
    Off,
    On,
}

#[derive(Debug)]
pub(crate) struct ReplyShape {
    version: VllmVersion,
    tools: Option<ToolRequest>,
    constraint: Option<Constraint>,
}

/// Decided shape of one sample.
#[derive(Clone, Debug)]
pub(crate) enum Outline {
    /// Words, scripted or made up.
    Words,
    Text(String),
    Calls(Arc<ToolReply>),
}

/// Parts of a prompt that decide its replies' shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Occasion<'a> {
    pub(crate) last_message: LastMessage<'a>,
    /// Scripted reply for the prompt.
    pub(crate) scripted: Option<&'a str>,
}

// === impl ReplyShape ===

impl ReplyShape {
    /// Reads the fields.
    ///
    /// # Errors
    /// Fails for contradictions, and for schemas, tools and expressions that are invalid or not supported.
    pub(crate) fn parse(fields: &Fields, api: Api, version: VllmVersion) -> Result<Self, ApiError> {
        let body = fields.as_map();
        let tools = match api {
            Api::Chat => ToolRequest::parse(body).map_err(|error| refused_tools(fields, &error))?,
            Api::Completion => None,
        };
        let constraint = Constraint::parse(&known_fields(body, version));
        let constraint = constraint.map_err(|error| match error.param() {
            Some(parameter) => fields.refused(&error.to_string(), Some(parameter)),
            None => refused(&error),
        })?;
        Ok(Self { version, tools, constraint })
    }

    /// Checks that the server may call tools.
    ///
    /// # Errors
    /// Fails if the server was not started to call tools.
    pub(crate) fn check_tool_calling(&self, tool_calling: ToolCalling) -> Result<(), ApiError> {
        let Some(tools) = &self.tools else { return Ok(()) };
        let message = match (tool_calling, tools.choice(), self.version) {
            (ToolCalling::On, _, _) => return Ok(()),
            (ToolCalling::Off, ToolChoice::Auto, _) => {
                "\"auto\" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set"
                    .to_owned()
            }
            // Guided decoding needed no parser.
            (ToolCalling::Off, _, VllmVersion::V0_8 | VllmVersion::V0_11) => return Ok(()),
            (ToolCalling::Off, ToolChoice::Required, VllmVersion::V0_33) => {
                "tool_choice=\"required\" requires --tool-call-parser to be set".to_owned()
            }
            (ToolCalling::Off, ToolChoice::Named { tool_idx }, VllmVersion::V0_33) => {
                let name = tools.tools().get(tool_idx).map_or("", |tool| tool.name.as_str());
                format!("tool_choice=function \"{name}\" requires --tool-call-parser to be set")
            }
        };
        Err(ApiError::bad_request(message, None))
    }

    /// Decides the reply: tool calls come first, then the script if it fits, then what the constraint asks for.
    ///
    /// # Errors
    /// Fails if nothing fits a schema.
    pub(crate) fn outline<R: Rng>(
        &self,
        occasion: Occasion<'_>,
        rng: impl FnOnce() -> R,
    ) -> Result<Outline, ApiError> {
        if self.tools.is_none() && self.constraint.is_none() {
            return Ok(Outline::Words);
        }
        let Occasion { last_message, scripted } = occasion;
        let rng = &mut rng();
        if let Some(tools) = &self.tools {
            let is_auto = tools.choice() == ToolChoice::Auto;
            let calls = scripted.filter(|_| is_auto).and_then(|text| ToolReply::parse(text, rng));
            let calls = match calls {
                Some(calls) => Some(calls),
                None if is_auto && scripted.is_some() => None,
                None => tools
                    .decide(last_message, self.syntax(), rng)
                    .map_err(|error| ApiError::bad_request(error.to_string(), None))?,
            };
            if let Some(calls) = calls {
                return Ok(Outline::Calls(Arc::new(calls)));
            }
        }
        match &self.constraint {
            Some(constraint) if !scripted.is_some_and(|text| constraint.accepts(text)) => {
                constraint.generate(rng).map(Outline::Text).map_err(|error| refused(&error))
            }
            Some(_) | None => Ok(Outline::Words),
        }
    }

    /// Returns whether vLLM reads the replies with its parser of tool calls, which drops frames without text.
    pub(crate) fn is_parsed(&self, tool_calling: ToolCalling) -> bool {
        tool_calling == ToolCalling::On && self.version == VllmVersion::V0_33
    }

    fn syntax(&self) -> Syntax {
        match self.version {
            VllmVersion::V0_8 | VllmVersion::V0_11 => Syntax::GuidedChoice,
            VllmVersion::V0_33 => Syntax::Hermes,
        }
    }
}

// === impl Occasion ===

impl<'a> Occasion<'a> {
    /// `last_user_text` is the last one of the prompt.
    pub(crate) fn new(
        prompt: &PromptInput,
        last_user_text: Option<&'a str>,
        scripted: Option<&'a str>,
    ) -> Self {
        let is_users = match prompt {
            PromptInput::Chat(chat) => chat.messages.last().is_some_and(|message| message.role == "user"),
            PromptInput::Text(_) | PromptInput::PlainText(_) | PromptInput::TokenIds(_) => false,
        };
        let last_message = match last_user_text {
            Some(text) if is_users => LastMessage::User(text),
            Some(_) | None => LastMessage::Other,
        };
        Self { last_message, scripted }
    }
}

/// Returns the `finish_reason` of a reply that may call tools; `engine` is the engine's own reason.
pub(crate) fn finish_reason(
    version: VllmVersion,
    delivery: Delivered,
    calls: Option<ToolChoice>,
    engine: &'static str,
) -> &'static str {
    let is_call = match (version, delivery, calls) {
        (_, _, None) => false,
        // A call that was cut off keeps the engine's reason, and so does a call of a tool that the client named.
        (VllmVersion::V0_33, _, Some(ToolChoice::Auto | ToolChoice::Required)) => engine == "stop",
        (VllmVersion::V0_33, _, Some(ToolChoice::Named { .. })) => false,
        (VllmVersion::V0_11, Delivered::InPieces, Some(_)) => true,
        (VllmVersion::V0_8 | VllmVersion::V0_11, _, Some(choice)) => choice == ToolChoice::Auto,
    };
    if is_call { "tool_calls" } else { engine }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivered {
    Whole,
    InPieces,
}

/// Keeps the fields that the version knows; it ignores the others.
fn known_fields(body: &Map<String, Value>, version: VllmVersion) -> Map<String, Value> {
    let is_known = |field: &str| match version {
        VllmVersion::V0_8 => field != "structured_outputs",
        VllmVersion::V0_11 => true,
        VllmVersion::V0_33 => !field.starts_with("guided_"),
    };
    [
        "response_format",
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "tool_choice",
    ]
    .into_iter()
    .filter(|field| is_known(field))
    .filter_map(|field| Some((field.to_owned(), body.get(field)?.clone())))
    .collect()
}

fn refused(error: &ConstraintError) -> ApiError {
    ApiError::bad_request(error.to_string(), error.param())
}

fn refused_tools(fields: &Fields, error: &ToolError) -> ApiError {
    match error.param() {
        Some(parameter) => fields.refused(&error.to_string(), Some(parameter)),
        None => ApiError::bad_request(error.to_string(), None),
    }
}
