//! The part of a request that costs CPU time: the tokens of its prompts, its replies, and the rest of the answer.

use super::answer::{AnswerPlan, AnsweredPrompt, DetailsMode, ReplyMode};
use super::error::ApiError;
use super::logprobs::LogprobsCounts;
use super::prompt::PromptInput;
use super::request::{DeliveryMode, StreamUsageMode, TextRequest};
use super::sampling::{ModelLimits, PromptLength};
use super::shape::{Occasion, Outline};
use super::wire::logprobs::{LogprobsWriter, prompt_logprobs};
use super::wire::{Api, Envelope};
use super::{Pod, PodConfig};
use crate::clock::{Clock, SimTime};
use crate::driver::Submission;
use crate::metrics::requests::SampleGroup;
use crate::structured::tools::reply::ToolReply;
use std::sync::Arc;
use vllm_engine::request::{CacheReading, EngineRequest, LoraAdapter, RequestId};
use vllm_engine::vllm_version::VllmVersion;
use vllm_text::reply::visible_text::VisibleText;
use vllm_text::reply::{Limits, Prompt, Reply};
use vllm_text::tokens::SpecialTokens;
use vllm_text::tokens::chat::ChatMessage;

/// Model that a request's `model` names.
#[derive(Clone, Debug)]
pub(super) struct ResolvedModel {
    /// Name of the model in answers.
    pub(super) name: String,
    pub(super) lora: Option<Arc<LoraAdapter>>,
}

/// A checked request with the replies that were decided for it.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) delivery: DeliveryMode,
    pub(super) answer: AnswerPlan,
    /// Choices in the order of prompts, and of samples within a prompt.
    pub(super) choices: Vec<PreparedChoice>,
}

#[derive(Debug)]
pub(super) struct PreparedChoice {
    pub(super) prompt_idx: usize,
    pub(super) submission: Submission,
    pub(super) text: VisibleText,
    /// Tokens per piece.
    pub(super) interval: u32,
    calls: Option<Arc<ToolReply>>,
}

/// Token ids of a prompt, and the limits of its answer.
#[derive(Debug)]
pub(super) struct MeasuredPrompt {
    pub(super) ids: Arc<[u32]>,
    pub(super) limits: Limits,
}

/// Facts about a request that are not in its body.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) api: Api,
    pub(super) request_id: Arc<str>,
    pub(super) arrival: SimTime,
    pub(super) model: ResolvedModel,
}

/// Prepares a request.
///
/// # Errors
/// Fails for what does not fit the model or the server's flags.
pub(super) fn prepare(pod: &Pod, incoming: &Incoming, request: &TextRequest) -> Result<Prepared, ApiError> {
    Preparation { pod, incoming, request }.prepare()
}

/// Measures the prompts as the engine gets them.
///
/// # Errors
/// Fails like [`prepare`], except for what concerns only the answer.
pub(super) fn rendered(
    pod: &Pod,
    incoming: &Incoming,
    request: &TextRequest,
) -> Result<Vec<MeasuredPrompt>, ApiError> {
    request.shape.check_tool_calling(pod.config.output.tool_calling)?;
    let preparation = Preparation { pod, incoming, request };
    request.prompts.iter().map(|prompt| preparation.measured(prompt)).collect()
}

#[derive(Clone, Copy)]
struct Preparation<'a> {
    pod: &'a Pod,
    incoming: &'a Incoming,
    request: &'a TextRequest,
}

/// One prompt, and what all its samples share.
struct Samples<'a> {
    prompt_idx: usize,
    prompt: &'a PromptInput,
    ids: &'a Arc<[u32]>,
    limits: Limits,
    group: Option<Arc<SampleGroup>>,
    cache_reading: CacheReading,
}

// === impl Preparation ===

