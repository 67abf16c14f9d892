//! One request for text from body to last byte: parse, tokenize, decide the reply, let the driver spend the time, and write
//! what it delivers. A client that goes away drops the ticket, which aborts the request.

use super::Pod;
use super::error::ApiError;
use super::ground_truth::PrefixHit;
use super::request::{DeliveryMode, PromptInput, StreamUsageMode, TextRequest};
use super::wire::{self, Api, ChunkEnd, ChunkWriter, Envelope, Finish, PromptTokensDetails, Usage};
use crate::driver::clock::{Clock, SimTime};
use crate::driver::{Admission, Delivery, Submission, Ticket};
use crate::engine::request::{EngineRequest, FinishReason, RequestId};
use crate::reply::{Prompt, Reply};
use crate::request_log::{RequestLine, timestamp};
use crate::tokens::detokenizer::Detokenizer;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{StatusCode, header};
use sha2::{Digest, Sha256};
use std::convert::Infallible;
use std::num::NonZeroU32;
use std::sync::Arc;

/// Bodies larger than this are tokenized away from the threads that serve sockets.
const INLINE_BODY_LIMIT: usize = 32 << 10;
/// nginx's status for a client that went before the answer.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// A checked request with its decided reply.
#[derive(Debug)]
struct Prepared {
    delivery: DeliveryMode,
    envelope: Envelope,
    submission: Submission,
    stop_token: Option<u32>,
}

/// A request that the driver has, and how to answer it.
#[derive(Debug)]
struct Started {
    delivery: DeliveryMode,
    envelope: Envelope,
    ticket: Ticket,
    stop_token: Option<u32>,
}

/// Fills a log line as the request goes, and writes it when dropped: also when the client goes first.
#[derive(Debug)]
struct Record {
    pod: Arc<Pod>,
    arrival: SimTime,
    line: RequestLine,
    ended: Option<SimTime>,
}

/// An answer on its way.
#[derive(Debug)]
struct Generation {
    ticket: Ticket,
    detokenizer: Detokenizer,
    record: Record,
    n_prompt_tokens: usize,
    n_generated: usize,
    cached_tokens: u32,
    stop_token: Option<u32>,
}

/// What a delivery means to a client.
#[derive(Debug)]
enum Piece {
    Text { text: String, finish: Option<Finish> },
    End,
    Failed(ApiError),
}

/// Answers a request that arrived with `body`.
pub(super) async fn generate(pod: Arc<Pod>, api: Api, header_id: Option<String>, body: Bytes) -> Response {
    let arrival = pod.driver.clock().now();
    let mut record = Record::new(pod.clone(), api, arrival);
    record.line.request_id = header_id.unwrap_or_else(new_request_id);
    match start(pod, api, body, &mut record).await {
        Ok(Started { delivery, envelope, mut ticket, stop_token }) => {
            let admission = ticket.admission().await;
            let generation = Generation::new(ticket, record, stop_token);
            let Some(Admission { cached_tokens, .. }) = admission else {
                return plain(generation, &envelope).await;
            };
            let hit = PrefixHit::new(cached_tokens, generation.n_prompt_tokens, generation.block_size());
            let response = match delivery {
                DeliveryMode::Plain => plain(generation, &envelope).await,
                DeliveryMode::Stream(usage) => stream(generation, envelope, usage),
            };
            hit.on(response)
        }
        Err(error) => {
            record.fail(&error);
            drop(record);
            error.into_response()
        }
    }
}

async fn start(pod: Arc<Pod>, api: Api, body: Bytes, record: &mut Record) -> Result<Started, ApiError> {
    let request = TextRequest::parse(api, &body)?;
    if let Some(id) = &request.request_id {
        record.line.request_id.clone_from(id);
    }
    record.line.model.clone_from(&request.model);
    record.line.stream = matches!(request.delivery, DeliveryMode::Stream(_));
    pod.check_model(request.model.as_deref())?;
    let id = record.line.request_id.clone();
    let arrival = record.arrival;
    let preparing = pod.clone();
    let prepare = move || prepare(&preparing, api, &id, arrival, request);
    let Prepared { delivery, envelope, submission, stop_token } = if body.len() > INLINE_BODY_LIMIT {
        tokio::task::spawn_blocking(prepare).await.map_err(|_panicked| ApiError::engine_dead())??
    } else {
        prepare()?
    };
    let prompt = &submission.request.prompt;
    record.line.prompt_tokens = Some(prompt.len());
    record.line.prompt_sha256 = Some(prompt_digest(prompt));
    let ticket = pod.driver.submit(submission).map_err(|_dead| ApiError::engine_dead())?;
    let delivery = match delivery {
        DeliveryMode::Stream(StreamUsageMode::None) if pod.config.usage.forced => {
            DeliveryMode::Stream(StreamUsageMode::AtEnd)
        }
        DeliveryMode::Stream(_) | DeliveryMode::Plain => delivery,
    };
    Ok(Started { delivery, envelope, ticket, stop_token })
}

