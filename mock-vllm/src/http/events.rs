//! Answers of the APIs that send one reply in typed events, or whole: `/v1/responses` and `/v1/messages`.

use super::Pod;
use super::answer::AnswerPlan;
use super::caller::Caller;
use super::choices::{Choice, Choices, Event, Piece};
use super::error::ApiError;
use super::generate::{Received, Started, start};
use super::ground_truth::PrefixHit;
use super::record::Record;
use super::request::{DeliveryMode, TextRequest};
use super::wire::{Api, Finish};
use crate::driver::Admission;
use crate::structured::tools::stream::{ToolCallStream, ToolDelta};
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures::Stream;
use http::{StatusCode, header};
use serde_json::Value;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use vllm_engine::request::FinishReason;

/// An API's way to answer, event by event.
pub(super) trait Events: Send + Unpin + 'static {
    /// Answers a request whose body is right and that cannot be served.
    fn refusal(error: ApiError) -> Response;

    /// Makes the answer that does not stream.
    fn whole(self, reply: WholeReply<'_>) -> Response;

    /// Writes the events that come before the first token.
    fn begin(&mut self, out: &mut Vec<u8>);

    fn piece(&mut self, out: &mut Vec<u8>, piece: &Piece);

    fn end(&mut self, out: &mut Vec<u8>, choice: &Choice);

    /// Writes the last events of a stream that failed.
    fn fail(&mut self, out: &mut Vec<u8>, error: &ApiError);
}

/// A reply that has ended.
#[derive(Debug)]
pub(super) struct WholeReply<'a> {
    pub(super) choice: &'a Choice,
    pub(super) text: String,
    pub(super) finish: Finish,
}

/// Splits a reply's text into words and tool calls.
#[derive(Debug)]
pub(super) struct ReplyReader(Option<ToolCallStream>);

#[derive(Debug)]
struct EventStream<E> {
    events: E,
    choices: Choices,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Fresh,
    Running,
    Ended,
}

/// Answers a request to `path` that arrived with `body`. `parse` makes a chat with one choice of the body, and the
/// function that makes events of the answer.
pub(super) async fn respond<E, F>(
    pod: Arc<Pod>,
    path: &'static str,
    (caller, body): (Caller, Bytes),
    parse: impl FnOnce(&[u8]) -> Result<(TextRequest, F), ApiError>,
) -> Response
where
    E: Events,
    F: FnOnce(AnswerPlan) -> E,
{
    let arrival = pod.driver.clock().now();
    let mut record = Record::new(pod.clone(), Api::Chat, arrival);
    record.line.endpoint = path;
    let (chat, events) =
        parse(&body).map_or_else(|error| (Err(error), None), |(chat, events)| (Ok(chat), Some(events)));
    let received = Received { api: Api::Chat, header_id: caller.request_id, body };
    let Started { delivery, answer, choices } = match start(&pod, received, chat, &mut record).await {
        Ok(started) => started,
        Err(error) => {
            record.fail(&error);
            drop(record);
            return E::refusal(error);
        }
    };
    let n_prompt_tokens = answer.n_first_prompt_tokens();
    let events = events.expect("a body that started something was parsed")(answer);
    let mut choices = Choices::new(choices, record);
    let Some(Admission { cached_tokens, .. }) = choices.admission().await else {
        return whole(events, choices).await;
    };
    let hit = PrefixHit::new(cached_tokens, n_prompt_tokens, pod.config.block_size);
    let response = match delivery {
        DeliveryMode::Plain => whole(events, choices).await,
        DeliveryMode::Stream(_) => {
            let choices = choices.through(caller.outbox);
            let headers = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")];
            let stream = EventStream { events, choices, stage: Stage::Fresh };
            (StatusCode::OK, headers, Body::from_stream(stream)).into_response()
        }
    };
    hit.on(pod.config.endpoints, response)
}

/// Appends one event.
pub(super) fn push_event(out: &mut Vec<u8>, kind: &str, body: &Value) {
    out.extend_from_slice(format!("event: {kind}\ndata: {body}\n\n").as_bytes());
}

async fn whole<E: Events>(events: E, mut choices: Choices) -> Response {
    let mut text = String::new();
    let mut finish = Finish { reason: FinishReason::Abort.as_str(), stop_reason: None };
    loop {
        match choices.next().await {
            Event::Piece(piece) => {
                text.push_str(&piece.text);
                finish = piece.finish.unwrap_or(finish);
            }
            Event::End => break,
            Event::Failed(error) => return E::refusal(error),
        }
    }
    let choice = choices.as_slice().first().expect("a chat has a choice");
    events.whole(WholeReply { choice, text, finish })
}

// === impl ReplyReader ===

impl ReplyReader {
    /// Reads the only choice of `answer`.
    pub(super) fn new(answer: &AnswerPlan) -> Self {
        Self(answer.calls.first().cloned().flatten().map(ToolCallStream::new))
    }

    /// Returns what the next piece of the text adds.
    pub(super) fn push(&mut self, text: &str) -> ToolDelta {
        match &mut self.0 {
            Some(calls) => calls.push(text).unwrap_or_default(),
            None => ToolDelta { content: Some(text.to_owned()), tool_calls: Vec::new() },
        }
    }
}

// === impl EventStream ===

impl<E: Events> EventStream<E> {
    fn write(&mut self, out: &mut Vec<u8>, event: Event) {
        match event {
            Event::Piece(piece) => self.events.piece(out, &piece),
            Event::End => {
                let choice = self.choices.as_slice().first().expect("a chat has a choice");
                self.events.end(out, choice);
                self.stage = Stage::Ended;
            }
            Event::Failed(error) => {
                self.events.fail(out, &error);
                self.stage = Stage::Ended;
            }
        }
    }
}

impl<E: Events> Stream for EventStream<E> {
    type Item = Result<Bytes, Infallible>;

    /// Writes the events of everything that has arrived.
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        ctx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Infallible>>> {
        let mut out = Vec::new();
        if self.stage == Stage::Fresh {
            self.stage = Stage::Running;
            self.events.begin(&mut out);
        }
        while self.stage == Stage::Running
            && let Poll::Ready(event) = self.choices.poll_next(ctx)
        {
            self.write(&mut out, event);
        }
        match (out.is_empty(), self.stage) {
            (false, _) => Poll::Ready(Some(Ok(out.into()))),
            (true, Stage::Ended) => Poll::Ready(None),
            (true, Stage::Fresh | Stage::Running) => Poll::Pending,
        }
    }
}