impl Preparation<'_> {
    fn prepare(self) -> Result<Prepared, ApiError> {
        let Self { pod, incoming, request } = self;
        let PodConfig { output, .. } = &pod.config;
        request.shape.check_tool_calling(output.tool_calling)?;
        let (mut prompts, mut choices) = (Vec::new(), Vec::new());
        for (prompt_idx, prompt) in request.prompts.iter().enumerate() {
            let MeasuredPrompt { ids, limits } = self.measured(prompt)?;
            let counts = request.logprobs.counts(output.max_logprobs, pod.tokenizer.vocabulary_len())?;
            let n = request.sampling.n();
            let group = (n > 1).then(|| Arc::new(SampleGroup::new(n)));
            let cache_reading = request.logprobs.cache_reading();
            let samples = Samples { prompt_idx, prompt, ids: &ids, limits, group, cache_reading };
            choices.extend(self.samples(&samples, n)?);
            prompts.push(self.answered(prompt, ids, counts));
        }
        let answer = AnswerPlan {
            envelope: self.envelope(),
            prompts,
            details: self.details_mode(),
            max_tokens: choices.last().map_or(0, |choice| choice.submission.max_tokens),
            token_ids: request.extras.token_ids,
            reply: self.reply_mode(),
            calls: choices.iter().map(|choice| choice.calls.clone()).collect(),
            is_parsed: incoming.api == Api::Chat && request.shape.is_parsed(output.tool_calling),
            logprobs: self.logprobs()?,
        };
        Ok(Prepared { delivery: self.delivery(), answer, choices })
    }

    fn samples(self, samples: &Samples<'_>, n: u32) -> Result<Vec<PreparedChoice>, ApiError> {
        let Self { pod, incoming, request } = self;
        let Samples { prompt_idx, prompt, ids, limits, group, cache_reading } = samples;
        let cache_salt: Option<Arc<str>> = request.cache_salt.as_deref().map(Arc::from);
        let last_user_text = prompt.last_user_text();
        let last_user_text = last_user_text.as_deref();
        let scripted = last_user_text.and_then(|text| pod.replier.scripted(text));
        let occasion = Occasion::new(prompt, last_user_text, scripted.as_deref());
        let choices = (0..n).map(|sample_idx| {
            let rng = || pod.replier.rng(ids, limits.seed, sample_idx);
            let outline = request.shape.outline(occasion, rng)?;
            let (text, calls) = match &outline {
                Outline::Words => (None, None),
                Outline::Text(text) => (Some(text.as_str()), None),
                Outline::Calls(calls) => (Some(calls.text()), Some(calls)),
            };
            let Reply { tokens, end } =
                pod.replier.reply(&Prompt { ids, last_user_text, limits, sample_idx, text });
            let engine_request = EngineRequest {
                id: RequestId(0),
                prompt: Arc::clone(ids),
                output: tokens,
                finish: end.finish_reason(),
                cache_salt: cache_salt.clone(),
                cache_reading: *cache_reading,
                lora: incoming.model.lora.clone(),
                priority: request.priority,
            };
            let submission = Submission {
                request: engine_request,
                request_id: incoming.request_id.clone(),
                arrival: incoming.arrival,
                max_tokens: limits.max_tokens,
                group: group.clone(),
            };
            let text = VisibleText::new(pod.tokenizer.detokenizer(), end, &limits.stop);
            let interval = request.sampling.stream_interval().max(pod.config.output.stream_interval);
            Ok(PreparedChoice { prompt_idx: *prompt_idx, submission, text, interval, calls: calls.cloned() })
        });
        choices.collect()
    }

    fn measured(self, prompt: &PromptInput) -> Result<MeasuredPrompt, ApiError> {
        let ids: Arc<[u32]> = self.pod.prompt_ids(prompt)?.into();
        let limits = self.limits(PromptLength::new(ids.len(), prompt))?;
        Ok(MeasuredPrompt { ids, limits })
    }

    fn limits(self, prompt: PromptLength) -> Result<Limits, ApiError> {
        let n_least = match self.reply_mode() {
            ReplyMode::Shown => 0,
            ReplyMode::Hidden => 1,
        };
        let PodConfig { version, max_model_len, .. } = self.pod.config;
        let vocabulary_len = self.pod.tokenizer.vocabulary_len();
        let model = ModelLimits { version, max_model_len, vocabulary_len };
        self.request.sampling.limits(prompt, n_least, model)
    }

    fn reply_mode(self) -> ReplyMode {
        match self.incoming.api {
            Api::Completion if self.request.extras.echo && self.request.sampling.wants_no_tokens() => {
                ReplyMode::Hidden
            }
            Api::Completion | Api::Chat => ReplyMode::Shown,
        }
    }

    fn answered(self, prompt: &PromptInput, ids: Arc<[u32]>, counts: LogprobsCounts) -> AnsweredPrompt {
        let Self { pod, incoming, request } = self;
        let text = || match prompt {
            // The chat has token ids, so it could be rendered before.
            PromptInput::Chat(chat) => pod.template.render(chat).unwrap_or_default(),
            PromptInput::Text(text) | PromptInput::PlainText(text) => text.clone(),
            PromptInput::TokenIds(ids) => pod.tokenizer.decode(ids, SpecialTokens::Show),
        };
        let echo = || match (incoming.api, prompt) {
            (Api::Chat, PromptInput::Chat(chat)) => {
                let last = chat.messages.last().filter(|message| message.role == pod.config.response_role);
                last.map(ChatMessage::text).filter(|content| !content.is_empty())
            }
            // vLLM gives no text with the prompt's ids.
            (Api::Completion | Api::Chat, _) if request.extras.token_ids => Some(String::new()),
            (Api::Completion | Api::Chat, _) => Some(text()),
        };
        AnsweredPrompt {
            echo: request.extras.echo.then(echo).flatten(),
            text: (request.extras.prompt_text && incoming.api == Api::Chat).then(text),
            logprobs: counts.prompt.map(|n_top| prompt_logprobs(pod.replier.scorer(), &ids, n_top)),
            ids,
        }
    }

    fn logprobs(self) -> Result<Option<LogprobsWriter>, ApiError> {
        let PodConfig { output, .. } = &self.pod.config;
        let vocabulary_len = self.pod.tokenizer.vocabulary_len();
        let counts = self.request.logprobs.counts(output.max_logprobs, vocabulary_len)?;
        Ok(counts.sample.map(|n_top| LogprobsWriter {
            scorer: self.pod.replier.scorer().clone(),
            api: self.incoming.api,
            n_top,
            as_ids: self.request.logprobs.as_ids.unwrap_or(output.tokens_as_ids),
        }))
    }

    fn envelope(self) -> Envelope {
        let Incoming { api, request_id, arrival: _, model } = self.incoming;
        let config = &self.pod.config;
        Envelope {
            api: *api,
            version: config.version,
            id: format!("{}{request_id}", api.id_prefix()),
            created: Clock::unix_now().as_secs(),
            model: model.name.clone(),
            role: config.response_role.clone(),
            fingerprint: config.fingerprint.clone(),
        }
    }

    fn details_mode(self) -> DetailsMode {
        let PodConfig { usage, prefix_caching, block_size, .. } = self.pod.config;
        if usage.prompt_tokens_details {
            DetailsMode::On { block_size: prefix_caching.then_some(block_size) }
        } else {
            DetailsMode::Off
        }
    }

    /// Returns how the answer is sent. `--enable-force-include-usage` acts as if the request had asked for all usage.
    /// Older versions have no such flag, or use it only beside `stream_options`.
    fn delivery(self) -> DeliveryMode {
        match (self.request.delivery, self.pod.config.version) {
            (DeliveryMode::Stream(_), VllmVersion::V0_33) if self.pod.config.usage.forced => {
                DeliveryMode::Stream(StreamUsageMode::Continuous)
            }
            (asked, _) => asked,
        }
    }
}
