//! A request to the engine. Its output is decided beforehand: the engine only spends the time.

use std::sync::Arc;

/// Id that the caller chooses; unique among the live requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

#[derive(Clone, Debug)]
pub struct EngineRequest {
    pub id: RequestId,
    /// Token ids, at least one, fewer than `max_model_len`.
    pub prompt: Arc<[u32]>,
    /// All tokens that it will generate, with the EOS if it stops by one; at least one.
    pub output: Arc<[u32]>,
    /// Reason of its end after the last token of `output`; `Length` instead if `max_model_len` cuts it.
    pub finish: FinishReason,
    /// Salt that keeps its prefix apart from requests with other salts.
    pub cache_salt: Option<Arc<str>>,
    pub cache_reading: CacheReading,
    /// Adapter that computes its KV, and so is part of its block hashes.
    pub lora: Option<Arc<LoraAdapter>>,
    /// Priority for `SchedulingPolicy::Priority`, lower values first; ignored otherwise.
    pub priority: i32,
}

/// Use of the prefix cache for a prompt, vLLM's `skip_reading_prefix_cache`. The prompt enters the cache in either
/// case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheReading {
    #[default]
    Read,
    /// Compute every prompt token; the look-up is not counted.
    Skip,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraAdapter {
    /// Number from 1 on in the order of loading: vLLM's `lora_int_id`.
    pub id: u32,
    pub name: String,
    pub path: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    Stop,
    Length,
    Abort,
    Error,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    #[error("request {0:?} is already known")]
    Duplicate(RequestId),
    #[error("the prompt is empty")]
    EmptyPrompt,
    #[error("the output is empty")]
    EmptyOutput,
    #[error("prompt of {n_tokens} tokens leaves no room for output in max_model_len {max_model_len}")]
    PromptTooLong { n_tokens: usize, max_model_len: u32 },
}

// === impl FinishReason ===

impl FinishReason {
    /// Returns the text of `finish_reason` on the wire and of `finished_reason` in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}