/// The part that costs CPU: tokens of the prompt, tokens of the reply.
fn prepare(
    pod: &Pod,
    api: Api,
    request_id: &str,
    arrival: SimTime,
    request: TextRequest,
) -> Result<Prepared, ApiError> {
    let prompt = pod.prompt_ids(&request.prompt)?;
    let limits = request.limits(prompt.len(), pod.config.max_model_len)?;
    let last_user_text = request.prompt.last_user_text();
    let reply_prompt = Prompt { ids: &prompt, last_user_text: last_user_text.as_deref(), limits: &limits };
    let Reply { tokens, finish, stop_token } = pod.replier.reply(&reply_prompt);
    let TextRequest { delivery, cache_salt, priority, .. } = request;
    let prefix = match api {
        Api::Chat => "chatcmpl-",
        Api::Completion => "cmpl-",
    };
    let envelope = Envelope {
        api,
        id: format!("{prefix}{request_id}"),
        created: Clock::unix_now().as_secs(),
        model: pod.config.displayed_model().to_owned(),
        role: pod.config.response_role.clone(),
        fingerprint: pod.config.fingerprint.clone(),
    };
    let request = EngineRequest {
        id: RequestId(0),
        prompt: prompt.into(),
        output: tokens,
        finish,
        cache_salt: cache_salt.map(Arc::from),
        lora: None,
        priority,
    };
    let max_tokens = limits.max_tokens;
    let submission = Submission { request, request_id: request_id.into(), arrival, max_tokens, group: None };
    Ok(Prepared { delivery, envelope, submission, stop_token })
}

