//! Tool calls in the form that the model writes and in the form of the API.

use super::ToolChoice;
use crate::structured::json_text;
use rand::{Rng, RngExt};
use serde::Serialize;
use serde_json::Value;
use std::ops::Range;

pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";

/// Form in which the model writes its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Syntax {
    /// `<tool_call>\n{"name": .., "arguments": ..}\n</tool_call>`, which Qwen's template asks for and vLLM's parser
    /// `hermes` reads.
    Hermes,
    /// Guided decoding of vLLM 0.8 to 0.11: like Hermes with `auto`. With a named tool the text is its arguments; with
    /// `required` it is a list of `{"name", "parameters"}`.
    GuidedChoice,
}

/// One call, before it becomes text.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedCall {
    pub id: String,
    pub name: String,
    pub arguments: Value,
}

/// A reply with tool calls: the text that the model generates, and the places of the calls in it.
#[derive(Clone, Debug)]
pub struct ToolReply {
    text: String,
    /// Length of the text before the first call, in bytes.
    n_content_bytes: usize,
    calls: Vec<PlacedCall>,
    choice: ToolChoice,
    syntax: Syntax,
}

#[derive(Clone, Debug)]
pub(super) struct PlacedCall {
    pub(super) id: String,
    pub(super) name: String,
    /// Place after the opening tag.
    pub(super) begin: usize,
    /// Place after the closing quote of its name, from which on the call can be announced.
    pub(super) name_end: usize,
    pub(super) arguments: Range<usize>,
    /// Place after the last byte of its JSON.
    pub(super) end: usize,
}

/// A call in the form of `message.tool_calls`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ToolCall {
    pub id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    pub function: FunctionCall,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FunctionCall {
    pub name: String,
    /// Arguments: JSON as text.
    pub arguments: String,
}

/// Message of a reply that does not stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolMessage {
    pub content: Option<String>,
    /// Calls; empty if the generation was cut off within the first call.
    pub tool_calls: Vec<ToolCall>,
}

// === impl ToolReply ===

impl ToolReply {
    pub(super) fn new(calls: Vec<PlannedCall>, choice: ToolChoice, syntax: Syntax) -> Self {
        let mut reply = Self { text: String::new(), n_content_bytes: 0, calls: Vec::new(), choice, syntax };
        let form = reply.form();
        if form == Form::List {
            reply.text.push('[');
        }
        for (call_idx, call) in calls.into_iter().enumerate() {
            reply.push(call, form, call_idx == 0);
        }
        if form == Form::List {
            reply.text.push(']');
        }
        reply
    }

    /// Reads a text that has Hermes calls, with or without words before them; `None` for other texts.
    pub fn parse(text: &str, rng: &mut dyn Rng) -> Option<Self> {
        let first = text.find(OPEN)?;
        let (content, mut rest) = text.split_at(first);
        let mut calls = Vec::new();
        while let Some((_, after)) = rest.split_once(OPEN) {
            let (json, tail) = after.split_once(CLOSE)?;
            let mut call: Value = serde_json::from_str(json.trim()).ok()?;
            let name = call.get("name")?.as_str()?.to_owned();
            calls.push(PlannedCall { id: new_id(rng), name, arguments: call.get_mut("arguments")?.take() });
            rest = tail;
        }
        let mut reply = Self {
            text: content.to_owned(),
            n_content_bytes: content.len(),
            calls: Vec::new(),
            choice: ToolChoice::Auto,
            syntax: Syntax::Hermes,
        };
        for (call_idx, call) in calls.into_iter().enumerate() {
            reply.push(call, Form::Tagged, call_idx == 0);
        }
        Some(reply)
    }

    /// Returns the text that the model generates. Completion tokens are counted on it, plus the end of the turn.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the calls as if the generation were not cut off.
    pub fn tool_calls(&self) -> Vec<ToolCall> {
        self.calls.iter().map(|call| self.tool_call(call, call.arguments.end)).collect()
    }

