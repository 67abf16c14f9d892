//! What the engine is told about a request. The output is decided beforehand: the engine only spends the time.

use std::sync::Arc;

/// Chosen by the caller; unique among the requests that live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

#[derive(Clone, Debug)]
pub struct EngineRequest {
    pub id: RequestId,
    /// Token ids, at least one, fewer than `max_model_len`.
    pub prompt: Arc<[u32]>,
    /// Every token it will generate, the EOS included if it stops by one; at least one.
    pub output: Arc<[u32]>,
    /// Why it ends after the last token of `output`; `Length` instead when `max_model_len` cuts it.
    pub finish: FinishReason,
    /// Keeps its prefix apart from every other salt.
    pub cache_salt: Option<Arc<str>>,
    pub cache_reading: CacheReading,
    /// The adapter that computes its KV, and so is part of its block hashes.
    pub lora: Option<Arc<LoraAdapter>>,
    /// Lower first under `SchedulingPolicy::Priority`, ignored otherwise.
    pub priority: i32,
}

/// vLLM's `skip_reading_prefix_cache`: whether the prompt may be found in the cache. It goes into it either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheReading {
    #[default]
    Read,
    /// Every prompt token is computed, and the look-up is not counted.
    Skip,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraAdapter {
    /// vLLM's `lora_int_id`: adapters count from 1 in the order in which they are loaded.
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
    /// As in `finish_reason` on the wire and `finished_reason` in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
            Self::Error => "error",
        }
    }
}