async fn plain(mut generation: Generation, envelope: &Envelope) -> Response {
    let mut text = String::new();
    let mut last_finish = None;
    loop {
        match generation.next().await {
            Piece::Text { text: new_text, finish } => {
                text.push_str(&new_text);
                last_finish = last_finish.or(finish);
            }
            Piece::End => break,
            Piece::Failed(error) => return error.into_response(),
        }
    }
    let finish = last_finish.unwrap_or(Finish { reason: FinishReason::Abort.as_str(), stop_token: None });
    let usage = Usage { details: generation.details(), ..generation.usage() };
    let body = wire::plain_body(envelope, &text, finish, usage);
    (StatusCode::OK, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn stream(generation: Generation, envelope: Envelope, usage: StreamUsageMode) -> Response {
    let state = Some((generation, ChunkWriter::new(envelope)));
    let frames = futures::stream::unfold(state, move |state| async move {
        let (mut generation, writer) = state?;
        loop {
            let (frames, is_last) = next_frames(&mut generation, &writer, usage).await;
            if is_last {
                return Some((Ok::<_, Infallible>(Bytes::from(frames)), None));
            }
            if !frames.is_empty() {
                return Some((Ok(Bytes::from(frames)), Some((generation, writer))));
            }
        }
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")];
    (StatusCode::OK, headers, Body::from_stream(frames)).into_response()
}

/// The frames of the next delivery, and whether they end the stream. No frames: the delivery completed no character.
async fn next_frames(
    generation: &mut Generation,
    writer: &ChunkWriter,
    mode: StreamUsageMode,
) -> (String, bool) {
    let mut frames = String::new();
    let is_first = generation.n_generated == 0;
    let continuous =
        |usage: Usage| (mode == StreamUsageMode::Continuous).then_some(Usage { details: None, ..usage });
    match generation.next().await {
        Piece::Text { text, finish } => {
            if is_first {
                let usage = Usage { completion_tokens: 0, ..generation.usage() };
                writer.role_frame(&mut frames, continuous(usage));
            }
            if !text.is_empty() || finish.is_some() {
                let fingerprint = finish.is_some() && mode == StreamUsageMode::None;
                let end = ChunkEnd { finish, usage: continuous(generation.usage()), fingerprint };
                writer.content_frame(&mut frames, &text, end);
            }
            (frames, false)
        }
        Piece::End => {
            if mode != StreamUsageMode::None {
                let usage = Usage { details: generation.details(), ..generation.usage() };
                writer.usage_frame(&mut frames, usage);
            }
            frames.push_str(wire::DONE);
            (frames, true)
        }
        Piece::Failed(error) => (format!("data: {}\n\n{}", error.to_json(), wire::DONE), true),
    }
}

// === impl Generation ===

impl Generation {
    fn new(ticket: Ticket, mut record: Record, stop_token: Option<u32>) -> Self {
        record.line.status = StatusCode::OK.as_u16();
        record.line.finish_reason = Some(FinishReason::Abort.as_str());
        Self {
            ticket,
            detokenizer: record.pod.tokenizer.detokenizer(),
            n_prompt_tokens: record.line.prompt_tokens.unwrap_or_default(),
            record,
            n_generated: 0,
            cached_tokens: 0,
            stop_token,
        }
    }

    async fn next(&mut self) -> Piece {
        match self.ticket.next().await {
            Some(Delivery::Token { token, at, cached_tokens, queue_time, finish }) => {
                if self.n_generated == 0 {
                    self.cached_tokens = cached_tokens;
                    self.record.line.cached_tokens = Some(cached_tokens);
                    self.record.line.queue_ms = Some(milliseconds(queue_time));
                    self.record.line.ttft_ms = Some(milliseconds(at.since(self.record.arrival)));
                }
                self.n_generated += 1;
                self.record.line.completion_tokens = self.n_generated;
                self.token_piece(token, finish)
            }
            Some(Delivery::End { at }) => {
                self.record.end(at);
                Piece::End
            }
            Some(Delivery::Rejected(error)) => {
                let error = ApiError::bad_request(error.to_string(), None);
                self.record.fail(&error);
                Piece::Failed(error)
            }
            None => {
                let error = ApiError::engine_dead();
                self.record.fail(&error);
                Piece::Failed(error)
            }
        }
    }

    fn token_piece(&mut self, token: u32, finish: Option<FinishReason>) -> Piece {
        let Some(reason) = finish else {
            return Piece::Text { text: self.detokenizer.push(token), finish: None };
        };
        self.record.line.finish_reason = Some(reason.as_str());
        // The token that stops a reply is not part of its text.
        let (text, stop_token) = match reason {
            FinishReason::Stop => (String::new(), self.stop_token),
            FinishReason::Length | FinishReason::Abort | FinishReason::Error => {
                (self.detokenizer.push(token), None)
            }
        };
        Piece::Text { text, finish: Some(Finish { reason: reason.as_str(), stop_token }) }
    }

    fn block_size(&self) -> NonZeroU32 {
        self.record.pod.config.block_size
    }

    fn usage(&self) -> Usage {
        Usage { prompt_tokens: self.n_prompt_tokens, completion_tokens: self.n_generated, details: None }
    }

    /// What the prompt found in the cache, and what of it is new there: whole blocks.
    fn details(&self) -> Option<PromptTokensDetails> {
        let config = &self.record.pod.config;
        let block_size = self.block_size().get() as usize;
        let n_in_blocks = u32::try_from(self.n_prompt_tokens / block_size * block_size).unwrap_or(u32::MAX);
        let created = if config.prefix_caching { n_in_blocks.saturating_sub(self.cached_tokens) } else { 0 };
        config.usage.prompt_tokens_details.then_some(PromptTokensDetails {
            cached_tokens: self.cached_tokens,
            created_cache_tokens: created,
        })
    }
}

// === impl Record ===

impl Record {
    fn new(pod: Arc<Pod>, api: Api, arrival: SimTime) -> Self {
        let line = RequestLine {
            time: String::new(),
            pod: pod.config.pod_name.clone(),
            request_id: String::new(),
            endpoint: match api {
                Api::Chat => "/v1/chat/completions",
                Api::Completion => "/v1/completions",
            },
            model: None,
            stream: false,
            status: CLIENT_CLOSED_REQUEST,
            finish_reason: None,
            prompt_tokens: None,
            cached_tokens: None,
            completion_tokens: 0,
            queue_ms: None,
            ttft_ms: None,
            e2e_ms: 0.0,
            prompt_sha256: None,
        };
        pod.server_load.enter();
        Self { pod, arrival, line, ended: None }
    }

    /// Writes the line, before the client can see the end.
    fn end(&mut self, at: SimTime) {
        if self.ended.replace(at).is_some() {
            return;
        }
        self.line.time = timestamp();
        self.line.e2e_ms = milliseconds(at.since(self.arrival));
        self.pod.log.write(&self.line);
        self.pod.server_load.leave();
    }

    fn fail(&mut self, error: &ApiError) {
        let has_answer = self.line.status == StatusCode::OK.as_u16();
        self.line.finish_reason = has_answer.then_some(FinishReason::Error.as_str());
        self.line.status = error.status.as_u16();
        self.end(self.pod.driver.clock().now());
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let now = self.pod.driver.clock().now();
        self.end(now);
    }
}

// === impl Pod ===

impl Pod {
    pub(super) fn check_model(&self, model: Option<&str>) -> Result<(), ApiError> {
        let names = &self.config.served_model_names;
        match model {
            Some(model) if !names.iter().any(|name| name == model) => {
                Err(ApiError::model_not_found(model, names))
            }
            Some(_) | None => Ok(()),
        }
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

/// vLLM's `random_uuid`.
pub(super) fn new_request_id() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

fn prompt_digest(prompt: &[u32]) -> String {
    let mut hasher = Sha256::new();
    prompt.iter().for_each(|id| hasher.update(id.to_le_bytes()));
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn milliseconds(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
