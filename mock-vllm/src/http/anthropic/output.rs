//! Answers of the Messages API: a message whole, or as events that start, fill and stop one content block after
//! another.

use super::error_body;
use crate::http::answer::AnswerPlan;
use crate::http::choices::{Choice, Piece};
use crate::http::error::ApiError;
use crate::http::events::{Events, ReplyReader, WholeReply, push_event};
use crate::http::wire::plain::ChoiceContent;
use crate::http::wire::usage::{PromptTokensDetails, Usage};
use crate::http::wire::{Finish, StopReason};
use crate::structured::tools::stream::{FunctionDelta, ToolCallDelta};
use axum::response::{IntoResponse as _, Json, Response};
use serde_json::{Map, Value, json};
use vllm_engine::request::FinishReason;

#[derive(Debug)]
pub(super) struct MessageAnswer {
    answer: AnswerPlan,
    reader: ReplyReader,
    stage: Stage,
    /// Index of the open block, or else of the next one.
    block_idx: usize,
    finish: Finish,
    /// Arguments of the last call so far; `None` before the first call.
    arguments: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// State before the first token.
    Unstarted,
    BetweenBlocks,
    Text,
    ToolUse,
}

// === impl MessageAnswer ===

impl MessageAnswer {
    pub(super) fn new(answer: AnswerPlan) -> Self {
        let finish = Finish { reason: FinishReason::Abort.as_str(), stop_reason: None };
        let (reader, stage) = (ReplyReader::new(&answer), Stage::Unstarted);
        Self { answer, reader, stage, block_idx: 0, finish, arguments: None }
    }

    fn start(&mut self, out: &mut Vec<u8>) {
        self.stage = Stage::BetweenBlocks;
        let message = json!({
            "id": self.answer.envelope.id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": self.answer.envelope.model,
            "stop_reason": null,
            "stop_sequence": null,
            "usage": usage(self.answer.prompt_usage(0)),
        });
        event(out, "message_start", json!({"message": message}));
    }

    fn start_block(&mut self, out: &mut Vec<u8>, stage: Stage, block: &Value) {
        self.stop_block(out);
        self.stage = stage;
        event(out, "content_block_start", json!({"content_block": block, "index": self.block_idx}));
    }

    fn delta(&self, out: &mut Vec<u8>, delta: &Value) {
        event(out, "content_block_delta", json!({"delta": delta, "index": self.block_idx}));
    }

    fn stop_block(&mut self, out: &mut Vec<u8>) {
        match self.stage {
            Stage::Text | Stage::ToolUse => {
                event(out, "content_block_stop", json!({"index": self.block_idx}));
                self.stage = Stage::BetweenBlocks;
                self.block_idx += 1;
            }
            Stage::Unstarted | Stage::BetweenBlocks => {}
        }
    }

    fn call(&mut self, out: &mut Vec<u8>, call: ToolCallDelta) {
        let ToolCallDelta { id, function: FunctionDelta { name, arguments }, .. } = call;
        if let (Some(id), Some(name)) = (id, name) {
            self.arguments = Some(String::new());
            let block = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
            self.start_block(out, Stage::ToolUse, &block);
        }
        if let (Some(told), Some(more)) = (&mut self.arguments, arguments.filter(|more| !more.is_empty())) {
            told.push_str(&more);
            self.delta(out, &json!({"type": "input_json_delta", "partial_json": more}));
        }
    }
}

impl Events for MessageAnswer {
    fn refusal(error: ApiError) -> Response {
        if error.is_of_body() {
            return error.into_response();
        }
        (error.status, Json(error_body(&error))).into_response()
    }

    fn whole(self, reply: WholeReply<'_>) -> Response {
        let WholeReply { choice, text, finish } = reply;
        let calls = self.answer.calls.first().and_then(Option::as_deref);
        let (content, finish) = self.answer.message(text, finish, calls);
        let (text, tool_calls) = match content {
            ChoiceContent::Text(text) => (text, Vec::new()),
            ChoiceContent::Calls { content, tool_calls } => (content.unwrap_or_default(), tool_calls),
        };
        let calls = match tool_calls.as_slice() {
            [] => Calls::None,
            [_, ..] => Calls::Complete,
        };
        let (stop_reason, stop_sequence) = stop_reason(&finish, calls);
        let mut content: Vec<Value> = Vec::new();
        // An empty reply becomes one empty text.
        if !text.is_empty() || tool_calls.is_empty() {
            content.push(json!({"type": "text", "text": text}));
        }
        content.extend(tool_calls.iter().map(|call| {
            let input: Value = serde_json::from_str(&call.function.arguments).unwrap_or_default();
            json!({"type": "tool_use", "id": call.id, "name": call.function.name, "input": input})
        }));
        let mut message = json!({
            "id": self.answer.envelope.id,
            "type": "message",
            "role": "assistant",
            "content": content,
            "model": self.answer.envelope.model,
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
            "usage": usage(self.answer.stream_usage(std::slice::from_ref(choice))),
        });
        if let Some(message) = message.as_object_mut() {
            message.retain(|_, value| !value.is_null());
        }
        Json(message).into_response()
    }

