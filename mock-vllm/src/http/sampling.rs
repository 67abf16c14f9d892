//! Sampling parameters of a request: parsed once, and checked against vLLM's ranges, in its order and with its error
//! texts.

use super::body::Fields;
use super::error::ApiError;
use super::prompt::PromptInput;
use super::python_json::float_repr;
use super::wire::Api;
use serde_json::Value;
use vllm_engine::vllm_version::VllmVersion;
use vllm_text::reply::Limits;
use vllm_text::reply::stop_strings::{StopStrings, Visibility};

/// vLLM's default for completions; a chat may fill the context.
const COMPLETION_MAX_TOKENS: i64 = 16;
/// vLLM 0.33 `envs.py`: `VLLM_MAX_N_SEQUENCES`. Older versions have no limit; here it holds for all.
const N_MAX: i64 = 16_384;
/// vLLM 0.33 `envs.py`: `VLLM_MAX_STOP_STRINGS`.
const STOP_MAX: usize = 4;
/// vLLM's `_SAMPLING_EPS`: sampling is greedy below it.
const GREEDY_TEMPERATURE: f64 = 1e-5;

#[derive(Clone, Debug)]
pub(crate) struct Sampling {
    max_tokens: MaxTokens,
    min_tokens: i64,
    n: i64,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    min_p: Option<f64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    repetition_penalty: Option<f64>,
    ignore_eos: bool,
    stop_token_ids: Vec<i64>,
    stop: Vec<String>,
    include_stop_str_in_output: bool,
    seed: Option<i64>,
    stream_interval: Option<i64>,
}

/// Limit of the request, and the field that sets it.
#[derive(Clone, Copy, Debug)]
struct MaxTokens {
    value: Option<i64>,
    field: &'static str,
}

/// Limits of the model that the checks use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ModelLimits {
    pub(crate) version: VllmVersion,
    pub(crate) max_model_len: u32,
    /// Highest token id plus 1.
    pub(crate) vocabulary_len: u32,
}

/// Length of a prompt in tokens. It is exact for token ids; text is tokenized only up to one token beyond the context.
#[derive(Clone, Copy, Debug)]
pub(crate) enum PromptLength {
    Text(usize),
    TokenIds(usize),
}

// === impl PromptLength ===

impl PromptLength {
    pub(crate) fn new(n_tokens: usize, prompt: &PromptInput) -> Self {
        match prompt {
            PromptInput::Chat(_) | PromptInput::Text(_) | PromptInput::PlainText(_) => Self::Text(n_tokens),
            PromptInput::TokenIds(_) => Self::TokenIds(n_tokens),
        }
    }

    fn n_tokens(self) -> i64 {
        let (Self::Text(n_tokens) | Self::TokenIds(n_tokens)) = self;
        i64::try_from(n_tokens).unwrap_or(i64::MAX)
    }

    /// Checks a prompt.
    ///
    /// # Errors
    /// Fails if there is nothing to compute, or in 0.33 more than the context holds.
    fn check(self, context: i64, version: VllmVersion) -> Result<(), ApiError> {
        let n_tokens = self.n_tokens();
        if n_tokens == 0 {
            return Err(ApiError::bad_request("The decoder prompt cannot be empty", None));
        }
        if n_tokens <= context || version != VllmVersion::V0_33 {
            return Ok(());
        }
        let n_known = match self {
            Self::Text(_) => context + 1,
            Self::TokenIds(_) => n_tokens,
        };
        let qualifier = if n_known == context + 1 { "at least " } else { "" };
        Err(ApiError::bad_parameter(
            &format!(
                "This model's maximum context length is {context} tokens. However, your prompt contains \
                 {qualifier}{n_known} input tokens, which exceeds this limit even without any output tokens. Please \
                 reduce the length of the input prompt."
            ),
            "input_tokens",
            n_known,
        ))
    }
}

// === impl Sampling ===

impl Sampling {
    pub(crate) fn parse(fields: &mut Fields, api: Api) -> Self {
        let stop = fields.strings("stop").unwrap_or_default();
        if stop.len() > STOP_MAX {
            let message =
                format!("List should have at most {STOP_MAX} items after validation, not {}", stop.len());
            fields.error("too_long", "stop", &message, stop.clone().into());
        }
        let stream_interval = fields.integer("stream_interval");
        if let Some(interval) = stream_interval.filter(|interval| *interval < 1) {
            let message = "Input should be greater than or equal to 1";
            fields.error("greater_than_equal", "stream_interval", message, interval.into());
        }
        Self {
            max_tokens: MaxTokens::parse(fields, api),
            min_tokens: fields.integer("min_tokens").unwrap_or_default(),
            n: fields.integer("n").unwrap_or(1),
            temperature: fields.number("temperature"),
            top_p: fields.number("top_p"),
            top_k: fields.integer("top_k"),
            min_p: fields.number("min_p"),
            presence_penalty: fields.number("presence_penalty"),
            frequency_penalty: fields.number("frequency_penalty"),
            repetition_penalty: fields.number("repetition_penalty"),
            ignore_eos: fields.boolean("ignore_eos").unwrap_or_default(),
            stop_token_ids: stop_token_ids(fields),
            stop,
            include_stop_str_in_output: fields.boolean("include_stop_str_in_output").unwrap_or_default(),
            seed: fields.integer("seed"),
            stream_interval,
        }
    }

