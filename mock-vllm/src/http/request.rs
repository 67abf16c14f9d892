//! Requests for text, parsed and checked once, in vLLM's order and with its error texts.

use super::body::{Fields, token_ids};
use super::error::ApiError;
use super::logprobs::LogprobsRequest;
use super::messages::chat_prompt;
use super::prompt::PromptInput;
use super::sampling::Sampling;
use super::shape::ReplyShape;
use super::wire::Api;
use serde_json::Value;
use vllm_engine::vllm_version::VllmVersion;

/// Most characters of `cache_salt` in vLLM 0.33.
const SALT_MAX_CHARS: usize = 128;
/// vLLM 0.33 `envs.py`: `VLLM_MAX_COMPLETION_PROMPTS`. Older versions have no limit; here it holds for all.
const PROMPTS_MAX: usize = 1_024;

/// A request whose fields have the right types. Prompts and parameters are checked against the model later.
#[derive(Debug)]
pub(crate) struct TextRequest {
    pub(crate) model: Option<String>,
    /// Prompts, at least one; a chat has one.
    pub(crate) prompts: Vec<PromptInput>,
    pub(crate) delivery: DeliveryMode,
    pub(crate) cache_salt: Option<String>,
    pub(crate) priority: i32,
    pub(crate) request_id: Option<String>,
    pub(crate) sampling: Sampling,
    pub(crate) extras: Extras,
    pub(crate) shape: ReplyShape,
    pub(crate) logprobs: LogprobsRequest,
}

/// Additions to the answer that a request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extras {
    /// `return_token_ids`
    pub(crate) token_ids: bool,
    /// `return_prompt_text`
    pub(crate) prompt_text: bool,
    /// Repeat the prompt before a completion's reply, or before a chat's reply the message that it continues.
    pub(crate) echo: bool,
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

// === impl TextRequest ===

impl TextRequest {
    /// Reads a body.
    ///
    /// # Errors
    /// Fails for all fields that are missing or of the wrong type.
    pub(crate) fn parse(api: Api, version: VllmVersion, body: &[u8]) -> Result<Self, ApiError> {
        Self::from_fields(api, version, Fields::parse(body)?)
    }

    /// Reads fields.
    ///
    /// # Errors
    /// Fails like [`Self::parse`].
    pub(crate) fn from_fields(api: Api, version: VllmVersion, mut fields: Fields) -> Result<Self, ApiError> {
        let delivery = delivery_mode(&mut fields, version)?;
        check_salt(&fields)?;
        let shape = ReplyShape::parse(&fields, api, version)?;
        let logprobs = LogprobsRequest::parse(&mut fields, api, version)?;
        let prompts = match api {
            Api::Chat => chat_prompt(&mut fields, version)?.map(|prompt| vec![prompt]),
            Api::Completion => completion_prompts(&mut fields, version)?,
        };
        let priority = fields.integer("priority").unwrap_or_default();
        let request = Self {
            model: fields.string("model").filter(|model| !model.is_empty()),
            prompts: prompts.unwrap_or_default(),
            delivery,
            cache_salt: fields.string("cache_salt"),
            priority: i32::try_from(priority).unwrap_or(if priority < 0 { i32::MIN } else { i32::MAX }),
            request_id: fields.string("request_id"),
            sampling: Sampling::parse(&mut fields, api),
            extras: Extras::parse(&mut fields, version),
            shape,
            logprobs,
        };
        fields.finish()?;
        Ok(request)
    }
}

// === impl Extras ===

impl Extras {
    fn parse(fields: &mut Fields, version: VllmVersion) -> Self {
        let [token_ids, prompt_text, echo] = ["return_token_ids", "return_prompt_text", "echo"]
            .map(|field| fields.boolean(field).unwrap_or_default());
        Self {
            token_ids: token_ids && version != VllmVersion::V0_8,
            prompt_text: prompt_text && version == VllmVersion::V0_33,
            echo,
        }
    }
}

