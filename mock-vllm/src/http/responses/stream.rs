//! Events of a response that streams, in vLLM's order: an item is added, grows by deltas, and is done before the next
//! one.

use super::output::{ResponseHead, Status, call_item, custom_input, item_id, message_item, text_part};
use super::tools::Callee;
use crate::http::answer::AnswerPlan;
use crate::http::choices::{Choice, Piece};
use crate::http::error::ApiError;
use crate::http::events::{ReplyReader, push_event};
use crate::structured::tools::stream::{FunctionDelta, ToolCallDelta};
use serde_json::{Value, json};

#[derive(Debug)]
pub(super) struct Progress {
    pub(super) head: ResponseHead,
    reader: ReplyReader,
    open: Option<OpenItem>,
    /// Items that are done.
    output: Vec<Value>,
    finish: &'static str,
    /// Number of the next event.
    sequence_number: u64,
}

#[derive(Debug)]
enum OpenItem {
    Message { text: String },
    Call(OpenCall),
}

#[derive(Debug)]
struct OpenCall {
    /// Index among the reply's calls.
    index: usize,
    callee: Callee,
    /// Name that the model was shown.
    name: String,
    id: String,
    call_id: String,
    arguments: String,
    /// Bytes of a custom tool's input that were sent already.
    n_input_told: usize,
}

// === impl Progress ===

impl Progress {
    pub(super) fn new(head: ResponseHead, answer: &AnswerPlan) -> Self {
        let reader = ReplyReader::new(answer);
        Self { head, reader, open: None, output: Vec::new(), finish: "stop", sequence_number: 0 }
    }

    pub(super) fn begin(&mut self, out: &mut Vec<u8>) {
        let response = self.head.begun();
        self.event(out, "response.created", json!({"response": response}));
        self.event(out, "response.in_progress", json!({"response": response}));
    }

    pub(super) fn piece(&mut self, out: &mut Vec<u8>, piece: &Piece) {
        if let Some(finish) = &piece.finish {
            self.finish = finish.reason;
        }
        let delta = self.reader.push(&piece.text);
        if let Some(text) = delta.content.filter(|text| !text.is_empty()) {
            self.text(out, &text);
        }
        for call in delta.tool_calls {
            self.call(out, call);
        }
    }

    pub(super) fn end(&mut self, out: &mut Vec<u8>, choice: &Choice) {
        let status = Status::ended_by(self.finish);
        self.close(out, status);
        let output = std::mem::take(&mut self.output);
        let response = self.head.ended(status, output, choice);
        let kind = match status {
            Status::Incomplete => "response.incomplete",
            Status::InProgress | Status::Completed => "response.completed",
        };
        self.event(out, kind, json!({"response": response}));
    }

    pub(super) fn fail(&mut self, out: &mut Vec<u8>, error: &ApiError) {
        let ApiError { status, message, param, .. } = error;
        let body = json!({"code": status.as_u16().to_string(), "message": message, "param": param});
        self.event(out, "error", body);
    }

    fn text(&mut self, out: &mut Vec<u8>, delta: &str) {
        if !matches!(self.open, Some(OpenItem::Message { .. })) {
            self.close(out, Status::Completed);
            self.open = Some(OpenItem::Message { text: String::new() });
            let item = json!({
                "id": self.head.message_id(),
                "content": [],
                "role": "assistant",
                "status": "in_progress",
                "type": "message",
                "phase": null,
            });
            self.item_event(out, "response.output_item.added", json!({"item": item}));
            let part = json!({"annotations": [], "text": "", "type": "output_text", "logprobs": []});
            let added = json!({"content_index": 0, "item_id": self.head.message_id(), "part": part});
            self.item_event(out, "response.content_part.added", added);
        }
        if let Some(OpenItem::Message { text }) = &mut self.open {
            text.push_str(delta);
        }
        let id = self.head.message_id();
        let delta = json!({"content_index": 0, "delta": delta, "item_id": id, "logprobs": []});
        self.item_event(out, "response.output_text.delta", delta);
    }

