//! `logprobs`, `top_logprobs` and `prompt_logprobs` of requests, checked with vLLM's texts.

use super::body::Fields;
use super::error::ApiError;
use super::wire::Api;
use serde_json::Value;
use vllm_engine::request::CacheReading;
use vllm_engine::vllm_version::VllmVersion;

/// Numbers of log probabilities that a request wants per token; -1 means the whole vocabulary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogprobsRequest {
    sample: Option<i64>,
    prompt: Option<i64>,
    /// `return_tokens_as_token_ids`
    pub(crate) as_ids: Option<bool>,
}

/// Checked numbers: none is more than the server allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogprobsCounts {
    pub(crate) sample: Option<usize>,
    pub(crate) prompt: Option<usize>,
}

// === impl LogprobsRequest ===

impl LogprobsRequest {
    /// Reads the fields.
    ///
    /// # Errors
    /// Fails for contradictions, which vLLM finds before it looks at types.
    pub(crate) fn parse(fields: &mut Fields, api: Api, version: VllmVersion) -> Result<Self, ApiError> {
        let top_field = match api {
            Api::Chat => "top_logprobs",
            Api::Completion => "logprobs",
        };
        let number = |field: &str| fields.raw(field).and_then(Value::as_f64);
        let allows_all = version != VllmVersion::V0_8;
        let is_negative = |number: f64| number < 0.0 && !(allows_all && number == -1.0);
        let or_all = if allows_all { " or -1" } else { "" };
        if let Some(prompt) = number("prompt_logprobs") {
            let streams = fields.raw("stream") == Some(&Value::Bool(true));
            if streams && (prompt > 0.0 || (allows_all && prompt == -1.0)) {
                let message = "`prompt_logprobs` are not available when `stream=True`.";
                return Err(fields.refused(message, Some("prompt_logprobs")));
            }
            if is_negative(prompt) {
                let message = format!("`prompt_logprobs` must be a positive value{or_all}.");
                return Err(fields.refused_value(&message, "prompt_logprobs"));
            }
        }
        if let Some(top) = number(top_field) {
            if is_negative(top) {
                let message = format!("`{top_field}` must be a positive value{or_all}.");
                return Err(fields.refused_value(&message, top_field));
            }
            let is_off = fields.raw("logprobs").is_none_or(|logprobs| logprobs == &Value::Bool(false));
            if api == Api::Chat && top != 0.0 && is_off {
                let message = "when using `top_logprobs`, `logprobs` must be set to true.";
                return Err(fields.refused(message, Some("top_logprobs")));
            }
        }
        let sample = match api {
            Api::Chat => {
                let top = fields.integer("top_logprobs").unwrap_or_default();
                fields.boolean("logprobs").unwrap_or_default().then_some(top)
            }
            Api::Completion => fields.integer("logprobs"),
        };
        // An echoed prompt gets as many log probabilities as the reply.
        let echoed = match (fields.boolean("echo").unwrap_or_default(), api) {
            (true, Api::Chat) => Some(fields.integer("top_logprobs").unwrap_or_default()),
            (true, Api::Completion) => sample,
            (false, _) => None,
        };
        Ok(Self {
            sample,
            prompt: fields.integer("prompt_logprobs").or(echoed),
            as_ids: fields.boolean("return_tokens_as_token_ids"),
        })
    }

    /// Skips the cache if the prompt needs log probabilities: blocks that other requests computed have none.
    pub(crate) fn cache_reading(self) -> CacheReading {
        match self.prompt {
            Some(_) => CacheReading::Skip,
            None => CacheReading::Read,
        }
    }

    /// Checks the numbers. `vocabulary_len` is what -1 stands for.
    ///
    /// # Errors
    /// Fails for more than `max_logprobs` per token.
    pub(crate) fn counts(self, max_logprobs: i64, vocabulary_len: u32) -> Result<LogprobsCounts, ApiError> {
        let vocabulary_len = i64::from(vocabulary_len);
        let max = if max_logprobs == -1 { vocabulary_len } else { max_logprobs };
        let check = |asked: Option<i64>, kind: &str, parameter: &str| {
            let n = asked.map(|n| if n == -1 { vocabulary_len } else { n });
            match n.filter(|n| *n > max) {
                Some(n) => {
                    let message =
                        format!("Requested {kind} logprobs of {n}, which is greater than max allowed: {max}");
                    Err(ApiError::bad_parameter(&message, parameter, n))
                }
                None => Ok(n.and_then(|n| usize::try_from(n).ok())),
            }
        };
        Ok(LogprobsCounts {
            sample: check(self.sample, "sample", "logprobs")?,
            prompt: check(self.prompt, "prompt", "prompt_logprobs")?,
        })
    }
}
