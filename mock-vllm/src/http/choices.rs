//! The choices of one answer while they run: each is a request of its own in the engine, and the client sees one stream
//! of them.

use super::error::ApiError;
use super::record::Record;
use super::wire::{Finish, StopReason};
use crate::driver::{Admission, Delivery, RequestHandle};
use crate::send_schedule::Outbox;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};
use vllm_engine::request::FinishReason;
use vllm_text::reply::ReplyEnd;
use vllm_text::reply::visible_text::VisibleText;

/// Running choices of an answer. Dropping them before the end aborts those that still run.
#[derive(Debug)]
pub(super) struct Choices {
    choices: Vec<Choice>,
    record: Record,
    /// Outbox of an answer that is sent token by token.
    outbox: Option<Arc<Outbox>>,
    n_open: usize,
    /// Choice that is asked first for the next event: the choices take turns.
    next_idx: usize,
}

#[derive(Debug)]
pub(super) struct Choice {
    pub(super) prompt_idx: usize,
    /// All tokens that the engine may generate for it.
    tokens: Arc<[u32]>,
    /// Number of them that the engine has generated.
    pub(super) n_generated: usize,
    pub(super) cached_tokens: u32,
    handle: RequestHandle,
    text: VisibleText,
    /// Tokens per piece; the first and the last piece do not wait until they are full.
    interval: usize,
    n_told: usize,
    is_open: bool,
}

/// New part of a choice since its last piece.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) choice_idx: usize,
    /// Indices into the choice's tokens.
    pub(super) tokens: Range<usize>,
    pub(super) text: String,
    pub(super) finish: Option<Finish>,
}

#[derive(Debug)]
pub(super) enum Event {
    Piece(Piece),
    /// End of all choices.
    End,
    /// Failure, after which no event comes.
    Failed(ApiError),
}

// === impl Choices ===

impl Choices {
    pub(super) fn new(choices: Vec<Choice>, mut record: Record) -> Self {
        record.answered();
        Self { n_open: choices.len(), choices, record, outbox: None, next_idx: 0 }
    }

    /// Sends the answer through `outbox`, which holds each token until it is due.
    pub(super) fn through(self, outbox: Option<Arc<Outbox>>) -> Self {
        Self { outbox, ..self }
    }

    /// Waits until the engine admits the first choice. `None` if it never does; then the events say why.
    pub(super) async fn admission(&mut self) -> Option<Admission> {
        self.choices.first_mut()?.handle.admission().await
    }

    pub(super) fn as_slice(&self) -> &[Choice] {
        &self.choices
    }

    pub(super) async fn next(&mut self) -> Event {
        std::future::poll_fn(|ctx| self.poll_next(ctx)).await
    }

    pub(super) fn poll_next(&mut self, ctx: &mut Context<'_>) -> Poll<Event> {
        if self.n_open == 0 {
            return Poll::Ready(Event::End);
        }
        let n_choices = self.choices.len();
        let first_idx = self.next_idx;
        for choice_idx in (0..n_choices).map(|offset| (first_idx + offset) % n_choices) {
            while self.choices[choice_idx].is_open {
                let delivery = match self.choices[choice_idx].handle.poll_next(ctx) {
                    Poll::Ready(delivery) => delivery,
                    Poll::Pending => break,
                };
                if let Some(event) = self.take(choice_idx, delivery) {
                    self.next_idx = (choice_idx + 1) % n_choices;
                    return Poll::Ready(event);
                }
            }
        }
        Poll::Pending
    }

    /// Turns a delivery into an event; `None` if there is nothing to send yet.
    fn take(&mut self, choice_idx: usize, delivery: Option<Delivery>) -> Option<Event> {
        let choice = &mut self.choices[choice_idx];
        let error = match delivery {
            Some(Delivery::Token { token, at, cached_tokens, queue_time, finish }) => {
                self.record.token(at, cached_tokens, queue_time);
                if let Some(outbox) = &self.outbox {
                    outbox.hold(at);
                }
                if let Some(reason) = finish {
                    self.record.line.finish_reason = Some(reason.as_str());
                }
                choice.cached_tokens = cached_tokens;
                return choice.push(choice_idx, token, finish).map(Event::Piece);
            }
            Some(Delivery::Aborted { at: _ }) => {
                self.record.line.finish_reason = Some(FinishReason::Abort.as_str());
                return Some(Event::Piece(choice.abort(choice_idx)));
            }
            Some(Delivery::End { at }) => {
                choice.is_open = false;
                self.n_open -= 1;
                if self.n_open > 0 {
                    return None;
                }
                self.record.end(at);
                return Some(Event::End);
            }
            Some(Delivery::Rejected(error)) => ApiError::bad_request(error.to_string(), None),
            None => ApiError::engine_dead(),
        };
        self.n_open = 0;
        self.record.fail(&error);
        Some(Event::Failed(error))
    }
}

// === impl Choice ===

impl Choice {
    pub(super) fn new(
        prompt_idx: usize,
        handle: RequestHandle,
        tokens: Arc<[u32]>,
        text: VisibleText,
        interval: u32,
    ) -> Self {
        Self {
            prompt_idx,
            tokens,
            n_generated: 0,
            cached_tokens: 0,
            handle,
            text,
            interval: interval as usize,
            n_told: 0,
            is_open: true,
        }
    }

    pub(super) fn generated(&self) -> &[u32] {
        &self.tokens[..self.n_generated]
    }

    fn push(&mut self, choice_idx: usize, token: u32, finish: Option<FinishReason>) -> Option<Piece> {
        self.n_generated += 1;
        self.text.push(token, finish);
        let is_due = self.n_told == 0 || self.n_generated - self.n_told >= self.interval;
        let (text, finish) = match finish {
            Some(reason) => (self.text.take_rest(reason), Some(self.finish(reason))),
            None if is_due => (self.text.take(), None),
            None => return None,
        };
        let tokens = self.n_told..self.n_generated;
        self.n_told = self.n_generated;
        Some(Piece { choice_idx, tokens, text, finish })
    }

    /// Ends the choice with what it has.
    fn abort(&mut self, choice_idx: usize) -> Piece {
        let tokens = self.n_told..self.n_generated;
        self.n_told = self.n_generated;
        let finish = Finish { reason: FinishReason::Abort.as_str(), stop_reason: None };
        Piece { choice_idx, tokens, text: self.text.take_rest(FinishReason::Abort), finish: Some(finish) }
    }

    fn finish(&self, reason: FinishReason) -> Finish {
        let stop_reason = match self.text.end(reason) {
            Some(ReplyEnd::StopToken(token)) => Some(StopReason::Token(*token)),
            Some(ReplyEnd::StopString { text, .. }) => Some(StopReason::Text(text.clone())),
            Some(ReplyEnd::Length | ReplyEnd::Eos) | None => None,
        };
        Finish { reason: reason.as_str(), stop_reason }
    }
}
