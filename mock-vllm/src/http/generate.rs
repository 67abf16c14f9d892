//! One request for text, from its body to the head of the answer: parses and tokenizes it, decides the replies, and
//! hands them to the driver, which spends the time. A client that goes away drops the handles, which aborts the
//! requests.

use super::answer::AnswerPlan;
use super::caller::Caller;
use super::choices::{Choice, Choices};
use super::error::ApiError;
use super::ground_truth::PrefixHit;
use super::prepare::{Incoming, Prepared, PreparedChoice, ResolvedModel, prepare};
use super::prompt::PromptInput;
use super::record::Record;
use super::request::{DeliveryMode, StreamUsageMode, TextRequest};
use super::request_ids;
use super::stream;
use super::wire::Api;
use super::{OtherNames, Pod};
use crate::driver::backlog::SubmitError;
use crate::driver::{Admission, RequestHandle, Submission};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{StatusCode, header};
use std::sync::Arc;
use vllm_text::tokens::chat_template::ChatError;

/// Size above which a body is tokenized away from the threads that serve sockets.
const INLINE_BODY_LIMIT: usize = 32 << 10;

/// A request as it arrived, without what its body was parsed into.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) api: Api,
    /// `x-request-id`
    pub(super) header_id: Option<String>,
    pub(super) body: Bytes,
}

/// A request that the driver has taken, and how to answer it.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) delivery: DeliveryMode,
    pub(super) answer: AnswerPlan,
    pub(super) choices: Vec<Choice>,
}

/// Answers a request that arrived with `body`.
pub(super) async fn generate(pod: Arc<Pod>, api: Api, caller: Caller, body: Bytes) -> Response {
    let arrival = pod.driver.clock().now();
    let mut record = Record::new(pod.clone(), api, arrival);
    let parsed = TextRequest::parse(api, pod.config.version, &body);
    let received = Received { api, header_id: caller.request_id, body };
    match start(&pod, received, parsed, &mut record).await {
        Ok(Started { delivery, answer, choices }) => {
            let choices = Choices::new(choices, record);
            match delivery {
                DeliveryMode::Plain => plain(&pod, &answer, choices).await,
                DeliveryMode::Stream(usage) => {
                    streamed(&pod, answer, choices.through(caller.outbox), usage).await
                }
            }
        }
        Err(error) => {
            record.fail(&error);
            drop(record);
            error.into_response()
        }
    }
}

async fn plain(pod: &Pod, answer: &AnswerPlan, mut choices: Choices) -> Response {
    let admission = choices.admission().await;
    let n_prompt_tokens = answer.n_first_prompt_tokens();
    let response = match answer.body(choices).await {
        Ok(body) => (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => error.into_response(),
    };
    head(pod, n_prompt_tokens, admission, response)
}

/// Answers with a stream. The head waits until the engine admits the request, because it says what was cached, but no
/// longer than the stream may be silent.
async fn streamed(pod: &Pod, answer: AnswerPlan, mut choices: Choices, usage: StreamUsageMode) -> Response {
    let keep_alive = pod.config.output.keep_alive;
    let clock = pod.driver.clock();
    let admission = match keep_alive.0 {
        None => Some(choices.admission().await),
        Some(interval) => tokio::select! {
            admission = choices.admission() => Some(admission),
            () = clock.sleep_until(clock.now() + interval) => None,
        },
    };
    if admission == Some(None) {
        return plain(pod, &answer, choices).await;
    }
    let headers = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")];
    let n_prompt_tokens = answer.n_first_prompt_tokens();
    let body = keep_alive.around(stream::frames(answer, choices, usage), clock);
    head(pod, n_prompt_tokens, admission.flatten(), (headers, body).into_response())
}

/// Adds what is known when the head of the response is sent.
fn head(pod: &Pod, n_prompt_tokens: usize, admission: Option<Admission>, response: Response) -> Response {
    let Some(Admission { cached_tokens, .. }) = admission else { return response };
    PrefixHit::new(cached_tokens, n_prompt_tokens, pod.config.block_size).on(pod.config.endpoints, response)
}

/// Hands the request to the driver, and adds to `record` what becomes known.
///
/// # Errors
/// Fails if something is wrong with the request or with the pod.
pub(super) async fn start(
    pod: &Arc<Pod>,
    received: Received,
    parsed: Result<TextRequest, ApiError>,
    record: &mut Record,
) -> Result<Started, ApiError> {
    let Received { api, header_id, body } = received;
    let body_id = parsed.as_ref().ok().and_then(|request| request.request_id.clone());
    record.line.request_id = header_id.or(body_id).unwrap_or_else(request_ids::random);
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
        let handle = pod.submit(submission)?;
        Ok(Choice::new(prompt_idx, handle, tokens, text, interval))
    });
    Ok(Started { delivery, answer, choices: choices.collect::<Result<_, ApiError>>()? })
}

// === impl Pod ===

impl Pod {
    /// Finds the model. `None` and the empty name are the base model; any other name is a served name or an adapter's.
    ///
    /// # Errors
    /// Fails for a model that is not served.
    pub(super) fn resolve_model(&self, model: Option<&str>) -> Result<ResolvedModel, ApiError> {
        let names = &self.config.served_model_names;
        let base = || ResolvedModel { name: self.config.displayed_model().to_owned(), lora: None };
        let Some(model) = model.filter(|model| !model.is_empty()) else { return Ok(base()) };
        if names.iter().any(|name| name == model) {
            return Ok(base());
        }
        match self.loras.find(model) {
            Some(adapter) => Ok(ResolvedModel { name: adapter.name.clone(), lora: Some(adapter) }),
            None if self.config.other_names == OtherNames::Answered => {
                Ok(ResolvedModel { name: model.to_owned(), lora: None })
            }
            None => {
                let known: Vec<String> = names.iter().cloned().chain(self.loras.names()).collect();
                Err(ApiError::model_not_found(model, &known))
            }
        }
    }

    /// Submits a request to the driver.
    ///
    /// # Errors
    /// Fails if the queue is full or the engine is dead.
    fn submit(&self, submission: Submission) -> Result<RequestHandle, ApiError> {
        self.driver.submit(submission).map_err(|error| match error {
            SubmitError::EngineDead(_) => ApiError::engine_dead(),
            SubmitError::QueueFull(limit) => {
                self.metrics.lock().record_admission_rejection(limit);
                ApiError::queue_full(limit)
            }
        })
    }

    /// Tokenizes a prompt.
    ///
    /// # Errors
    /// Fails for token ids that the model has no embedding for.
    pub(super) fn prompt_ids(&self, prompt: &PromptInput) -> Result<Vec<u32>, ApiError> {
        match prompt {
            PromptInput::Chat(chat) => self.template.encode(chat).map_err(|error| {
                let message = match error {
                    ChatError::Media => format!("{} is not a multimodal model", self.config.model_root),
                    ChatError::UntrustedTemplate | ChatError::NoTemplate | ChatError::Rejected(_) => {
                        error.to_string()
                    }
                };
                ApiError::bad_request(message, None)
            }),
            PromptInput::Text(text) => Ok(self.template.encoder().encode_with_special_tokens(text)),
            PromptInput::PlainText(text) => Ok(self.template.encoder().encode(text)),
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
