//! The answer of `/v1/responses`: the response object and its items.

use super::tools::{Callee, Tools};
use crate::http::answer::{AnswerPlan, created_tokens};
use crate::http::body::Fields;
use crate::http::choices::Choice;
use crate::structured::tools::reply::{FunctionCall, ToolCall};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::num::NonZeroU32;

/// Fields of its request that a response repeats.
#[derive(Clone, Debug)]
pub(super) struct Told {
    /// Fields with their values, or with the defaults of absent ones.
    fields: Map<String, Value>,
    callees: HashMap<String, Callee>,
    request_id: Option<String>,
}

/// A response without its output.
#[derive(Clone, Debug)]
pub(super) struct ResponseHead {
    told: Told,
    /// Id of the response, with its prefix.
    pub(super) id: String,
    message_id: String,
    created_at: u64,
    model: String,
    n_prompt_tokens: usize,
    max_tokens: u32,
    /// Block size; `None` without a prefix cache.
    block_size: Option<NonZeroU32>,
}

/// State of a response or of one of its items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    InProgress,
    Completed,
    Incomplete,
}

// === impl Told ===

impl Told {
    pub(super) fn new(fields: &Fields, tools: Tools) -> Self {
        let Tools { declared: _, callees, told, choice } = tools;
        let repeated = [
            ("instructions", Value::Null),
            ("metadata", Value::Null),
            ("parallel_tool_calls", true.into()),
            ("temperature", json!(1.0)),
            ("tool_choice", choice.clone()),
            ("tools", told.clone().into()),
            ("top_p", json!(1.0)),
            ("max_tool_calls", Value::Null),
            ("prompt_cache_options", Value::Null),
            ("prompt_cache_key", Value::Null),
            ("prompt_cache_retention", Value::Null),
            ("reasoning", Value::Null),
            ("safety_identifier", Value::Null),
            ("service_tier", "auto".into()),
            ("text", Value::Null),
            ("truncation", "disabled".into()),
            ("user", Value::Null),
            ("presence_penalty", json!(0.0)),
            ("frequency_penalty", json!(0.0)),
        ];
        let field =
            |(name, default): (&str, Value)| (name.to_owned(), fields.raw(name).cloned().unwrap_or(default));
        let mut fields_told: Map<_, _> = repeated.into_iter().map(field).collect();
        fields_told.insert("tool_choice".to_owned(), choice);
        fields_told.insert("tools".to_owned(), told.into());
        let request_id = fields.raw("request_id").and_then(Value::as_str).map(str::to_owned);
        Self { fields: fields_told, callees, request_id }
    }

    fn get(&self, name: &str) -> &Value {
        self.fields.get(name).unwrap_or(&Value::Null)
    }
}

// === impl ResponseHead ===

impl ResponseHead {
    pub(super) fn new(told: Told, answer: &AnswerPlan, block_size: Option<NonZeroU32>) -> Self {
        let envelope = &answer.envelope;
        let uuid = envelope.id.strip_prefix(envelope.api.id_prefix()).unwrap_or(&envelope.id);
        Self {
            id: told.request_id.clone().unwrap_or_else(|| format!("resp_{uuid}")),
            message_id: format!("msg_{uuid}"),
            told,
            created_at: envelope.created,
            model: envelope.model.clone(),
            n_prompt_tokens: answer.n_first_prompt_tokens(),
            max_tokens: answer.max_tokens,
            block_size,
        }
    }

    pub(super) fn message_id(&self) -> &str {
        &self.message_id
    }

    /// Returns the object at the end.
    pub(super) fn ended(&self, status: Status, output: Vec<Value>, choice: &Choice) -> Value {
        self.object(status, output.into(), self.usage(choice))
    }

    /// Returns the object before there is an output.
    pub(super) fn begun(&self) -> Value {
        self.object(Status::InProgress, json!([]), Value::Null)
    }

    /// Returns the tool that a call's name stands for.
    pub(super) fn callee(&self, name: &str) -> Callee {
        let unknown = || Callee::Function { name: name.to_owned(), namespace: None };
        self.told.callees.get(name).cloned().unwrap_or_else(unknown)
    }

    /// Makes the item of a call.
    pub(super) fn call_item(&self, call: &ToolCall, status: Status) -> Value {
        let ToolCall { id: call_id, function: FunctionCall { name, arguments }, .. } = call;
        let callee = self.callee(name);
        call_item(&callee, name, (&item_id(&callee, call_id), call_id), arguments, status)
    }

