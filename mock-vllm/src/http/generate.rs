//! One request for text from body to head of the answer: parse, tokenize, decide the replies, and hand them to the driver,
//! which spends the time. A client that goes away drops the tickets, which aborts the requests.

use super::Pod;
use super::answer::Answer;
use super::choices::{Choice, Choices};
use super::error::ApiError;
use super::ground_truth::PrefixHit;
use super::prepare::{Incoming, Prepared, PreparedChoice, prepare};
use super::record::Record;
use super::request::{DeliveryMode, PromptInput, TextRequest};
use super::stream;
use super::wire::Api;
use crate::driver::backlog::SubmitError;
use crate::driver::{Admission, Submission, Ticket};
use crate::engine::request::LoraAdapter;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{StatusCode, header};
use std::sync::Arc;

/// Bodies larger than this are tokenized away from the threads that serve sockets.
const INLINE_BODY_LIMIT: usize = 32 << 10;

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
    record.line.request_id = header_id.or(body_id).unwrap_or_else(|| pod.request_ids.next(&body));
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
    let prepare = move || prepare(&preparing, &incoming, &request);
    let Prepared { delivery, answer, choices } = if body.len() > INLINE_BODY_LIMIT {
        tokio::task::spawn_blocking(prepare).await.map_err(|_panicked| ApiError::engine_dead())??
    } else {
        prepare()?
    };
    record.prompts(answer.prompts.iter().map(|prompt| &*prompt.ids));
    let choices = choices.into_iter().map(|choice| {
        let PreparedChoice { prompt_idx, submission, text, interval, .. } = choice;
        let tokens = submission.request.output.clone();
        let ticket = pod.submit(submission)?;
        Ok(Choice::new(prompt_idx, ticket, tokens, text, interval))
    });
    Ok(Started { delivery, answer, choices: choices.collect::<Result<_, ApiError>>()? })
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
}
