//! Deltas of a reply that calls tools, as vLLM streams them: first id, type and name of a call, then its arguments in the
//! pieces that the tokens make.

use super::reply::{CLOSE, OPEN, PlacedCall, ToolReply};
use serde::Serialize;
use std::sync::Arc;

/// Takes the generated text piece by piece.
#[derive(Clone, Debug)]
pub struct ToolCallStream {
    reply: Arc<ToolReply>,
    /// Bytes of the reply's text that were generated.
    n_generated: usize,
    /// Bytes of the text before the calls that were told.
    n_content_told: usize,
    /// Per call in order, begun ones only: the bytes of its arguments that were told.
    n_arguments_told: Vec<usize>,
}

/// `delta` of one chunk. Serializes to the fields that are set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCallDelta>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ToolCallDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    pub index: usize,
    pub function: FunctionDelta,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
}

// === impl ToolCallStream ===

impl ToolCallStream {
    pub fn new(reply: Arc<ToolReply>) -> Self {
        Self { reply, n_generated: 0, n_content_told: 0, n_arguments_told: Vec::new() }
    }

    /// The delta that the next piece of the text completes; `None` when there is nothing new to tell, as within a tag.
    pub fn push(&mut self, piece: &str) -> Option<Delta> {
        let reply = self.reply.clone();
        self.n_generated = (self.n_generated + piece.len()).min(reply.text().len());
        while !reply.text().is_char_boundary(self.n_generated) {
            self.n_generated -= 1;
        }
        let mut delta = Delta { content: self.new_content(), tool_calls: Vec::new() };
        for (index, call) in reply.placed_calls().iter().enumerate() {
            if call.name_end > self.n_generated || call.begin > self.n_generated || piece.is_empty() {
                break;
            }
            self.tell_call(&mut delta, index, call);
        }
        (delta != Delta::default()).then_some(delta)
    }

    /// Whether a call was told by now.
    pub fn has_calls(&self) -> bool {
        !self.n_arguments_told.is_empty()
    }

    fn tell_call(&mut self, delta: &mut Delta, index: usize, call: &PlacedCall) {
        let PlacedCall { id, name, begin: _, name_end: _, arguments, end: _ } = call;
        if self.n_arguments_told.len() == index {
            self.n_arguments_told.push(0);
            delta.tool_calls.push(ToolCallDelta {
                id: Some(id.clone()),
                kind: Some("function"),
                index,
                function: FunctionDelta { name: Some(name.clone()), arguments: None },
            });
        }
        let text =
            &self.reply.text()[arguments.start..self.n_generated.clamp(arguments.start, arguments.end)];
        let tellable = if self.n_generated >= arguments.end { text } else { self.settled(text) };
        let n_told = self.n_arguments_told[index];
        if tellable.len() > n_told {
            self.n_arguments_told[index] = tellable.len();
            let arguments = Some(tellable[n_told..].to_owned());
            let function = FunctionDelta { name: None, arguments };
            delta.tool_calls.push(ToolCallDelta { id: None, kind: None, index, function });
        }
    }

    /// Arguments without what the parser holds back: trailing spaces, and what may become the closing tag.
    fn settled<'t>(&self, text: &'t str) -> &'t str {
        if self.reply.is_tagged() { without_partial(text, CLOSE).trim_end() } else { text }
    }

    fn new_content(&mut self) -> Option<String> {
        let n_content = self.reply.n_content_bytes();
        let text = &self.reply.text()[..self.n_generated.min(n_content)];
        let tellable = if self.n_generated >= n_content { text } else { without_partial(text, OPEN) };
        let new_text = tellable.get(self.n_content_told..).filter(|text| !text.is_empty())?.to_owned();
        self.n_content_told = tellable.len();
        Some(new_text)
    }
}

/// `text` without an end that begins `tag`.
fn without_partial<'t>(text: &'t str, tag: &str) -> &'t str {
    let overlaps = (1..tag.len()).rev().filter_map(|n_bytes| text.strip_suffix(&tag[..n_bytes]));
    overlaps.into_iter().next().unwrap_or(text)
}
