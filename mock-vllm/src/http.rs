//! vLLM's HTTP surface for one pod: routes, keys, request ids and the small endpoints. Text generation is in
//! `generate`.

pub mod dev;
pub mod lora;

pub mod cors;
mod debug;
pub mod faults;
mod instrument;
mod framework;
pub mod keep_alive;
mod render;
mod anthropic;
mod responses;
mod events;
mod generate;
mod caller;
mod ground_truth;
mod prepare;
mod request_ids;
mod scrape;
mod stream;
mod answer;
mod choices;
mod record;
mod request;
mod logprobs;
mod sampling;
pub mod shape;
mod tokenize;
mod messages;
mod body;
mod error;
mod prompt;
mod python_json;
mod wire;

use crate::clock::Clock;
use crate::driver::DriverHandle;
use crate::faults::active::PodFaults;
use crate::metrics::Metrics;
use crate::metrics::http::HttpMetrics;
use crate::request_log::RequestLog;
use crate::send_schedule::SendSchedule;
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::post;
use bytes::Bytes;
use caller::Caller;
use cors::CorsConfig;
use dev::SleepSwitch;
use error::ApiError;
use framework::get;
use generate::generate;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use keep_alive::KeepAlive;
use lora::LoraRegistry;
use parking_lot::Mutex;
use serde_json::{Value, json};
use shape::ToolCalling;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use vllm_engine::vllm_version::VllmVersion;
use vllm_text::reply::Replier;
use vllm_text::tokens::Tokenizer;
use vllm_text::tokens::chat_template::ChatTemplate;
use wire::Api;

/// Largest request body. uvicorn has no limit, but a server without one can be filled.
const BODY_LIMIT: usize = 64 << 20;
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Paths that `--api-key` guards in vLLM 0.33.
const GUARDED: [&str; 4] = ["/v1", "/v2", "/inference", "/cohere"];

/// Treatment of requests for a model that is neither served nor an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherNames {
    /// An error, as in vLLM.
    NotFound,
    /// The served model answers under the request's name.
    Answered,
}

/// Facts about their pod that the endpoints need.
#[derive(Clone, Debug)]
pub struct PodConfig {
    /// Names of the model, at least one; answers show the first.
    pub served_model_names: Vec<String>,
    pub other_names: OtherNames,
    /// `--model`, as `/v1/models` shows it.
    pub model_root: String,
    pub max_model_len: u32,
    pub block_size: NonZeroU32,
    pub prefix_caching: bool,
    pub pod_name: String,
    /// vLLM version that the wire imitates.
    pub version: VllmVersion,
    /// Keys; empty if no key is required.
    pub api_keys: Vec<String>,
    pub cors: CorsConfig,
    pub response_role: String,
    /// Path under which the pod answers too; empty for none.
    pub root_path: String,
    pub fingerprint: String,
    pub usage: UsageConfig,
    pub output: OutputConfig,
    pub request_id_headers: bool,
    pub server_load_tracking: bool,
    pub endpoints: OptionalEndpoints,
}

/// Endpoints that exist only with a flag.
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OptionalEndpoints {
    /// `VLLM_SERVER_DEV_MODE`
    pub dev: bool,
    /// `--enable-sleep-mode`: without it, nothing can sleep.
    pub sleep: bool,
    /// `VLLM_ALLOW_RUNTIME_LORA_UPDATING`, with `--enable-lora`.
    pub lora_updates: bool,
    /// `--enable-tokenizer-info-endpoint`
    pub tokenizer_info: bool,
    /// `--enable-scale-out`: the pod renders requests for others.
    pub scale_out: bool,
    /// `--mock-endpoints`: `/debug/*`, and headers of the mock's own.
    pub mock: bool,
}

/// Contents of `usage`, and when it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageConfig {
    /// Include `cached_tokens`.
    pub prompt_tokens_details: bool,
    /// End every stream with it, whether the request asks for it or not.
    pub forced: bool,
}

/// Form of replies.
#[derive(Clone, Debug, Default)]
pub struct OutputConfig {
    pub tool_calling: ToolCalling,
    /// Most log probabilities per token that a request may ask for; -1 for all.
    pub max_logprobs: i64,
    /// Write a token as `token_id:5` in log probabilities, unless the request says otherwise.
    pub tokens_as_ids: bool,
    /// Tokens per frame of a stream, at least 1; requests may ask for more.
    pub stream_interval: u32,
    pub keep_alive: KeepAlive,
}

/// State that all handlers share.
#[derive(Debug)]
pub struct Pod {
    pub config: PodConfig,
    pub tokenizer: Tokenizer,
    pub template: Arc<ChatTemplate>,
    pub replier: Replier,
    pub driver: DriverHandle,
    /// Queue in which streams wait for their time.
    pub send_schedule: Option<Arc<SendSchedule>>,
    pub metrics: Arc<Mutex<Metrics>>,
    pub http_metrics: HttpMetrics,
    pub log: Arc<RequestLog>,
    pub server_load: ServerLoad,
    pub loras: LoraRegistry,
    pub sleep: SleepSwitch,
    pub faults: Arc<PodFaults>,
}