    fn call(&mut self, out: &mut Vec<u8>, delta: ToolCallDelta) {
        let ToolCallDelta { id, index, function: FunctionDelta { name, arguments }, .. } = delta;
        let is_open = matches!(&self.open, Some(OpenItem::Call(call)) if call.index == index);
        if let (false, Some(call_id), Some(name)) = (is_open, id, name) {
            self.close(out, Status::Completed);
            let callee = self.head.callee(&name);
            let id = item_id(&callee, &call_id);
            let item = call_item(&callee, &name, (&id, &call_id), "", Status::InProgress);
            self.item_event(out, "response.output_item.added", json!({"item": item}));
            let (arguments, n_input_told) = (String::new(), 0);
            let call = OpenCall { index, callee, name, id, call_id, arguments, n_input_told };
            self.open = Some(OpenItem::Call(call));
        }
        let Some(OpenItem::Call(call)) = &mut self.open else { return };
        let Some(delta) = arguments.filter(|delta| !delta.is_empty()) else { return };
        call.arguments.push_str(&delta);
        let told = match call.callee {
            Callee::Function { .. } => Some(("response.function_call_arguments.delta", delta)),
            Callee::Custom => {
                let delta = call.new_input(&input_so_far(&call.arguments));
                delta.map(|delta| ("response.custom_tool_call_input.delta", delta))
            }
        };
        if let Some((kind, delta)) = told {
            let body = json!({"delta": delta, "item_id": call.id});
            self.item_event(out, kind, body);
        }
    }

    /// Ends the open item, if there is one.
    fn close(&mut self, out: &mut Vec<u8>, status: Status) {
        let item = match self.open.take() {
            None => return,
            Some(OpenItem::Message { text }) => {
                let id = self.head.message_id().to_owned();
                let done = json!({"content_index": 0, "item_id": id, "logprobs": [], "text": text});
                self.item_event(out, "response.output_text.done", done);
                let done = json!({"content_index": 0, "item_id": id, "part": text_part(&text)});
                self.item_event(out, "response.content_part.done", done);
                message_item(&id, &text, status)
            }
            Some(OpenItem::Call(call)) => self.close_call(out, call, status),
        };
        self.item_event(out, "response.output_item.done", json!({"item": item}));
        self.output.push(item);
    }

    /// Makes the item of a call that is done.
    fn close_call(&mut self, out: &mut Vec<u8>, mut call: OpenCall, status: Status) -> Value {
        match &call.callee {
            Callee::Function { name, .. } => {
                let done = json!({"arguments": call.arguments, "item_id": call.id, "name": name});
                self.item_event(out, "response.function_call_arguments.done", done);
            }
            Callee::Custom => {
                let input = custom_input(&call.arguments);
                if let Some(delta) = call.new_input(&input) {
                    let body = json!({"delta": delta, "item_id": call.id});
                    self.item_event(out, "response.custom_tool_call_input.delta", body);
                }
                let done = json!({"input": input, "item_id": call.id});
                self.item_event(out, "response.custom_tool_call_input.done", done);
            }
        }
        let OpenCall { callee, name, id, call_id, arguments, .. } = call;
        call_item(&callee, &name, (&id, &call_id), &arguments, status)
    }

    /// Writes an event about the open item, or about the one that opens or has just closed.
    fn item_event(&mut self, out: &mut Vec<u8>, kind: &str, mut body: Value) {
        body["output_index"] = self.output.len().into();
        self.event(out, kind, body);
    }

    fn event(&mut self, out: &mut Vec<u8>, kind: &str, mut body: Value) {
        body["sequence_number"] = self.sequence_number.into();
        body["type"] = kind.into();
        self.sequence_number += 1;
        push_event(out, kind, &body);
    }
}

// === impl OpenCall ===

impl OpenCall {
    /// Returns the part of `input` that was not sent yet.
    fn new_input(&mut self, input: &str) -> Option<String> {
        let delta = input.get(self.n_input_told..).filter(|delta| !delta.is_empty())?.to_owned();
        self.n_input_told = input.len();
        Some(delta)
    }
}

/// Returns the text of `{"input": "…"}` as far as it has arrived, without an escape that is cut off.
fn input_so_far(arguments: &str) -> String {
    let Some((_, text)) = arguments.split_once(':') else { return String::new() };
    let Some(text) = text.trim_start().strip_prefix('"') else { return String::new() };
    let mut values = serde_json::Deserializer::from_str(arguments).into_iter::<Value>();
    if let Some(Ok(_whole)) = values.next() {
        return custom_input(arguments);
    }
    let ends = (0..=text.len()).rev().filter(|end| text.is_char_boundary(*end));
    let mut prefixes = ends.map(|end| serde_json::from_str(&format!("\"{}\"", &text[..end])));
    prefixes.find_map(Result::ok).unwrap_or_default()
}
