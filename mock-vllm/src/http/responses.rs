//! `/v1/responses` for text: the request is a chat in other words, and the answer is told in items and events.

mod input;
mod output;

use super::Pod;
use super::caller::Caller;
use super::choices::{Choices, Event};
use super::error::ApiError;
use super::generate::{Started, start};
use super::ground_truth::PrefixHit;
use super::record::Record;
use super::request::{DeliveryMode, TextRequest};
use super::wire::Api;
use crate::driver::Admission;
use crate::vllm_version::VllmVersion;
use axum::body::Body;
use axum::response::{IntoResponse, Json, Response};
use bytes::Bytes;
use http::{StatusCode, header};
use input::ResponsesRequest;
use output::{Progress, Told};
use std::convert::Infallible;
use std::sync::Arc;

const PATH: &str = "/v1/responses";

/// Answers a request that arrived with `body`.
pub(super) async fn respond(pod: Arc<Pod>, caller: Caller, body: Bytes) -> Response {
    let arrival = pod.driver.clock().now();
    let mut record = Record::new(pod.clone(), Api::Chat, arrival);
    record.line.endpoint = PATH;
    match begin(&pod, caller.request_id, &body, &mut record).await {
        Ok((Started { delivery, answer, choices }, told)) => {
            let n_prompt_tokens = answer.prompts.first().map_or(0, |prompt| prompt.ids.len());
            let progress = Progress::new(told, &answer.envelope, n_prompt_tokens);
            let mut choices = Choices::new(choices, record);
            let Some(Admission { cached_tokens, .. }) = choices.admission().await else {
                return whole(progress, choices).await;
            };
            let hit = PrefixHit::new(cached_tokens, n_prompt_tokens, pod.config.block_size);
            hit.on(match delivery {
                DeliveryMode::Plain => whole(progress, choices).await,
                DeliveryMode::Stream(_) => stream(progress, choices.through(caller.outbox)),
            })
        }
        Err(error) => {
            record.fail(&error);
            drop(record);
            error.into_response()
        }
    }
}

/// The chat that `body` asks for.
///
/// # Errors
/// What a response to it would fail with before it begins.
pub(super) fn as_chat(version: VllmVersion, body: &[u8]) -> Result<TextRequest, ApiError> {
    TextRequest::parse(Api::Chat, version, &ResponsesRequest::parse(body)?.chat)
}

async fn begin(
    pod: &Arc<Pod>,
    header_id: Option<String>,
    body: &[u8],
    record: &mut Record,
) -> Result<(Started, Told), ApiError> {
    let request_id = header_id.unwrap_or_else(|| pod.request_ids.next(body));
    record.line.request_id.clone_from(&request_id);
    let ResponsesRequest { chat, told } = ResponsesRequest::parse(body)?;
    Ok((start(pod, Api::Chat, Some(request_id), chat, record).await?, told))
}

async fn whole(mut progress: Progress, mut choices: Choices) -> Response {
    loop {
        match choices.next().await {
            Event::Piece(piece) => progress.take(piece),
            Event::End => break,
            Event::Failed(error) => return error.into_response(),
        }
    }
    (StatusCode::OK, Json(progress.response(choices.as_slice().first()))).into_response()
}

fn stream(progress: Progress, choices: Choices) -> Response {
    let state = Some((progress, choices));
    let frames = futures::stream::unfold(state, |state| async move {
        let (mut progress, mut choices) = state?;
        let mut frames = String::new();
        if progress.open(&mut frames) {
            return Some((Ok::<_, Infallible>(Bytes::from(frames)), Some((progress, choices))));
        }
        let state = match choices.next().await {
            Event::Piece(piece) => {
                progress.delta(&mut frames, piece);
                Some((progress, choices))
            }
            Event::End => {
                progress.close(&mut frames, choices.as_slice().first());
                None
            }
            Event::Failed(error) => {
                progress.fail(&mut frames, &error);
                None
            }
        };
        Some((Ok::<_, Infallible>(Bytes::from(frames)), state))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")];
    (StatusCode::OK, headers, Body::from_stream(frames)).into_response()
}