    /// Sets the name of the field that limits the tokens, which errors repeat.
    pub(crate) fn limited_by(self, field: &'static str) -> Self {
        Self { max_tokens: MaxTokens { field, ..self.max_tokens }, ..self }
    }

    /// Samples per prompt; correct only after [`Self::limits`].
    pub(crate) fn n(&self) -> u32 {
        u32::try_from(self.n).unwrap_or(1)
    }

    /// Tokens per frame that the request asks for.
    pub(crate) fn stream_interval(&self) -> u32 {
        self.stream_interval.and_then(|interval| u32::try_from(interval).ok()).unwrap_or(1)
    }

    /// Returns whether the request has `max_tokens: 0`, which only an echo may ask for.
    pub(crate) fn wants_no_tokens(&self) -> bool {
        self.max_tokens.value == Some(0)
    }

    /// Checks the parameters for a prompt. `floor` is the least that `max_tokens` counts as.
    ///
    /// # Errors
    /// Fails for what vLLM rejects: a prompt that is too long, limits that leave nothing to generate, values out of
    /// range.
    pub(crate) fn limits(
        &self,
        prompt: PromptLength,
        floor: u32,
        model: ModelLimits,
    ) -> Result<Limits, ApiError> {
        let ModelLimits { version, max_model_len, .. } = model;
        let context = i64::from(max_model_len);
        let n_prompt = prompt.n_tokens();
        self.max_tokens.check(n_prompt, context, version)?;
        prompt.check(context, version)?;
        let room = context - n_prompt;
        let max_tokens = self.max_tokens.value.unwrap_or(room).min(room).max(i64::from(floor));
        self.check_ranges(version)?;
        if max_tokens < 1 {
            let message = format!("max_tokens must be at least 1, got {max_tokens}.");
            return Err(ApiError::bad_parameter(&message, "max_tokens", max_tokens));
        }
        let min_tokens = self.min_tokens;
        if min_tokens < 0 {
            let message = format!("min_tokens must be greater than or equal to 0, got {min_tokens}.");
            return Err(ApiError::bad_request(message, None));
        }
        if min_tokens > max_tokens {
            let message = format!(
                "min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}."
            );
            return Err(ApiError::bad_request(message, None));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(ApiError::bad_request("stop cannot contain an empty string.", None));
        }
        let is_greedy = self.temperature.is_some_and(|temperature| temperature < GREEDY_TEMPERATURE);
        if self.n > 1 && is_greedy {
            let message = format!("n must be 1 when using greedy sampling, got {}.", self.n);
            return Err(ApiError::bad_request(message, None));
        }
        let small = |n: i64| u32::try_from(n).unwrap_or(max_model_len);
        Ok(Limits {
            max_tokens: small(max_tokens),
            min_tokens: small(min_tokens),
            ignore_eos: self.ignore_eos,
            stop_token_ids: self.checked_stop_token_ids(model)?,
            stop: self.stop_strings(),
            seed: self.seed,
        })
    }

