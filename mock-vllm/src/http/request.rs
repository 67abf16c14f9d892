//! Requests for text, parsed and checked once, in vLLM's order and with its texts.

use super::body::{Fields, token_ids};
use super::error::ApiError;
use super::messages::chat_prompt;
use super::wire::Api;
use crate::reply::Limits;
use crate::tokens::chat::Chat;
use serde_json::Value;

/// vLLM's default for completions; a chat may fill the context.
const COMPLETION_MAX_TOKENS: i64 = 16;
/// vLLM 0.33: of `cache_salt`.
const SALT_MAX_CHARS: usize = 128;

/// A request whose fields have the right types; `check` holds them against the model.
#[derive(Debug)]
pub(crate) struct TextRequest {
    pub(crate) model: Option<String>,
    pub(crate) prompt: PromptInput,
    pub(crate) delivery: DeliveryMode,
    pub(crate) cache_salt: Option<String>,
    pub(crate) priority: i32,
    pub(crate) request_id: Option<String>,
    sampling: Sampling,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PromptInput {
    Chat(Chat),
    Text(String),
    TokenIds(Vec<u32>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeliveryMode {
    Plain,
    Stream(StreamUsageMode),
}

/// `stream_options`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamUsageMode {
    None,
    AtEnd,
    Continuous,
}

#[derive(Debug)]
struct Sampling {
    max_tokens: Option<i64>,
    min_tokens: i64,
    temperature: Option<f64>,
    ignore_eos: bool,
    stop_token_ids: Vec<u32>,
    stop: Vec<String>,
    seed: Option<i64>,
    n: i64,
}

// === impl TextRequest ===

impl TextRequest {
    /// # Errors
    /// For all fields that are missing or of the wrong type.
    pub(crate) fn parse(api: Api, body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let prompt = match api {
            Api::Chat => chat_prompt(&mut fields),
            Api::Completion => completion_prompt(&mut fields),
        };
        let delivery = delivery_mode(&mut fields)?;
        let priority = fields.integer("priority").unwrap_or_default();
        let cache_salt = fields.string("cache_salt");
        if cache_salt.as_deref().is_some_and(|salt| !is_valid_salt(salt)) {
            fields.error("value_error", "cache_salt", SALT_RULE, Value::from(cache_salt.clone()));
        }
        let request = Self {
            model: fields.string("model").filter(|model| !model.is_empty()),
            prompt: prompt.unwrap_or(PromptInput::TokenIds(Vec::new())),
            delivery,
            cache_salt,
            priority: i32::try_from(priority).unwrap_or(if priority < 0 { i32::MIN } else { i32::MAX }),
            request_id: fields.string("request_id"),
            sampling: Sampling::parse(&mut fields, api),
        };
        let wants_tools = api == Api::Chat && wants_tools(&mut fields);
        fields.finish()?;
        if wants_tools {
            return Err(ApiError::bad_request(
                "\"auto\" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set",
                None,
            ));
        }
        Ok(request)
    }

    /// Holds the sampling parameters against a prompt of `n_prompt` tokens.
    ///
    /// # Errors
    /// What vLLM refuses: a prompt that is too long, limits that leave nothing to generate, values out of range.
    pub(crate) fn limits(&self, n_prompt: usize, max_model_len: u32) -> Result<Limits, ApiError> {
        let Sampling { max_tokens, min_tokens, temperature, ignore_eos, stop_token_ids, stop, seed, n } =
            &self.sampling;
        if *n != 1 {
            return Err(ApiError::bad_parameter(&format!("n must be 1 on this server, got {n}."), "n", n));
        }
        if !stop.is_empty() {
            return Err(ApiError::bad_request("stop strings are not supported by this server", Some("stop")));
        }
        check_prompt_length(n_prompt, max_model_len)?;
        let context = i64::from(max_model_len);
        if let Some(max_tokens) = max_tokens.filter(|max_tokens| *max_tokens > context) {
            return Err(ApiError::bad_parameter(
                &format!(
                    "max_tokens={max_tokens} cannot be greater than max_model_len={max_model_len}. Please request \
                     fewer output tokens."
                ),
                "max_tokens",
                max_tokens,
            ));
        }
        let room = context - i64::try_from(n_prompt).unwrap_or(context);
        let clamped = max_tokens.unwrap_or(room).min(room);
        let Some(max_tokens) = u32::try_from(clamped).ok().filter(|max_tokens| *max_tokens > 0) else {
            let message = format!("max_tokens must be at least 1, got {clamped}.");
            return Err(ApiError::bad_parameter(&message, "max_tokens", clamped));
        };
        check_temperature(*temperature)?;
        let Some(min_tokens) = u32::try_from(*min_tokens).ok().filter(|min_tokens| *min_tokens <= max_tokens)
        else {
            let message = if *min_tokens < 0 {
                format!("min_tokens must be greater than or equal to 0, got {min_tokens}.")
            } else {
                format!("min_tokens must be less than or equal to max_tokens={max_tokens}, got {min_tokens}.")
            };
            return Err(ApiError::bad_request(message, None));
        };
        Ok(Limits {
            max_tokens,
            min_tokens,
            ignore_eos: *ignore_eos,
            stop_token_ids: stop_token_ids.clone(),
            seed: *seed,
        })
    }
}

// === impl PromptInput ===

impl PromptInput {
    /// What scripted replies are looked up by.
    pub(crate) fn last_user_text(&self) -> Option<String> {
        match self {
            Self::Chat(chat) => chat.last_user_text(),
            Self::Text(text) => Some(text.clone()),
            Self::TokenIds(_) => None,
        }
    }
}

// === impl Sampling ===

impl Sampling {
    fn parse(fields: &mut Fields, api: Api) -> Self {
        let max_tokens = fields.integer("max_tokens");
        let max_tokens = match api {
            Api::Chat => fields.integer("max_completion_tokens").or(max_tokens),
            Api::Completion => max_tokens.or(Some(COMPLETION_MAX_TOKENS)),
        };
        let stop = fields.strings("stop").unwrap_or_default();
        Self {
            max_tokens,
            min_tokens: fields.integer("min_tokens").unwrap_or_default(),
            temperature: fields.number("temperature"),
            ignore_eos: fields.boolean("ignore_eos").unwrap_or_default(),
            stop_token_ids: fields.integers("stop_token_ids").unwrap_or_default(),
            stop: stop.into_iter().filter(|text| !text.is_empty()).collect(),
            seed: fields.integer("seed"),
            n: fields.integer("n").unwrap_or(1),
        }
    }
}

/// # Errors
/// When a prompt of `n_prompt` tokens is empty or leaves no token to generate.
pub(crate) fn check_prompt_length(n_prompt: usize, max_model_len: u32) -> Result<(), ApiError> {
    if n_prompt == 0 {
        return Err(ApiError::bad_request("The decoder prompt cannot be empty", Some("prompt")));
    }
    if n_prompt <= max_model_len as usize {
        return Ok(());
    }
    // vLLM's tokenizer stops at one token too many, so that is the number it knows.
    let n_known = u64::from(max_model_len) + 1;
    Err(ApiError::bad_parameter(
        &format!(
            "This model's maximum context length is {max_model_len} tokens. However, your prompt contains at least \
             {n_known} input tokens, which exceeds this limit even without any output tokens. Please reduce the length \
             of the input prompt."
        ),
        "input_tokens",
        n_known,
    ))
}

fn completion_prompt(fields: &mut Fields) -> Option<PromptInput> {
    let prompt = fields.typed(
        "prompt",
        "prompt_type",
        "Input should be one prompt: a string, or a list of token ids",
        |value| match value {
            Value::String(text) => Some(PromptInput::Text(text.clone())),
            Value::Array(items) => match items.as_slice() {
                [Value::String(text)] => Some(PromptInput::Text(text.clone())),
                [ids @ Value::Array(_)] => token_ids(ids).map(PromptInput::TokenIds),
                _ => token_ids(value).map(PromptInput::TokenIds),
            },
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
        },
    );
    fields.required("prompt", prompt)
}

fn delivery_mode(fields: &mut Fields) -> Result<DeliveryMode, ApiError> {
    let streams = fields.boolean("stream").unwrap_or_default();
    let Some(options) = fields.object("stream_options") else {
        return Ok(if streams { DeliveryMode::Stream(StreamUsageMode::None) } else { DeliveryMode::Plain });
    };
    if !streams {
        let message = "Stream options can only be defined when `stream=True`.";
        return Err(ApiError::bad_request(message, Some("stream_options")));
    }
    let is_set = |name: &str| options.get(name).and_then(Value::as_bool).unwrap_or_default();
    let include_usage = options.get("include_usage").and_then(Value::as_bool);
    Ok(DeliveryMode::Stream(match (include_usage, is_set("continuous_usage_stats")) {
        (Some(true), true) => StreamUsageMode::Continuous,
        // vLLM: `include_usage` is true by default once there are stream options.
        (Some(true) | None, _) => StreamUsageMode::AtEnd,
        (Some(false), _) => StreamUsageMode::None,
    }))
}

const SALT_RULE: &str = "Value error, cache_salt must be a non-empty string of at most 128 characters without any of `@`, `/`, `\\\\`, NUL";

fn is_valid_salt(salt: &str) -> bool {
    !salt.is_empty() && salt.chars().count() <= SALT_MAX_CHARS && !salt.contains(['@', '/', '\\', '\0'])
}

fn wants_tools(fields: &mut Fields) -> bool {
    let tools = fields.typed("tools", "list_type", "Input should be a valid list", |value| {
        value.as_array().map(|tools| !tools.is_empty())
    });
    let choice = fields.typed("tool_choice", "", "", |value| Some(value.clone()));
    tools.unwrap_or_default() && choice != Some(Value::from("none"))
}

fn check_temperature(temperature: Option<f64>) -> Result<(), ApiError> {
    match temperature {
        Some(value) if value < 0.0 => Err(ApiError::bad_request(
            format!("temperature must be non-negative, got {value}."),
            Some("temperature"),
        )),
        Some(value) if value > 2.0 => Err(ApiError::bad_request(
            format!("temperature must be in [0, 2], got {value}."),
            Some("temperature"),
        )),
        Some(_) | None => Ok(()),
    }
}