    fn begin(&mut self, _out: &mut Vec<u8>) {}

    fn piece(&mut self, out: &mut Vec<u8>, piece: &Piece) {
        if self.stage == Stage::Unstarted {
            self.start(out);
        }
        if let Some(finish) = &piece.finish {
            self.finish = finish.clone();
        }
        let delta = self.reader.push(&piece.text);
        if let Some(text) = delta.content.filter(|text| !text.is_empty()) {
            if self.stage != Stage::Text {
                self.start_block(out, Stage::Text, &json!({"type": "text", "text": ""}));
            }
            self.delta(out, &json!({"type": "text_delta", "text": text}));
        }
        for call in delta.tool_calls {
            self.call(out, call);
        }
    }

    fn end(&mut self, out: &mut Vec<u8>, choice: &Choice) {
        self.stop_block(out);
        let is_complete = |arguments: &str| serde_json::from_str::<Value>(arguments).is_ok();
        let calls = match &self.arguments {
            None => Calls::None,
            Some(arguments) if is_complete(arguments) => Calls::Complete,
            Some(_) => Calls::CutOff,
        };
        let (stop_reason, stop_sequence) = stop_reason(&self.finish, calls);
        let delta = json!({"stop_reason": stop_reason, "stop_sequence": stop_sequence});
        let usage = usage(self.answer.stream_usage(std::slice::from_ref(choice)));
        event(out, "message_delta", json!({"delta": delta, "usage": usage}));
        event(out, "message_stop", json!({}));
    }

    fn fail(&mut self, out: &mut Vec<u8>, error: &ApiError) {
        self.stop_block(out);
        let body = error_body(error);
        push_event(out, "error", &body);
    }
}

/// State of the calls in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Calls {
    None,
    CutOff,
    Complete,
}

/// Returns the reason, and the stop sequence that was met, like vLLM's `_to_anthropic_stop_reason`.
fn stop_reason(finish: &Finish, calls: Calls) -> (Option<&'static str>, Option<&str>) {
    match (finish.reason, calls, &finish.stop_reason) {
        ("length", _, _) => (Some("max_tokens"), None),
        ("stop" | "tool_calls", Calls::Complete, _) => (Some("tool_use"), None),
        ("stop" | "tool_calls", _, Some(StopReason::Text(text))) => (Some("stop_sequence"), Some(text)),
        ("stop" | "tool_calls", Calls::CutOff, _) => (Some("tool_use"), None),
        ("stop" | "tool_calls", Calls::None, _) => (Some("end_turn"), None),
        _ => (None, None),
    }
}

/// Writes the counts. Input tokens include neither what the cache had nor what is new in it.
fn usage(usage: Usage) -> Value {
    let Usage { prompt_tokens, completion_tokens, details } = usage;
    let (read, created) = match details {
        Some(PromptTokensDetails { cached_tokens, created_cache_tokens }) => {
            (Some(cached_tokens), created_cache_tokens)
        }
        None => (None, None),
    };
    let n_cached = read.unwrap_or_default() as usize + created.unwrap_or_default() as usize;
    let mut usage = json!({
        "input_tokens": prompt_tokens.saturating_sub(n_cached), "output_tokens": completion_tokens,
    });
    for (name, value) in [("cache_creation_input_tokens", created), ("cache_read_input_tokens", read)] {
        if let Some(value) = value {
            usage[name] = value.into();
        }
    }
    usage
}

fn event(out: &mut Vec<u8>, kind: &str, body: Value) {
    let mut event = Map::from_iter([("type".to_owned(), Value::from(kind))]);
    if let Value::Object(body) = body {
        event.extend(body);
    }
    push_event(out, kind, &event.into());
}