    /// Checks like vLLM's `SamplingParams._verify_args`, up to the limits on tokens.
    fn check_ranges(&self, version: VllmVersion) -> Result<(), ApiError> {
        let refused = |message: String| Err(ApiError::bad_request(message, None));
        let n = self.n;
        if n < 1 {
            return refused(format!("n must be at least 1, got {n}."));
        }
        if n > N_MAX {
            return refused(format!(
                "n must be at most {N_MAX}, got {n}. To increase this limit, set the VLLM_MAX_N_SEQUENCES environment \
                 variable."
            ));
        }
        for (name, value) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            if let Some(value) = value.filter(|value| !(-2.0..=2.0).contains(value)) {
                return refused(format!("{name} must be in [-2, 2], got {}.", float_repr(value)));
            }
        }
        let is_checked = version == VllmVersion::V0_33;
        let not_finite = |value: &f64| is_checked && !value.is_finite();
        if let Some(value) = self.repetition_penalty.filter(not_finite) {
            let value = float_repr(value);
            return refused(format!("repetition_penalty must be a finite number, got {value}."));
        }
        if let Some(value) = self.repetition_penalty.filter(|value| *value <= 0.0) {
            return refused(format!("repetition_penalty must be greater than zero, got {value:?}."));
        }
        match self.temperature {
            Some(value) if not_finite(&value) => {
                return Err(out_of_range("temperature", "be a finite number", value));
            }
            Some(value) if value < 0.0 => {
                return Err(out_of_range("temperature", "be non-negative", value));
            }
            Some(value) if value > 2.0 && version == VllmVersion::V0_33 => {
                return Err(out_of_range("temperature", "be in [0, 2]", value));
            }
            Some(_) | None => {}
        }
        if let Some(value) = self.top_p.filter(|value| !(*value > 0.0 && *value <= 1.0)) {
            return Err(out_of_range("top_p", "be in (0, 1]", value));
        }
        if let Some(value) = self.top_k {
            let (is_bad, off) = match version {
                VllmVersion::V0_8 => (value < -1 || value == 0, -1),
                VllmVersion::V0_11 | VllmVersion::V0_33 => (value < -1, 0),
            };
            if is_bad {
                return refused(format!("top_k must be {off} (disable), or at least 1, got {value}."));
            }
        }
        match self.min_p.filter(|value| !(0.0..=1.0).contains(value)) {
            Some(value) => refused(format!("min_p must be in [0, 1], got {}.", float_repr(value))),
            None => Ok(()),
        }
    }

    fn checked_stop_token_ids(&self, model: ModelLimits) -> Result<Vec<u32>, ApiError> {
        let ModelLimits { vocabulary_len, .. } = model;
        let known = |id: &i64| u32::try_from(*id).ok().filter(|id| *id < vocabulary_len);
        let unknown: Vec<i64> =
            self.stop_token_ids.iter().copied().filter(|id| known(id).is_none()).collect();
        if !unknown.is_empty() && model.version == VllmVersion::V0_33 {
            let message = format!(
                "token_id(s) {unknown:?} in stop_token_ids contain out-of-vocab token ids. Vocabulary size: \
                 {vocabulary_len}"
            );
            return Err(ApiError::bad_parameter(&message, "stop_token_ids", format!("{unknown:?}")));
        }
        Ok(self.stop_token_ids.iter().filter_map(known).collect())
    }

    fn stop_strings(&self) -> StopStrings {
        let visibility = if self.include_stop_str_in_output { Visibility::Shown } else { Visibility::Hidden };
        StopStrings::new(self.stop.iter().cloned(), visibility)
    }
}

// === impl MaxTokens ===

impl MaxTokens {
    fn parse(fields: &mut Fields, api: Api) -> Self {
        let max_tokens = fields.integer("max_tokens");
        match api {
            Api::Chat => match fields.integer("max_completion_tokens") {
                value @ Some(_) => Self { value, field: "max_completion_tokens" },
                None => Self { value: max_tokens, field: "max_tokens" },
            },
            Api::Completion => {
                Self { value: max_tokens.or(Some(COMPLETION_MAX_TOKENS)), field: "max_tokens" }
            }
        }
    }

    /// Checks the prompt and the limit against the context.
    fn check(self, n_prompt: i64, context: i64, version: VllmVersion) -> Result<(), ApiError> {
        let Self { value, field } = self;
        match version {
            VllmVersion::V0_8 => {
                let refused = |message: String| Err(ApiError::bad_request(message, None));
                let begin = format!(
                    "This model's maximum context length is {context} tokens. However, you requested"
                );
                match value {
                    None if n_prompt >= context => refused(format!(
                        "{begin} {n_prompt} tokens in the messages, Please reduce the length of the messages."
                    )),
                    Some(value) if n_prompt.saturating_add(value) > context => refused(format!(
                        "{begin} {} tokens ({n_prompt} in the messages, {value} in the completion). Please reduce the \
                         length of the messages or completion.",
                        n_prompt.saturating_add(value)
                    )),
                    Some(_) | None => Ok(()),
                }
            }
            VllmVersion::V0_11 if n_prompt >= context => Err(ApiError::bad_request(
                format!(
                    "This model's maximum context length is {context} tokens. However, your request has {n_prompt} input \
                     tokens. Please reduce the length of the input messages."
                ),
                None,
            )),
            VllmVersion::V0_11 => match value.filter(|value| n_prompt.saturating_add(*value) > context) {
                None => Ok(()),
                Some(value) => Err(ApiError::bad_request(
                    format!(
                        "'max_tokens' or 'max_completion_tokens' is too large: {value}. This model's maximum context \
                         length is {context} tokens and your request has {n_prompt} input tokens ({value} > {context} - \
                         {n_prompt})."
                    ),
                    None,
                )),
            },
            // vLLM 0.33 shortens a longer answer than the prompt leaves room for, without an error.
            VllmVersion::V0_33 => match value.filter(|value| *value > context) {
                None => Ok(()),
                Some(value) => Err(ApiError::bad_parameter(
                    &format!(
                        "{field}={value} cannot be greater than max_model_len={context}. Please request fewer output \
                         tokens."
                    ),
                    field,
                    value,
                )),
            },
        }
    }
}

fn stop_token_ids(fields: &mut Fields) -> Vec<i64> {
    let ids =
        fields.typed("stop_token_ids", "list_type", "Input should be a valid list of integers", |value| {
            value.as_array()?.iter().map(Value::as_i64).collect()
        });
    ids.unwrap_or_default()
}

fn out_of_range(parameter: &str, rule: &str, value: f64) -> ApiError {
    let value = float_repr(value);
    let message = format!("{parameter} must {rule}, got {value}.");
    ApiError::bad_parameter(&message, parameter, value)
}
