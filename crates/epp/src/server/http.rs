//! The HTTP face for people and Prometheus: `/metrics`, `/healthz`, `/debug/decisions`, `/debug/pools`, `/debug/policy`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::director::Director;
use crate::explain::DecisionList;
use crate::metrics;
use crate::status::StatusList;

#[derive(Debug, Deserialize)]
struct After {
    /// Only decisions numbered above this.
    #[serde(default)]
    after: u64,
}

/// The routes of the metrics port.
pub(super) fn router(director: Arc<Director>) -> Router {
    Router::new()
        .route("/metrics", get(show_metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/debug/decisions", get(show_decisions))
        .route("/debug/pools", get(show_pools))
        .route("/debug/policy", get(show_policy))
        .with_state(director)
}

/// OpenMetrics for those who ask for it, as Prometheus does; the older format for curl and the like.
async fn show_metrics(State(director): State<Arc<Director>>, headers: HeaderMap) -> Response {
    director.refresh_gauges(now());
    let accepts = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let (content_type, text) = if accepts.contains("application/openmetrics-text") {
        (metrics::OPENMETRICS, director.metrics().encode())
    } else {
        (metrics::CLASSIC, director.metrics().encode_classic())
    };
    ([(CONTENT_TYPE, content_type)], text).into_response()
}

async fn show_decisions(
    State(director): State<Arc<Director>>,
    Query(After { after }): Query<After>,
) -> Json<DecisionList> {
    Json(director.decisions().after(after))
}

async fn show_pools(State(director): State<Arc<Director>>) -> Json<StatusList> {
    Json(director.status(now()))
}

/// By pool and knob: the value in force, and where it comes from.
async fn show_policy(State(director): State<Arc<Director>>) -> Json<Value> {
    let pools = director.policies().all();
    let pools = pools.iter().map(|(pool, tuning)| (pool.to_string(), json!(tuning.settings())));
    Json(json!({ "pools": pools.collect::<Map<_, _>>() }))
}

#[expect(clippy::disallowed_methods, reason = "the server is the edge that hands the time in")]
fn now() -> Instant {
    Instant::now()
}
