//! The answer of `/v1/responses`: the response object, and the events that a stream tells it by.

use crate::http::body::Fields;
use crate::http::choices::{Choice, Piece};
use crate::http::error::ApiError;
use crate::http::wire::Envelope;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// What a response repeats of its request: fields and what they are when they are absent.
#[derive(Clone, Debug)]
pub(super) struct Told(Map<String, Value>);

/// An answer that grows.
#[derive(Debug)]
pub(super) struct Progress {
    told: Told,
    /// With its prefix.
    id: String,
    message_id: String,
    created_at: u64,
    model: String,
    n_prompt_tokens: usize,
    text: String,
    finish: &'static str,
    /// Of the next event; 0 before the stream has begun.
    sequence_number: u64,
}

// === impl Told ===

impl Told {
    pub(super) fn of(fields: &Fields) -> Self {
        let repeated = [
            ("instructions", Value::Null),
            ("metadata", Value::Null),
            ("temperature", json!(1.0)),
            ("top_p", json!(1.0)),
            ("max_output_tokens", Value::Null),
            ("truncation", json!("disabled")),
            ("user", Value::Null),
        ];
        let field =
            |(name, default): (&str, Value)| (name.to_owned(), fields.raw(name).cloned().unwrap_or(default));
        Self(repeated.into_iter().map(field).collect())
    }

    fn get(&self, name: &str) -> &Value {
        self.0.get(name).unwrap_or(&Value::Null)
    }
}

// === impl Progress ===

impl Progress {
    pub(super) fn new(told: Told, envelope: &Envelope, n_prompt_tokens: usize) -> Self {
        let uuid = envelope.id.strip_prefix(envelope.api.id_prefix()).unwrap_or(&envelope.id);
        Self {
            told,
            id: format!("resp_{uuid}"),
            message_id: format!("msg_{uuid}"),
            created_at: envelope.created,
            model: envelope.model.clone(),
            n_prompt_tokens,
            text: String::new(),
            finish: "stop",
            sequence_number: 0,
        }
    }

    pub(super) fn take(&mut self, Piece { text, finish, .. }: Piece) {
        self.text.push_str(&text);
        if let Some(finish) = finish {
            self.finish = finish.reason;
        }
    }

    /// The object as it is at the end.
    pub(super) fn response(&self, choice: Option<&Choice>) -> Value {
        let (cached, n_generated) =
            choice.map_or((0, 0), |choice| (choice.cached_tokens, choice.n_generated));
        let usage = json!({
            "input_tokens": self.n_prompt_tokens,
            "input_tokens_details": {"cached_tokens": cached},
            "output_tokens": n_generated,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.n_prompt_tokens + n_generated,
        });
        let (status, incomplete) = match self.finish {
            "length" => ("incomplete", json!({"reason": "max_output_tokens"})),
            _ => ("completed", Value::Null),
        };
        self.object(status, &incomplete, &json!([self.message("completed")]), &usage)
    }

    /// Tells what goes before the first delta, once; whether it did.
    pub(super) fn open(&mut self, out: &mut String) -> bool {
        if self.sequence_number > 0 {
            return false;
        }
        let response = self.object("in_progress", &Value::Null, &json!([]), &Value::Null);
        self.event(out, "response.created", json!({"response": response.clone()}));
        self.event(out, "response.in_progress", json!({"response": response}));
        let item = json!({
            "id": self.message_id, "content": [], "role": "assistant", "status": "in_progress", "type": "message",
        });
        self.event(out, "response.output_item.added", json!({"output_index": 0, "item": item}));
        let part = json!({"annotations": [], "text": "", "type": "output_text", "logprobs": []});
        let added = json!({"item_id": self.message_id, "output_index": 0, "content_index": 0, "part": part});
        self.event(out, "response.content_part.added", added);
        true
    }

    pub(super) fn delta(&mut self, out: &mut String, piece: Piece) {
        if !piece.text.is_empty() {
            let delta = json!({
                "item_id": self.message_id,
                "output_index": 0,
                "content_index": 0,
                "delta": piece.text,
                "logprobs": [],
            });
            self.event(out, "response.output_text.delta", delta);
        }
        self.take(piece);
    }

    pub(super) fn close(&mut self, out: &mut String, choice: Option<&Choice>) {
        let place = json!({"item_id": self.message_id, "output_index": 0, "content_index": 0});
        let with = |more: Value| {
            let mut body = place.clone();
            if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
                body.extend(more);
            }
            body
        };
        let done = with(json!({"text": self.text, "logprobs": []}));
        self.event(out, "response.output_text.done", done);
        let part = with(json!({"part": self.part()}));
        self.event(out, "response.content_part.done", part);
        let item = json!({"output_index": 0, "item": self.message("completed")});
        self.event(out, "response.output_item.done", item);
        let response = self.response(choice);
        self.event(out, "response.completed", json!({"response": response}));
    }

    /// The last event of a stream that broke.
    pub(super) fn fail(&mut self, out: &mut String, error: &ApiError) {
        let body = json!({"code": error.status.as_u16().to_string(), "message": error.message, "param": error.param});
        self.event(out, "error", body);
    }

    fn event(&mut self, out: &mut String, kind: &str, body: Value) {
        let mut event = json!({"type": kind, "sequence_number": self.sequence_number});
        if let (Some(event), Value::Object(body)) = (event.as_object_mut(), body) {
            event.extend(body);
        }
        self.sequence_number += 1;
        let _infallible = write!(out, "event: {kind}\ndata: {event}\n\n");
    }

    fn part(&self) -> Value {
        json!({"annotations": [], "text": self.text, "type": "output_text", "logprobs": null})
    }

    fn message(&self, status: &str) -> Value {
        json!({
            "id": self.message_id,
            "content": [self.part()],
            "role": "assistant",
            "status": status,
            "type": "message",
        })
    }

    fn object(&self, status: &str, incomplete: &Value, output: &Value, usage: &Value) -> Value {
        json!({
            "id": self.id,
            "created_at": self.created_at,
            "incomplete_details": incomplete,
            "instructions": self.told.get("instructions"),
            "metadata": self.told.get("metadata"),
            "model": self.model,
            "object": "response",
            "output": output,
            "parallel_tool_calls": true,
            "temperature": self.told.get("temperature"),
            "tool_choice": "auto",
            "tools": [],
            "top_p": self.told.get("top_p"),
            "background": false,
            "max_output_tokens": self.told.get("max_output_tokens"),
            "max_tool_calls": null,
            "previous_response_id": null,
            "prompt": null,
            "reasoning": null,
            "service_tier": "auto",
            "status": status,
            "text": null,
            "top_logprobs": null,
            "truncation": self.told.get("truncation"),
            "usage": usage,
            "user": self.told.get("user"),
        })
    }
}
