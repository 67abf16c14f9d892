//! `/debug/cache` shows the block pool as it is now, and `/debug/lookup` what a prompt would hit now. Neither changes
//! anything.

mod cache;
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
    Router::new().route("/debug/cache", get(show_cache)).route("/debug/lookup", post(look_up))
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
