//! `/…/render` shows a request as the engine gets it, without an answer. Routers that place requests by their tokens
//! ask vLLM for it.
//!
//! vLLM 0.33 serves it with `--enable-scale-out` and answers 403 without the flag; older versions do not have it.

use super::error::ApiError;
use super::prepare::{Incoming, MeasuredPrompt, rendered};
use super::request::{DeliveryMode, StreamUsageMode, TextRequest};
use super::wire::Api;
use super::{Pod, anthropic, json_body, request_ids, responses};
use axum::Router;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::post;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;
use vllm_engine::vllm_version::VllmVersion;

const DISABLED: &str =
    "Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out to enable them.";

/// API of the request that is rendered.
#[derive(Clone, Copy, Debug)]
enum Rendered {
    Chat,
    Completion,
    /// Message of Anthropic's API.
    Message,
    Response,
}

/// vLLM's `GenerateRequest`: a body of `/inference/v1/generate`.
#[derive(Debug, Serialize)]
struct GenerateRequest {
    request_id: String,
    token_ids: Vec<u32>,
    token_offsets: Value,
    /// Features of images, audio and video, which no model here takes.
    features: Value,
    content_parts: Value,
    sampling_params: SamplingParams,
    model: Option<String>,
    reasoning_ended: Value,
    reasoning_parser_kwargs: Value,
    return_token_ids: Option<bool>,
    output_mode: &'static str,
    parse_context: Value,
    stream: bool,
    stream_options: Option<StreamOptions>,
    cache_salt: Option<String>,
    priority: i32,
    kv_transfer_params: Value,
    ec_transfer_params: Value,
}

/// Sampling parameters for the engine; vLLM leaves out those with their default.
#[derive(Debug, Serialize)]
struct SamplingParams {
    max_tokens: u32,
}

#[derive(Clone, Debug, Serialize)]
struct StreamOptions {
    include_usage: bool,
    continuous_usage_stats: bool,
}

pub(super) fn routes() -> Router<Arc<Pod>> {
    Router::new()
        .route("/v1/chat/completions/render", post(chat))
        .route("/v1/completions/render", post(completion))
        .route("/v1/messages/render", post(message))
        .route("/v1/responses/render", post(response))
}

async fn chat(
    State(pod): State<Arc<Pod>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    render(pod, Rendered::Chat, &headers, body).await
}

async fn completion(
    State(pod): State<Arc<Pod>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    render(pod, Rendered::Completion, &headers, body).await
}

async fn message(
    State(pod): State<Arc<Pod>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    render(pod, Rendered::Message, &headers, body).await
}

async fn response(
    State(pod): State<Arc<Pod>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    render(pod, Rendered::Response, &headers, body).await
}

async fn render(
    pod: Arc<Pod>,
    kind: Rendered,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    if pod.config.version != VllmVersion::V0_33 {
        return ApiError::plain(StatusCode::NOT_FOUND).into_response();
    }
    if !pod.config.endpoints.scale_out {
        let status = StatusCode::FORBIDDEN;
        let kind = "PermissionDeniedError";
        return ApiError { status, kind, message: DISABLED.to_owned(), older: None, param: None }
            .into_response();
    }
    let body = match json_body(headers, body) {
        Ok(body) => body,
        Err(error) => return error.into_response(),
    };
    let requests = tokio::task::spawn_blocking(move || generate_requests(&pod, kind, &body)).await;
    match (requests, kind) {
        (Ok(Ok(requests)), Rendered::Completion) => Json(requests).into_response(),
        (Ok(Ok(requests)), Rendered::Chat | Rendered::Message | Rendered::Response) => {
            Json(requests.first()).into_response()
        }
        (Ok(Err(error)), _) => error.into_response(),
        (Err(_panicked), _) => ApiError::engine_dead().into_response(),
    }
}

/// Makes one request per prompt.
///
/// # Errors
/// Fails like the request's own endpoint.
fn generate_requests(pod: &Pod, kind: Rendered, body: &[u8]) -> Result<Vec<GenerateRequest>, ApiError> {
    let version = pod.config.version;
    let (api, request) = match kind {
        Rendered::Chat => (Api::Chat, TextRequest::parse(Api::Chat, version, body)?),
        Rendered::Completion => (Api::Completion, TextRequest::parse(Api::Completion, version, body)?),
        Rendered::Message => (Api::Chat, anthropic::as_chat(&pod.template, body)?),
        Rendered::Response => (Api::Chat, responses::as_chat(&pod.config, body)?),
    };
    let own_id = request.request_id.clone().unwrap_or_else(request_ids::random);
    let id_prefix = match kind {
        Rendered::Chat | Rendered::Completion | Rendered::Message => api.id_prefix(),
        Rendered::Response => "resp_",
    };
    let incoming = Incoming {
        api,
        request_id: own_id.as_str().into(),
        arrival: pod.driver.clock().now(),
        model: pod.resolve_model(request.model.as_deref())?,
    };
    let prompts = rendered(pod, &incoming, &request)?;
    let n_prompts = prompts.len();
    let (stream, stream_options) = match request.delivery {
        DeliveryMode::Plain => (false, None),
        DeliveryMode::Stream(usage) => (true, stream_options(usage)),
    };
    let generate_request =
        |(prompt_idx, MeasuredPrompt { ids, limits }): (usize, MeasuredPrompt)| GenerateRequest {
            request_id: match n_prompts {
                1 => format!("{id_prefix}{own_id}"),
                _ => format!("{id_prefix}{own_id}-{prompt_idx}"),
            },
            token_ids: ids.to_vec(),
            token_offsets: Value::Null,
            features: Value::Null,
            content_parts: Value::Null,
            sampling_params: SamplingParams { max_tokens: limits.max_tokens },
            model: request.model.clone(),
            reasoning_ended: Value::Null,
            reasoning_parser_kwargs: Value::Null,
            return_token_ids: request.extras.token_ids.then_some(true),
            output_mode: "tokens",
            parse_context: Value::Null,
            stream,
            stream_options: stream_options.clone(),
            cache_salt: request.cache_salt.clone(),
            priority: request.priority,
            kv_transfer_params: Value::Null,
            ec_transfer_params: Value::Null,
        };
    Ok(prompts.into_iter().enumerate().map(generate_request).collect())
}

fn stream_options(usage: StreamUsageMode) -> Option<StreamOptions> {
    match usage {
        StreamUsageMode::None => None,
        StreamUsageMode::AtEnd => Some(StreamOptions { include_usage: true, continuous_usage_stats: false }),
        StreamUsageMode::Continuous => {
            Some(StreamOptions { include_usage: true, continuous_usage_stats: true })
        }
    }
}
