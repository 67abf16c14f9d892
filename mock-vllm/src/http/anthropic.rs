//! The Messages API of Anthropic as vLLM 0.33 serves it; older versions do not have it. A message is a chat in other
//! words, and its answer comes in content blocks.

mod input;
mod chat;
mod blocks;
mod output;

use super::Pod;
use super::caller::Caller;
use super::error::ApiError;
use super::events::{self, Events as _};
use super::prepare::{Incoming, rendered};
use super::request::TextRequest;
use super::request_ids;
use super::wire::Api;
use axum::response::{IntoResponse as _, Json, Response};
use bytes::Bytes;
use http::StatusCode;
use input::{MessagesRequest, Purpose};
use output::MessageAnswer;
use serde_json::{Value, json};
use std::sync::Arc;
use vllm_text::tokens::chat_template::ChatTemplate;

const PATH: &str = "/v1/messages";

/// Answers a request for a message that arrived with `body`.
pub(super) async fn respond(pod: Arc<Pod>, caller: Caller, body: Bytes) -> Response {
    let template = pod.template.clone();
    let parse = |body: &[u8]| Ok((as_chat(&template, body)?, MessageAnswer::new));
    events::respond(pod, PATH, (caller, body), parse).await
}

/// Returns the number of tokens in the prompt of `body`.
pub(super) async fn count_tokens(pod: Arc<Pod>, body: Bytes) -> Response {
    let counted = tokio::task::spawn_blocking(move || count(&pod, &body)).await;
    match counted.unwrap_or_else(|_panicked| Err(ApiError::engine_dead())) {
        Ok(n_tokens) => {
            let context = json!({"original_input_tokens": n_tokens});
            Json(json!({"input_tokens": n_tokens, "context_management": context})).into_response()
        }
        Err(error) => MessageAnswer::refusal(error),
    }
}

/// Converts `body` to the chat that it asks for.
///
/// # Errors
/// Fails like a message in answer to it would before it begins.
pub(super) fn as_chat(template: &ChatTemplate, body: &[u8]) -> Result<TextRequest, ApiError> {
    MessagesRequest::parse(body, Purpose::Message)?.into_chat(template)
}

fn count(pod: &Pod, body: &[u8]) -> Result<usize, ApiError> {
    let request = MessagesRequest::parse(body, Purpose::Count)?.into_chat(&pod.template)?;
    let incoming = Incoming {
        api: Api::Chat,
        request_id: request_ids::random().into(),
        arrival: pod.driver.clock().now(),
        model: pod.resolve_model(request.model.as_deref())?,
    };
    Ok(rendered(pod, &incoming, &request)?.iter().map(|prompt| prompt.ids.len()).sum())
}

/// Maps an error like vLLM's `translate_error_response`.
fn error_body(error: &ApiError) -> Value {
    let kind = match error.status {
        StatusCode::BAD_REQUEST => "invalid_request_error",
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": error.message}})
}
