//! The pages for probes and Prometheus: `/metrics`, `/healthz`, `/readyz`.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::facts::Facts;
use crate::metrics::Metrics;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// State of the handlers.
#[derive(Clone, Debug)]
pub struct Pages {
    pub metrics: Arc<Metrics>,
    pub facts: watch::Receiver<Option<Arc<Facts>>>,
    /// Cancelled when the process is told to end.
    pub stop: CancellationToken,
}

impl Pages {
    pub fn router(self) -> Router {
        Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(readyz))
            .with_state(self)
    }
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    ([(CONTENT_TYPE, OPENMETRICS)], pages.metrics.encode())
}

/// Ready means that hooks are answered with knowledge of the cluster.
async fn readyz(State(pages): State<Pages>) -> (StatusCode, &'static str) {
    if pages.stop.is_cancelled() {
        (StatusCode::SERVICE_UNAVAILABLE, "ending\n")
    } else if pages.facts.borrow().is_none() {
        (StatusCode::SERVICE_UNAVAILABLE, "waiting for the first lists of the API server\n")
    } else {
        (StatusCode::OK, "ok\n")
    }
}