/// Reads a string, a list of token ids, or a list of either.
fn completion_prompts(
    fields: &mut Fields,
    version: VllmVersion,
) -> Result<Option<Vec<PromptInput>>, ApiError> {
    let is_absent = fields.raw("prompt").is_none_or(|prompt| prompt == "");
    match version {
        VllmVersion::V0_8 => {}
        VllmVersion::V0_11 => {
            if fields.raw("prompt").is_none() {
                let message = "At least one of `prompt` or `prompt_embeds` must be set.";
                return Err(fields.refused(message, Some("prompt")));
            }
        }
        VllmVersion::V0_33 if is_absent => {
            let message = "Either prompt or prompt_embeds must be provided and non-empty.";
            return Err(fields.refused(message, Some("prompt")));
        }
        VllmVersion::V0_33 => {}
    }
    let list = fields.raw("prompt").and_then(Value::as_array);
    if let Some(n_prompts) = list.filter(|list| !list.iter().all(Value::is_u64)).map(Vec::len)
        && n_prompts > PROMPTS_MAX
    {
        let message = format!(
            "prompt list length {n_prompts} exceeds the maximum allowed count of {PROMPTS_MAX}. To increase this limit, \
             set the VLLM_MAX_COMPLETION_PROMPTS environment variable."
        );
        return Err(fields.refused(&message, Some("prompt")));
    }
    let message =
        "Input should be a string, a list of token ids, or a list of prompts that are all of one kind";
    let prompts = fields.typed("prompt", "prompt_type", message, |value| {
        let texts = |items: &[Value]| -> Option<Vec<PromptInput>> {
            items.iter().map(|item| Some(PromptInput::Text(item.as_str()?.to_owned()))).collect()
        };
        match value {
            Value::String(text) => Some(vec![PromptInput::Text(text.clone())]),
            Value::Array(items) => match items.first() {
                Some(Value::String(_)) => texts(items),
                Some(Value::Array(_)) => {
                    items.iter().map(|ids| token_ids(ids).map(PromptInput::TokenIds)).collect()
                }
                _ => token_ids(value).map(|ids| vec![PromptInput::TokenIds(ids)]),
            },
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
        }
    });
    Ok(fields.required("prompt", prompts))
}

fn delivery_mode(fields: &mut Fields, version: VllmVersion) -> Result<DeliveryMode, ApiError> {
    let streams = fields.boolean("stream").unwrap_or_default();
    let options = fields.object("stream_options").filter(|options| !options.is_empty());
    let Some(options) = options else {
        return Ok(if streams { DeliveryMode::Stream(StreamUsageMode::None) } else { DeliveryMode::Plain });
    };
    if !streams {
        let message = "Stream options can only be defined when `stream=True`.";
        return Err(fields.refused(message, Some("stream_options")));
    }
    let is_set = |name: &str| options.get(name).and_then(Value::as_bool);
    // With stream options but without `include_usage`, usage was on before 0.33 and is off since.
    let by_default = version != VllmVersion::V0_33 && !options.contains_key("include_usage");
    let usage = match (is_set("include_usage"), is_set("continuous_usage_stats").unwrap_or_default()) {
        (Some(false), _) => StreamUsageMode::None,
        (None, _) if !by_default => StreamUsageMode::None,
        (Some(true) | None, true) => StreamUsageMode::Continuous,
        (Some(true) | None, false) => StreamUsageMode::AtEnd,
    };
    Ok(DeliveryMode::Stream(usage))
}

fn check_salt(fields: &Fields) -> Result<(), ApiError> {
    let Some(salt) = fields.raw("cache_salt") else { return Ok(()) };
    let message = match salt.as_str() {
        None | Some("") => "Parameter 'cache_salt' must be a non-empty string if provided.",
        Some(salt) if salt.chars().count() > SALT_MAX_CHARS || salt.contains(['@', '/', '\\', '\0']) => {
            r"Parameter 'cache_salt' must be at most 128 characters and must not contain '@', '/', '\\', or NUL."
        }
        Some(_) => return Ok(()),
    };
    Err(fields.refused(message, Some("cache_salt")))
}
