//! One request for text from body to head of the answer: parse, tokenize, decide the replies, and hand them to the driver,
//! which spends the time. A client that goes away drops the tickets, which aborts the requests.

use super::answer::{Answer, AnsweredPrompt, DetailsMode, ReplyMode};
use super::choices::{Choice, Choices};
use super::error::ApiError;
use super::ground_truth::PrefixHit;
use super::record::Record;
use super::request::{DeliveryMode, Extras, PromptInput, StreamUsageMode, TextRequest};
use super::sampling::{ModelLimits, PromptLength};
use super::shape::{Occasion, Outline};
use super::stream;
use super::wire::{Api, Envelope};
use super::{Pod, PodConfig};
use crate::driver::backlog::SubmitError;
use crate::driver::clock::{Clock, SimTime};
use crate::driver::{Admission, Submission, Ticket};
use crate::engine::request::{EngineRequest, LoraAdapter, RequestId};
use crate::metrics::requests::SampleGroup;
use crate::reply::visible_text::VisibleText;
use crate::reply::{Prompt, Reply};
use crate::structured::tools::reply::ToolReply;
use crate::tokens::SpecialTokens;
use crate::tokens::chat::ChatMessage;
use crate::vllm_version::VllmVersion;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{StatusCode, header};
use std::sync::Arc;

/// Bodies larger than this are tokenized away from the threads that serve sockets.
const INLINE_BODY_LIMIT: usize = 32 << 10;

/// A checked request with its decided replies.
#[derive(Debug)]
struct Prepared {
    delivery: DeliveryMode,
    answer: Answer,
    /// In order of prompts, and of samples within a prompt.
    choices: Vec<PreparedChoice>,
}

#[derive(Debug)]
struct PreparedChoice {
    prompt_idx: usize,
    submission: Submission,
    text: VisibleText,
    interval: u32,
}

/// One of the `n` replies to a prompt.
#[derive(Debug)]
struct Sample {
    submission: Submission,
    text: VisibleText,
    calls: Option<Arc<ToolReply>>,
}

/// A request that the driver has, and how to answer it.
#[derive(Debug)]
struct Started {
    delivery: DeliveryMode,
    answer: Answer,
    choices: Vec<Choice>,
}

/// What a request's `model` stands for.
#[derive(Clone, Debug)]
pub(super) struct ResolvedModel {
    /// As answers call it.
    pub(super) name: String,
    pub(super) lora: Option<Arc<LoraAdapter>>,
}

/// What preparing a request needs to know of it beside its body.
#[derive(Debug)]
struct Incoming {
    api: Api,
    request_id: Arc<str>,
    arrival: SimTime,
    model: ResolvedModel,
}

/// Answers a request that arrived with `body`.
pub(super) async fn generate(pod: Arc<Pod>, api: Api, header_id: Option<String>, body: Bytes) -> Response {
    let arrival = pod.driver.clock().now();
    let mut record = Record::new(pod.clone(), api, arrival);
    match start(&pod, api, header_id, body, &mut record).await {
        Ok(Started { delivery, answer, choices }) => {
            let mut choices = Choices::new(choices, record);
            let admission = choices.admission().await;
            let Some(Admission { cached_tokens, .. }) = admission else {
                return plain(&answer, choices).await;
            };
            let n_prompt_tokens = answer.prompts.first().map_or(0, |prompt| prompt.ids.len());
            let hit = PrefixHit::new(cached_tokens, n_prompt_tokens, pod.config.block_size);
            hit.on(match delivery {
                DeliveryMode::Plain => plain(&answer, choices).await,
                DeliveryMode::Stream(usage) => stream::respond(answer, choices, usage),
            })
        }
        Err(error) => {
            record.fail(&error);
            drop(record);
            error.into_response()
        }
    }
}

