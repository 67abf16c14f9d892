//! Endpoints of `VLLM_SERVER_DEV_MODE`: sleep, pause, reset of the cache, and the configuration of the server.

use super::error::ApiError;
use super::framework::get;
use super::{OptionalEndpoints, Pod};
use crate::driver::pause::PauseMode;
use crate::metrics::SleepState;
use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::post;
use bytes::Bytes;
use http::StatusCode;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::sync::Arc;
use vllm_engine::vllm_version::VllmVersion;

/// Parts of the pod that can be woken one by one.
const TAGS: [&str; 2] = ["weights", "kv_cache"];

/// Depth of the pod's sleep, and the parts that are still asleep.
#[derive(Debug, Default)]
pub struct SleepSwitch(Mutex<Sleep>);

#[derive(Debug, Default)]
struct Sleep {
    state: SleepState,
    asleep: Vec<&'static str>,
}

pub(super) fn routes(endpoints: OptionalEndpoints) -> Router<Arc<Pod>> {
    if !endpoints.dev {
        return Router::new();
    }
    let routes = Router::new()
        .route("/reset_prefix_cache", post(reset_prefix_cache))
        .route("/reset_mm_cache", post(reset_nothing))
        .route("/reset_encoder_cache", post(reset_nothing))
        .route("/server_info", get(server_info))
        .route("/pause", post(pause))
        .route("/resume", post(resume))
        .route("/is_paused", get(is_paused))
        .route("/abort_requests", post(abort_requests));
    if !endpoints.sleep {
        return routes;
    }
    routes
        .route("/sleep", post(sleep))
        .route("/wake_up", post(wake_up))
        .route("/is_sleeping", get(is_sleeping))
}

/// Values of one query parameter, in order.
fn parameters<'a>(query: Option<&'a str>, name: &str) -> Vec<&'a str> {
    let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).collect()
}

/// Answers what was done, as vLLM 0.33 does; earlier versions answered with nothing.
fn done(pod: &Pod, said: Value) -> Response {
    match pod.config.version {
        VllmVersion::V0_8 | VllmVersion::V0_11 => StatusCode::OK.into_response(),
        VllmVersion::V0_33 => Json(said).into_response(),
    }
}

async fn reset_prefix_cache(
    State(pod): State<Arc<Pod>>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let starts_over =
        parameters(query.as_deref(), "reset_running_requests").last().is_some_and(|value| is_true(value));
    let reset = pod.driver.with_engine(move |engine| {
        if starts_over {
            // They free their blocks and begin again, as after a preemption.
            engine.preempt_all();
        }
        engine.reset_prefix_cache()
    });
    let success = reset.await.map_err(|_dead| ApiError::engine_dead())?;
    Ok(done(&pod, json!({"success": success})))
}

/// Resets a cache that does not exist here: there are no images.
async fn reset_nothing(State(pod): State<Arc<Pod>>) -> Response {
    done(&pod, json!({"success": true}))
}

fn is_true(value: &str) -> bool {
    ["1", "true", "yes", "on"].iter().any(|word| value.eq_ignore_ascii_case(word))
}

fn mode(query: Option<&str>) -> Result<PauseMode, ApiError> {
    match parameters(query, "mode").last() {
        None | Some(&"abort") => Ok(PauseMode::Abort),
        Some(&"wait") => Ok(PauseMode::Wait),
        Some(&"keep") => Ok(PauseMode::Keep),
        Some(other) => {
            let message = format!("mode must be one of 'abort', 'wait', 'keep', got '{other}'");
            Err(ApiError::bad_request(message, Some("mode")))
        }
    }
}

async fn pause_scheduler(pod: &Pod, mode: PauseMode) -> Result<(), ApiError> {
    pod.driver.pause(mode).await.map_err(|_dead| ApiError::engine_dead())?;
    // A false answer is not a failure: requests that are kept hold their blocks.
    let reset = pod.driver.with_engine(|engine| engine.reset_prefix_cache());
    reset.await.map(|_was_reset| ()).map_err(|_dead| ApiError::engine_dead())
}