    /// Returns the message for a client that does not stream. `generated` is the generated text: all of [`Self::text`],
    /// or its beginning if the generation was cut off.
    pub fn message(&self, generated: &str) -> ToolMessage {
        let n_generated = generated.len();
        let begun: Vec<_> = self.calls.iter().filter(|call| call.begin <= n_generated).collect();
        let are_whole = begun.iter().all(|call| call.end <= n_generated);
        let form = self.form();
        let (content, calls) = match form {
            Form::Tagged if begun.is_empty() || !are_whole => (Some(generated.to_owned()), Vec::new()),
            Form::Tagged => {
                let content = self.text[..self.n_content_bytes].to_owned();
                (Some(content).filter(|content| !content.is_empty()), begun)
            }
            Form::List if n_generated < self.text.len() => (Some(String::new()), Vec::new()),
            Form::List | Form::Bare => (Some(String::new()), begun),
        };
        let tool_calls: Vec<_> = calls.iter().map(|call| self.tool_call(call, n_generated)).collect();
        ToolMessage { content, tool_calls }
    }

    pub fn choice(&self) -> ToolChoice {
        self.choice
    }

    pub(super) fn placed_calls(&self) -> &[PlacedCall] {
        &self.calls
    }

    pub(super) fn n_content_bytes(&self) -> usize {
        self.n_content_bytes
    }

    pub(super) fn is_tagged(&self) -> bool {
        self.form() == Form::Tagged
    }

    fn tool_call(&self, call: &PlacedCall, n_generated: usize) -> ToolCall {
        let PlacedCall { id, name, arguments, .. } = call;
        let mut end = arguments.end.min(n_generated).max(arguments.start);
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        let arguments = self.text[arguments.start..end].to_owned();
        let function = FunctionCall { name: name.clone(), arguments };
        ToolCall { id: id.clone(), kind: "function", function }
    }

    fn form(&self) -> Form {
        match (self.syntax, self.choice) {
            (Syntax::Hermes, _) | (Syntax::GuidedChoice, ToolChoice::Auto) => Form::Tagged,
            (Syntax::GuidedChoice, ToolChoice::Required) => Form::List,
            (Syntax::GuidedChoice, ToolChoice::Named { .. }) => Form::Bare,
        }
    }

    fn push(&mut self, call: PlannedCall, form: Form, is_first: bool) {
        let PlannedCall { id, name, arguments } = call;
        let json_name = Value::from(name.as_str()).to_string();
        let (before_name, after_name, after) = match form {
            Form::Tagged => ("\n{\"name\": ", ", \"arguments\": ", "}"),
            Form::List => ("{\"name\": ", ", \"parameters\": ", "}"),
            Form::Bare => ("", "", ""),
        };
        match (form, is_first) {
            (Form::Tagged, true) => self.text.push_str(OPEN),
            (Form::Tagged, false) => self.text.extend(["\n", OPEN]),
            (Form::List, false) => self.text.push_str(", "),
            (Form::List | Form::Bare, _) => {}
        }
        let begin = self.text.len();
        self.text.push_str(before_name);
        if form != Form::Bare {
            self.text.push_str(&json_name);
        }
        let name_end = self.text.len();
        self.text.push_str(after_name);
        let start = self.text.len();
        self.text.push_str(&json_text::to_text(&arguments));
        let arguments = start..self.text.len();
        self.text.push_str(after);
        let end = self.text.len();
        if form == Form::Tagged {
            self.text.extend(["\n", CLOSE]);
        }
        self.calls.push(PlacedCall { id, name, begin, name_end, arguments, end });
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Tagged,
    List,
    Bare,
}

/// Makes an id like vLLM's `make_tool_call_id`: the prefix and 128 random bits.
pub(super) fn new_id(rng: &mut dyn Rng) -> String {
    let bits: u128 = rng.random();
    format!("chatcmpl-tool-{bits:032x}")
}