async fn plain(answer: &Answer, choices: Choices) -> Response {
    match answer.body(choices).await {
        Ok(body) => (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn start(
    pod: &Arc<Pod>,
    api: Api,
    header_id: Option<String>,
    body: Bytes,
    record: &mut Record,
) -> Result<Started, ApiError> {
    let parsed = TextRequest::parse(api, pod.config.version, &body);
    let body_id = parsed.as_ref().ok().and_then(|request| request.request_id.clone());
    record.line.request_id = header_id.or(body_id).unwrap_or_else(new_request_id);
    let request = parsed?;
    record.line.model.clone_from(&request.model);
    record.line.stream = matches!(request.delivery, DeliveryMode::Stream(_));
    let incoming = Incoming {
        api,
        request_id: record.line.request_id.as_str().into(),
        arrival: record.arrival,
        model: pod.resolve_model(request.model.as_deref())?,
    };
    let preparing = pod.clone();
    let prepare = move || prepare(&preparing, &incoming, request);
    let Prepared { delivery, answer, choices } = if body.len() > INLINE_BODY_LIMIT {
        tokio::task::spawn_blocking(prepare).await.map_err(|_panicked| ApiError::engine_dead())??
    } else {
        prepare()?
    };
    record.prompts(answer.prompts.iter().map(|prompt| &*prompt.ids));
    let choices = choices.into_iter().map(|choice| {
        let PreparedChoice { prompt_idx, submission, text, interval } = choice;
        let tokens = submission.request.output.clone();
        let ticket = pod.submit(submission)?;
        Ok(Choice::new(prompt_idx, ticket, tokens, text, interval))
    });
    Ok(Started { delivery, answer, choices: choices.collect::<Result<_, ApiError>>()? })
}

/// The part that costs CPU: tokens of the prompts, tokens of the replies.
fn prepare(pod: &Pod, incoming: &Incoming, request: TextRequest) -> Result<Prepared, ApiError> {
    let mut prompts = Vec::new();
    let mut choices = Vec::new();
    let mut calls = Vec::new();
    let tool_calling = pod.config.output.tool_calling;
    request.shape.check_tool_calling(tool_calling)?;
    for (prompt_idx, prompt) in request.prompts.iter().enumerate() {
        let ids: Arc<[u32]> = pod.prompt_ids(prompt)?.into();
        for Sample { submission, text, calls: sample_calls } in
            prepare_samples(pod, incoming, &request, prompt, &ids)?
        {
            let interval = request.sampling.stream_interval();
            choices.push(PreparedChoice { prompt_idx, submission, text, interval });
            calls.push(sample_calls);
        }
        prompts.push(pod.answered_prompt(incoming.api, request.extras, prompt, ids));
    }
    let answer = Answer {
        envelope: pod.envelope(incoming),
        prompts,
        details: pod.details_mode(),
        token_ids: request.extras.token_ids,
        reply: reply_mode(incoming.api, &request),
        calls,
        is_parsed: incoming.api == Api::Chat && request.shape.is_parsed(tool_calling),
    };
    Ok(Prepared { delivery: pod.delivery(request.delivery), answer, choices })
}

/// The `n` samples of one prompt.
fn prepare_samples(
    pod: &Pod,
    incoming: &Incoming,
    request: &TextRequest,
    prompt: &PromptInput,
    ids: &Arc<[u32]>,
) -> Result<Vec<Sample>, ApiError> {
    let length = PromptLength::new(ids.len(), prompt);
    let n_least = match reply_mode(incoming.api, request) {
        ReplyMode::Shown => 0,
        ReplyMode::Hidden => 1,
    };
    let limits = request.sampling.limits(length, n_least, pod.model_limits())?;
    let n = request.sampling.n();
    let group = (n > 1).then(|| Arc::new(SampleGroup::new(n)));
    let cache_salt: Option<Arc<str>> = request.cache_salt.as_deref().map(Arc::from);
    let last_user_text = prompt.last_user_text();
    let last_user_text = last_user_text.as_deref();
    let scripted = last_user_text.and_then(|text| pod.replier.scripted(text));
    let occasion = Occasion::new(prompt, last_user_text, scripted.as_deref());
    let samples = (0..n).map(|sample_idx| {
        let rng = || pod.replier.rng(ids, limits.seed, sample_idx);
        let outline = request.shape.outline(occasion, rng)?;
        let text = match &outline {
            Outline::Words => None,
            Outline::Text(text) => Some(text.as_str()),
            Outline::Calls(calls) => Some(calls.text()),
        };
        let reply_prompt = Prompt { ids, last_user_text, limits: &limits, sample_idx, text };
        let Reply { tokens, end } = pod.replier.reply(&reply_prompt);
        let engine_request = EngineRequest {
            id: RequestId(0),
            prompt: ids.clone(),
            output: tokens,
            finish: end.finish_reason(),
            cache_salt: cache_salt.clone(),
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
        let calls = match outline {
            Outline::Words | Outline::Text(_) => None,
            Outline::Calls(calls) => Some(calls),
        };
        Ok(Sample { submission, text, calls })
    });
    samples.collect()
}

fn reply_mode(api: Api, request: &TextRequest) -> ReplyMode {
    match api {
        Api::Completion if request.extras.echo && request.sampling.wants_no_tokens() => ReplyMode::Hidden,
        Api::Completion | Api::Chat => ReplyMode::Shown,
    }
}

// === impl Pod ===

impl Pod {
    /// `None` and the empty name are the base model; else a served name, or an adapter's.
    ///
    /// # Errors
    /// For a model that is not served.
    pub(super) fn resolve_model(&self, model: Option<&str>) -> Result<ResolvedModel, ApiError> {
        let names = &self.config.served_model_names;
        let base = || ResolvedModel { name: self.config.displayed_model().to_owned(), lora: None };
        let Some(model) = model.filter(|model| !model.is_empty()) else { return Ok(base()) };
        if names.iter().any(|name| name == model) {
            return Ok(base());
        }
        match self.loras.find(model) {
            Some(adapter) => Ok(ResolvedModel { name: adapter.name.clone(), lora: Some(adapter) }),
            None => {
                let known: Vec<String> = names.iter().cloned().chain(self.loras.names()).collect();
                Err(ApiError::model_not_found(model, &known))
            }
        }
    }

    /// # Errors
    /// When the queue is full or the engine dead.
    fn submit(&self, submission: Submission) -> Result<Ticket, ApiError> {
        self.driver.submit(submission).map_err(|error| match error {
            SubmitError::EngineDead(_) => ApiError::engine_dead(),
            SubmitError::QueueFull(limit) => {
                self.metrics.lock().record_admission_rejection(limit);
                ApiError::queue_full(limit)
            }
        })
    }

    /// # Errors
    /// For ids that the model has no embedding for.
    pub(super) fn prompt_ids(&self, prompt: &PromptInput) -> Result<Vec<u32>, ApiError> {
        match prompt {
            PromptInput::Chat(chat) => Ok(self.template.encode(chat)),
            PromptInput::Text(text) => Ok(self.tokenizer.encode(text)),
            PromptInput::TokenIds(ids) => {
                let unknown = ids.iter().find(|id| **id >= self.tokenizer.vocabulary_len());
                match unknown {
                    Some(id) => Err(ApiError::bad_request(
                        format!("Token id {id} is out of vocabulary"),
                        Some("prompt"),
                    )),
                    None => Ok(ids.clone()),
                }
            }
        }
    }

    fn answered_prompt(
        &self,
        api: Api,
        extras: Extras,
        prompt: &PromptInput,
        ids: Arc<[u32]>,
    ) -> AnsweredPrompt {
        let text = || match prompt {
            PromptInput::Chat(chat) => self.template.render(chat),
            PromptInput::Text(text) => text.clone(),
            PromptInput::TokenIds(ids) => self.tokenizer.decode(ids, SpecialTokens::Show),
        };
        let echo = match (api, prompt) {
            (Api::Chat, PromptInput::Chat(chat)) => {
                let last = chat.messages.last().filter(|message| message.role == self.config.response_role);
                last.map(ChatMessage::text).filter(|content| !content.is_empty())
            }
            // vLLM: who gets the prompt's ids needs no text.
            (Api::Completion | Api::Chat, _) if extras.token_ids => Some(String::new()),
            (Api::Completion | Api::Chat, _) => Some(text()),
        };
        AnsweredPrompt {
            ids,
            echo: echo.filter(|_| extras.echo),
            text: (extras.prompt_text && api == Api::Chat).then(text),
        }
    }

    fn envelope(&self, incoming: &Incoming) -> Envelope {
        let Incoming { api, request_id, arrival: _, model } = incoming;
        Envelope {
            api: *api,
            version: self.config.version,
            id: format!("{}{request_id}", api.id_prefix()),
            created: Clock::unix_now().as_secs(),
            model: model.name.clone(),
            role: self.config.response_role.clone(),
            fingerprint: self.config.fingerprint.clone(),
        }
    }

    fn details_mode(&self) -> DetailsMode {
        if self.config.usage.prompt_tokens_details {
            DetailsMode::On { block_size: self.config.prefix_caching.then_some(self.config.block_size) }
        } else {
            DetailsMode::Off
        }
    }

    /// `--enable-force-include-usage` is as if the request had asked for all there is. The older ones know no such flag, or
    /// heed it only beside `stream_options`.
    fn delivery(&self, asked: DeliveryMode) -> DeliveryMode {
        match (asked, self.config.version) {
            (DeliveryMode::Stream(_), VllmVersion::V0_33) if self.config.usage.forced => {
                DeliveryMode::Stream(StreamUsageMode::Continuous)
            }
            _ => asked,
        }
    }

    fn model_limits(&self) -> ModelLimits {
        let PodConfig { version, max_model_len, .. } = self.config;
        ModelLimits { version, max_model_len, vocabulary_len: self.tokenizer.vocabulary_len() }
    }
}

/// vLLM's `random_uuid`.
pub(super) fn new_request_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}