    fn usage(&self, choice: &Choice) -> Value {
        let Choice { cached_tokens, n_generated, .. } = choice;
        let created = created_tokens(self.n_prompt_tokens, *cached_tokens, self.block_size);
        json!({
            "input_tokens": self.n_prompt_tokens,
            "input_tokens_details": {
                "cached_tokens": cached_tokens,
                "cache_write_tokens": created,
                "input_tokens_per_turn": [],
                "cached_tokens_per_turn": [],
            },
            "output_tokens": n_generated,
            "output_tokens_details": {
                "reasoning_tokens": 0,
                "tool_output_tokens": 0,
                "output_tokens_per_turn": [],
                "tool_output_tokens_per_turn": [],
            },
            "total_tokens": self.n_prompt_tokens + n_generated,
        })
    }

    fn object(&self, status: Status, output: Value, usage: Value) -> Value {
        let told = |name: &str| self.told.get(name).clone();
        let incomplete = match status {
            Status::Incomplete => json!({"reason": "max_output_tokens"}),
            Status::InProgress | Status::Completed => Value::Null,
        };
        json!({
            "id": self.id,
            "created_at": self.created_at,
            "incomplete_details": incomplete,
            "instructions": told("instructions"),
            "metadata": told("metadata"),
            "model": self.model,
            "object": "response",
            "output": output,
            "parallel_tool_calls": told("parallel_tool_calls"),
            "temperature": told("temperature"),
            "tool_choice": told("tool_choice"),
            "tools": told("tools"),
            "top_p": told("top_p"),
            "background": false,
            "max_output_tokens": self.max_tokens,
            "max_tool_calls": told("max_tool_calls"),
            "previous_response_id": null,
            "prompt": null,
            "prompt_cache_options": told("prompt_cache_options"),
            "prompt_cache_key": told("prompt_cache_key"),
            "prompt_cache_retention": told("prompt_cache_retention"),
            "reasoning": told("reasoning"),
            "safety_identifier": told("safety_identifier"),
            "service_tier": told("service_tier"),
            "status": status.as_str(),
            "text": told("text"),
            "top_logprobs": null,
            "truncation": told("truncation"),
            "usage": usage,
            "user": told("user"),
            "presence_penalty": told("presence_penalty"),
            "frequency_penalty": told("frequency_penalty"),
            "kv_transfer_params": null,
            "ec_transfer_params": null,
            "input_messages": null,
            "output_messages": null,
        })
    }
}

// === impl Status ===

impl Status {
    /// Converts the engine's finish reason.
    pub(super) fn ended_by(finish: &str) -> Self {
        if finish == "length" { Self::Incomplete } else { Self::Completed }
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
        }
    }
}

pub(super) fn text_part(text: &str) -> Value {
    json!({"annotations": [], "text": text, "type": "output_text", "logprobs": null})
}

/// Makes a message of `text`; an empty text makes no part.
pub(super) fn message_item(id: &str, text: &str, status: Status) -> Value {
    let content = if text.is_empty() { json!([]) } else { json!([text_part(text)]) };
    json!({
        "id": id,
        "content": content,
        "role": "assistant",
        "status": status.as_str(),
        "type": "message",
        "phase": null,
    })
}

/// Makes the item of a call of `callee`, whose name in the prompt is `shown_name`.
pub(super) fn call_item(
    callee: &Callee,
    shown_name: &str,
    (id, call_id): (&str, &str),
    arguments: &str,
    status: Status,
) -> Value {
    match callee {
        Callee::Function { name, namespace } => json!({
            "arguments": arguments,
            "call_id": call_id,
            "name": name,
            "type": "function_call",
            "id": id,
            "namespace": namespace,
            "status": status.as_str(),
        }),
        Callee::Custom => json!({
            "call_id": call_id,
            "input": custom_input(arguments),
            "name": shown_name,
            "type": "custom_tool_call",
            "id": id,
            "namespace": null,
        }),
    }
}

/// Returns the id of a call's item, which differs from the call's own id by its prefix.
pub(super) fn item_id(callee: &Callee, call_id: &str) -> String {
    let prefix = match callee {
        Callee::Function { .. } => "fc",
        Callee::Custom => "ctc",
    };
    format!("{prefix}_{}", call_id.rsplit('-').next().unwrap_or_default())
}

/// Returns the text for a custom tool from complete arguments; arguments of another form are taken unchanged.
pub(super) fn custom_input(arguments: &str) -> String {
    let parsed: Option<Value> = serde_json::from_str(arguments).ok();
    let input = parsed.as_ref().and_then(|parsed| parsed.get("input")?.as_str());
    input.unwrap_or(arguments).to_owned()
}