async fn sleep(State(pod): State<Arc<Pod>>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let query = query.as_deref();
    let level = parameters(query, "level").last().copied().unwrap_or("1");
    let state = match level {
        "0" => SleepState::Paused,
        "1" => SleepState::WeightsOffloaded,
        "2" => SleepState::DiscardAll,
        other => {
            let message = format!("level must be 0, 1 or 2, got {other}");
            return Err(ApiError::bad_request(message, Some("level")));
        }
    };
    pause_scheduler(&pod, mode(query)?).await?;
    pod.set_sleep(Sleep { state, asleep: TAGS.to_vec() });
    Ok(done(&pod, json!({"status": "sleeping", "level": level.parse::<u32>().unwrap_or_default()})))
}

async fn wake_up(State(pod): State<Arc<Pod>>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let tags = parameters(query.as_deref(), "tags");
    if let Some(unknown) = tags.iter().find(|tag| !TAGS.contains(tag)) {
        let message = format!("tags must be among 'weights', 'kv_cache', got '{unknown}'");
        return Err(ApiError::bad_request(message, Some("tags")));
    }
    let still_asleep: Vec<&'static str> = {
        let sleep = pod.sleep.0.lock();
        let stays = |tag: &&'static str| !tags.is_empty() && !tags.contains(tag);
        sleep.asleep.iter().copied().filter(stays).collect()
    };
    if still_asleep.is_empty() {
        pod.set_sleep(Sleep::default());
        pod.driver.resume().map_err(|_dead| ApiError::engine_dead())?;
    } else {
        pod.sleep.0.lock().asleep = still_asleep;
    }
    let tags = if tags.is_empty() { Value::Null } else { json!(tags) };
    Ok(done(&pod, json!({"status": "awake", "tags": tags})))
}

async fn is_sleeping(State(pod): State<Arc<Pod>>) -> Json<Value> {
    let is_sleeping = pod.sleep.0.lock().state != SleepState::Awake;
    Json(json!({"is_sleeping": is_sleeping}))
}

async fn pause(State(pod): State<Arc<Pod>>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    pause_scheduler(&pod, mode(query.as_deref())?).await?;
    pod.set_sleep(Sleep { state: SleepState::Paused, asleep: Vec::new() });
    Ok(Json(json!({"status": "paused"})).into_response())
}

async fn resume(State(pod): State<Arc<Pod>>) -> Result<Response, ApiError> {
    pod.set_sleep(Sleep::default());
    pod.driver.resume().map_err(|_dead| ApiError::engine_dead())?;
    Ok(Json(json!({"status": "resumed"})).into_response())
}

async fn is_paused(State(pod): State<Arc<Pod>>) -> Json<Value> {
    let is_paused = pod.sleep.0.lock().state != SleepState::Awake;
    Json(json!({"is_paused": is_paused}))
}

/// Aborts the requests of `{"request_ids": [..]}`, or all without a body.
async fn abort_requests(State(pod): State<Arc<Pod>>, body: Bytes) -> Result<Response, ApiError> {
    let request_ids = if body.is_empty() {
        None
    } else {
        let mut fields = super::body::Fields::parse(&body)?;
        let request_ids = fields.strings("request_ids");
        fields.finish()?;
        request_ids
    };
    pod.driver.abort_requests(request_ids).map_err(|_dead| ApiError::engine_dead())?;
    Ok(Json(json!({"status": "aborted"})).into_response())
}

async fn server_info(State(pod): State<Arc<Pod>>) -> Result<Response, ApiError> {
    let config = pod.driver.with_engine(|engine| engine.config().clone());
    let config = config.await.map_err(|_dead| ApiError::engine_dead())?;
    let served = &pod.config;
    Ok(Json(json!({"vllm_config": {
        "model_config": {
            "model": served.model_root,
            "served_model_name": served.served_model_names,
            "max_model_len": served.max_model_len,
        },
        "cache_config": {
            "block_size": config.block_size,
            "enable_prefix_caching": config.prefix_caching,
            "num_gpu_blocks": config.n_blocks,
        },
        "scheduler_config": {
            "max_num_batched_tokens": config.max_num_batched_tokens,
            "max_num_seqs": config.max_num_seqs,
            "enable_chunked_prefill": config.chunked_prefill,
            "long_prefill_token_threshold": config.long_prefill_token_threshold,
        },
    }}))
    .into_response())
}

// === impl Pod ===

impl Pod {
    fn set_sleep(&self, sleep: Sleep) {
        let mut current = self.sleep.0.lock();
        self.metrics.lock().record_sleep_state(sleep.state);
        *current = sleep;
    }
}
