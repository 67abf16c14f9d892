//! `/debug/cache` shows the block pool as it is now, and `/debug/lookup` what a prompt would hit now. Neither changes
//! anything. `/debug/clock` shows and sets the time.

mod cache;
mod clock;
mod lookup;

use super::error::ApiError;
use super::framework::get;
use super::{Pod, json_body};
use axum::Router;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Json, Response};
use axum::routing::post;
use bytes::Bytes;
use cache::CacheQuery;
use http::HeaderMap;
use std::sync::Arc;

pub(super) fn routes() -> Router<Arc<Pod>> {
    Router::new()
        .route("/debug/cache", get(show_cache))
        .route("/debug/lookup", post(look_up))
        .route("/debug/clock", get(show_clock).post(set_clock))
        .route("/debug/clock/advance", post(advance_clock))
}

async fn show_cache(
    State(pod): State<Arc<Pod>>,
    query: Result<Query<CacheQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|rejection| ApiError::bad_request(rejection.body_text(), None))?;
    Ok(Json(cache::show(&pod, query).await?).into_response())
}

async fn look_up(
    State(pod): State<Arc<Pod>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body = json_body(&headers, body)?;
    Ok(Json(lookup::look_up(pod, body).await?).into_response())
}

async fn show_clock(State(pod): State<Arc<Pod>>) -> Response {
    Json(clock::show(pod.driver.clock())).into_response()
}

async fn set_clock(State(pod): State<Arc<Pod>>, body: Bytes) -> Result<Response, ApiError> {
    Ok(Json(clock::set(pod.driver.clock(), &body)?).into_response())
}

async fn advance_clock(State(pod): State<Arc<Pod>>, body: Bytes) -> Result<Response, ApiError> {
    Ok(Json(clock::advance(pod.driver.clock(), &body).await?).into_response())
}
