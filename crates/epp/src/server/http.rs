//! The HTTP face for people and Prometheus: `/metrics`, `/healthz`, `/debug/decisions`, `/debug/pools`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Query, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;

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
        .with_state(director)
}

async fn show_metrics(State(director): State<Arc<Director>>) -> Response {
    director.refresh_gauges(now());
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], director.metrics().encode()).into_response()
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

#[expect(clippy::disallowed_methods, reason = "the server is the edge that hands the time in")]
fn now() -> Instant {
    Instant::now()
}
