//! `/v1/responses`: the request is a chat in other words, and the answer comes in items and events.

mod input;
mod items;
mod stream;
mod output;
mod tools;

use super::answer::AnswerPlan;
use super::caller::Caller;
use super::choices::{Choice, Piece};
use super::error::ApiError;
use super::events::{self, Events, WholeReply};
use super::request::TextRequest;
use super::wire::plain::ChoiceContent;
use super::{Pod, PodConfig};
use axum::response::{IntoResponse, Json, Response};
use bytes::Bytes;
use http::StatusCode;
use input::ResponsesRequest;
use output::{ResponseHead, Status, message_item};
use std::sync::Arc;
use stream::Progress;

const PATH: &str = "/v1/responses";

#[derive(Debug)]
struct ResponsesAnswer {
    answer: AnswerPlan,
    progress: Progress,
}

/// Answers a request that arrived with `body`.
pub(super) async fn respond(pod: Arc<Pod>, caller: Caller, body: Bytes) -> Response {
    let PodConfig { version, prefix_caching, block_size, .. } = pod.config;
    let tool_calling = pod.config.output.tool_calling;
    let parse = |body: &[u8]| {
        let ResponsesRequest { chat, told } = ResponsesRequest::parse(body, version, tool_calling)?;
        let events = move |answer: AnswerPlan| {
            let head = ResponseHead::new(told, &answer, prefix_caching.then_some(block_size));
            ResponsesAnswer { progress: Progress::new(head, &answer), answer }
        };
        Ok((chat, events))
    };
    events::respond(pod, PATH, (caller, body), parse).await
}

/// Converts `body` to the chat that it asks for.
///
/// # Errors
/// Fails like a response to it would before it begins.
pub(super) fn as_chat(config: &PodConfig, body: &[u8]) -> Result<TextRequest, ApiError> {
    Ok(ResponsesRequest::parse(body, config.version, config.output.tool_calling)?.chat)
}

/// Answers a request for the stored response `id`: no responses are stored.
pub(super) fn stored(id: &str) -> Response {
    input::not_stored(id).into_response()
}

// === impl ResponsesAnswer ===

impl Events for ResponsesAnswer {
    fn refusal(error: ApiError) -> Response {
        error.into_response()
    }

    fn whole(self, reply: WholeReply<'_>) -> Response {
        let Self { answer, progress: Progress { head, .. } } = self;
        let WholeReply { choice, text, finish } = reply;
        let status = Status::ended_by(finish.reason);
        let calls = answer.calls.first().and_then(Option::as_deref);
        let (content, tool_calls) = match answer.message(text, finish, calls).0 {
            ChoiceContent::Text(text) => (Some(text), Vec::new()),
            ChoiceContent::Calls { content, tool_calls } => (content, tool_calls),
        };
        let text = content.unwrap_or_default();
        let status_before = |is_last: bool| if is_last { status } else { Status::Completed };
        let mut output = Vec::new();
        // Without a parser an empty reply is a message too.
        if !text.is_empty() || !answer.is_parsed {
            output.push(message_item(head.message_id(), &text, status_before(tool_calls.is_empty())));
        }
        let n_calls = tool_calls.len();
        let items = tool_calls.iter().enumerate();
        output.extend(
            items.map(|(call_idx, call)| head.call_item(call, status_before(call_idx + 1 == n_calls))),
        );
        (StatusCode::OK, Json(head.ended(status, output, choice))).into_response()
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        self.progress.begin(out);
    }

    fn piece(&mut self, out: &mut Vec<u8>, piece: &Piece) {
        self.progress.piece(out, piece);
    }

    fn end(&mut self, out: &mut Vec<u8>, choice: &Choice) {
        self.progress.end(out, choice);
    }

    fn fail(&mut self, out: &mut Vec<u8>, error: &ApiError) {
        self.progress.fail(out, error);
    }
}