/// Number of requests for text in flight.
#[derive(Debug, Default)]
pub struct ServerLoad(AtomicU64);

pub fn router(pod: Arc<Pod>) -> Router {
    let root_path = pod.config.root_path.clone();
    let routes = Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/completions", post(completions))
        .route("/v1/responses", post(responses))
        .route("/v1/responses/{response_id}", get(stored_response))
        .route("/v1/responses/{response_id}/cancel", post(stored_response))
        .route("/v1/messages", post(messages_of_anthropic))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/invocations", post(invocations))
        .route("/v1/models", get(models))
        .route("/tokenize", post(tokenize_text))
        .route("/detokenize", post(detokenize_ids))
        .route("/tokenizer_info", get(tokenizer_info))
        .merge(scrape::routes())
        .merge(render::routes())
        .route("/health", get(health))
        .route("/ping", get(health).post(health))
        .route("/version", get(version))
        .route("/load", get(load))
        .merge(lora::routes(pod.config.endpoints))
        .merge(dev::routes(pod.config.endpoints));
    let routes = match pod.config.endpoints.mock {
        true => routes.merge(debug::routes()).merge(faults::routes()),
        false => routes,
    };
    let router = framework::complete(routes, &pod)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::map_response_with_state(pod.clone(), dated))
        .layer(middleware::from_fn_with_state(pod.clone(), faults::inject::inject))
        .layer(middleware::from_fn_with_state(pod.clone(), instrument::instrument))
        .with_state(pod.clone());
    let anywhere = match root_path.as_str() {
        "" => router,
        path => Router::new().nest(path, router.clone()).fallback_service(router),
    };
    let below = match pod.config.other_names {
        OtherNames::NotFound => anywhere,
        OtherNames::Answered => {
            Router::new().fallback_service(anywhere).layer(middleware::map_request(without_prefix))
        }
    };
    Router::new()
        .fallback_service(below)
        .layer(middleware::map_response(framework::name_one_method))
        .layer(middleware::from_fn_with_state(pod.clone(), cors::cors))
        .layer(middleware::from_fn_with_state(pod, gate))
}

// === impl PodConfig ===

impl PodConfig {
    pub fn displayed_model(&self) -> &str {
        self.served_model_names.first().map_or("", String::as_str)
    }
}

// === impl ServerLoad ===

