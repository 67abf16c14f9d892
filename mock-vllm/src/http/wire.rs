//! Bytes of answers as vLLM writes them, field for field in its order, for each of its generations. Pure: values in,
//! bytes out.

pub(crate) mod chunk;
pub(crate) mod logprobs;
pub(crate) mod plain;
pub(crate) mod usage;

use serde::Serialize;
use std::sync::Arc;
use vllm_engine::vllm_version::VllmVersion;

pub(crate) const DONE: &[u8] = b"data: [DONE]\n\n";

/// API that an answer is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    Chat,
    Completion,
}

/// Values that all frames and bodies of one answer share.
#[derive(Clone, Debug)]
pub(crate) struct Envelope {
    pub(crate) api: Api,
    pub(crate) version: VllmVersion,
    /// Id of the answer, with its prefix.
    pub(crate) id: String,
    /// Creation time in Unix seconds.
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) role: String,
    pub(crate) fingerprint: String,
}

/// End of a choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finish {
    pub(crate) reason: &'static str,
    /// Stop string or token of the request that ended it.
    pub(crate) stop_reason: Option<StopReason>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StopReason {
    Token(u32),
    Text(Arc<str>),
}

// === impl Api ===

impl Api {
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completion => "/v1/completions",
        }
    }

    pub(crate) fn id_prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl-",
            Self::Completion => "cmpl-",
        }
    }
}

/// Appends `value` as JSON.
pub(crate) fn push(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(out, value).expect("names and numbers are written to memory");
}

fn extend(out: &mut Vec<u8>, parts: &[&[u8]]) {
    parts.iter().for_each(|part| out.extend_from_slice(part));
}

/// Appends JSON that is already written, or null.
fn push_raw(out: &mut Vec<u8>, json: Option<&[u8]>) {
    out.extend_from_slice(json.unwrap_or(b"null"));
}

/// Appends the fields after `logprobs` that say how a choice ended.
fn push_finish(out: &mut Vec<u8>, finish: Option<&Finish>) {
    out.extend_from_slice(b",\"finish_reason\":");
    match finish {
        None => out.extend_from_slice(b"null"),
        Some(Finish { reason, .. }) => push(out, reason),
    }
}

fn push_stop_reason(out: &mut Vec<u8>, finish: Option<&Finish>) {
    out.extend_from_slice(b",\"stop_reason\":");
    match finish.and_then(|finish| finish.stop_reason.as_ref()) {
        None => out.extend_from_slice(b"null"),
        Some(StopReason::Token(token)) => push(out, token),
        Some(StopReason::Text(text)) => push(out, &**text),
    }
}