impl ServerLoad {
    fn enter(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn leave(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Removes what comes before the API's path: a pod that stands in for another server knows no paths of that server.
async fn without_prefix(mut request: Request) -> Request {
    let uri = request.uri();
    let rest = uri.path().rfind("/v1/").and_then(|idx| uri.path_and_query()?.as_str().get(idx..));
    if let Some(rest) = rest.and_then(|rest| Uri::try_from(rest).ok()) {
        *request.uri_mut() = rest;
    }
    request
}

/// Checks keys before a request, and adds request-id headers after it.
async fn gate(State(pod): State<Arc<Pod>>, mut request: Request, next: Next) -> Response {
    if is_guarded(&request, &pod.config.root_path)
        && !pod.config.api_keys.is_empty()
        && !has_key(&pod.config.api_keys, &request)
    {
        return (StatusCode::UNAUTHORIZED, Json(json!({"error": "Unauthorized"}))).into_response();
    }
    if !pod.config.request_id_headers {
        return next.run(request).await;
    }
    let given = request.headers().get(X_REQUEST_ID).cloned();
    let id = given.unwrap_or_else(|| {
        HeaderValue::from_str(&request_ids::random()).expect("hex digits are a header value")
    });
    request.headers_mut().insert(X_REQUEST_ID, id.clone());
    let mut response = next.run(request).await;
    response.headers_mut().insert(X_REQUEST_ID, id);
    response
}

async fn dated(State(pod): State<Arc<Pod>>, response: Response) -> Response {
    error::dated(response, pod.config.version)
}

fn is_guarded(request: &Request, root_path: &str) -> bool {
    let path = request.uri().path();
    let path = path.strip_prefix(root_path).unwrap_or(path);
    request.method() != Method::OPTIONS && GUARDED.iter().any(|prefix| path.starts_with(prefix))
}

fn has_key(keys: &[String], request: &Request) -> bool {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = given
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    token.is_some_and(|(_, token)| keys.iter().any(|key| key == token))
}

/// Returns a JSON body.
///
/// # Errors
/// Fails for another content type, and for a body that is too large or breaks off.
fn json_body(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Bytes, ApiError> {
    let content_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default();
    if !media_type.eq_ignore_ascii_case("application/json") {
        return Err(body::unsupported_media_type());
    }
    body.map_err(|rejection| ApiError::plain(rejection.status()))
}

async fn chat_completions(
    State(pod): State<Arc<Pod>>,
    headers: HeaderMap,
    caller: Caller,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    answer(pod, Api::Chat, &headers, caller, body).await
}

async fn completions(
    State(pod): State<Arc<Pod>>,
    headers: HeaderMap,
    caller: Caller,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    answer(pod, Api::Completion, &headers, caller, body).await
}

/// Answers SageMaker's one endpoint: with a chat or a completion, depending on the body.
async fn invocations(
    State(pod): State<Arc<Pod>>,
    headers: HeaderMap,
    caller: Caller,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let is_chat = |body: &Bytes| body::Fields::parse(body).is_ok_and(|fields| fields.has("messages"));
    let api = if body.as_ref().is_ok_and(is_chat) { Api::Chat } else { Api::Completion };
    answer(pod, api, &headers, caller, body).await
}

/// Answers `/v1/responses`, which vLLM has since 0.10.
async fn responses(
    State(pod): State<Arc<Pod>>,
    headers: HeaderMap,
    caller: Caller,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    if pod.config.version == VllmVersion::V0_8 {
        return framework::not_found();
    }
    match json_body(&headers, body) {
        Ok(body) => responses::respond(pod, caller, body).await,
        Err(error) => error.into_response(),
    }
}

async fn stored_response(State(pod): State<Arc<Pod>>, Path(id): Path<String>) -> Response {
    match pod.config.version {
        VllmVersion::V0_8 => framework::not_found(),
        VllmVersion::V0_11 | VllmVersion::V0_33 => responses::stored(&id),
    }
}

async fn messages_of_anthropic(
    State(pod): State<Arc<Pod>>,
    headers: HeaderMap,
    caller: Caller,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    match json_body(&headers, body) {
        _ if pod.config.version != VllmVersion::V0_33 => framework::not_found(),
        Ok(body) => anthropic::respond(pod, caller, body).await,
        Err(error) => error.into_response(),
    }
}

async fn count_tokens(
    State(pod): State<Arc<Pod>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    match json_body(&headers, body) {
        _ if pod.config.version != VllmVersion::V0_33 => framework::not_found(),
        Ok(body) => anthropic::count_tokens(pod, body).await,
        Err(error) => error.into_response(),
    }
}

async fn answer(
    pod: Arc<Pod>,
    api: Api,
    headers: &HeaderMap,
    caller: Caller,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    match json_body(headers, body) {
        Ok(body) => generate(pod, api, caller, body).await,
        Err(error) => error.into_response(),
    }
}

async fn tokenize_text(
    State(pod): State<Arc<Pod>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    tokenize::tokenize(&pod, &json_body(&headers, body)?)
}

async fn detokenize_ids(
    State(pod): State<Arc<Pod>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    tokenize::detokenize(&pod, &json_body(&headers, body)?)
}

async fn tokenizer_info(State(pod): State<Arc<Pod>>) -> Response {
    if pod.config.endpoints.tokenizer_info { tokenize::info(&pod) } else { framework::not_found() }
}

async fn models(State(pod): State<Arc<Pod>>) -> Json<Value> {
    let created = Clock::unix_now().as_secs();
    let bases = pod.config.served_model_names.iter().map(|name| model_card(&pod.config, name, created));
    let cards: Vec<Value> = bases.chain(pod.loras.cards(&pod.config, created)).collect();
    Json(json!({"object": "list", "data": cards}))
}

fn model_card(config: &PodConfig, name: &str, created: u64) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "vllm",
        "root": config.model_root,
        "parent": null,
        "max_model_len": config.max_model_len,
        "permission": permission(created),
    })
}

async fn health(State(pod): State<Arc<Pod>>) -> Response {
    let status = if pod.driver.is_alive() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Body::empty()).into_response()
}

async fn version(State(pod): State<Arc<Pod>>) -> Json<Value> {
    Json(json!({"version": pod.config.version.release()}))
}

async fn load(State(pod): State<Arc<Pod>>) -> Json<Value> {
    let load = if pod.config.server_load_tracking { pod.server_load.0.load(Ordering::Relaxed) } else { 0 };
    Json(json!({"server_load": load}))
}

fn permission(created: u64) -> Value {
    json!([{
        "id": format!("modelperm-{}", request_ids::random()),
        "object": "model_permission",
        "created": created,
        "allow_create_engine": false,
        "allow_sampling": true,
        "allow_logprobs": true,
        "allow_search_indices": false,
        "allow_view": true,
        "allow_fine_tuning": false,
        "organization": "*",
        "group": null,
        "is_blocking": false,
    }])
}
