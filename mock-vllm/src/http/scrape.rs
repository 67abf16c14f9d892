//! `/metrics` as vLLM serves it. The path itself answers in the text format, whatever the client accepts; every longer
//! path, like `/metrics/`, is `prometheus_client`'s own app, which negotiates the format, compresses and filters.

use super::Pod;
use crate::metrics::exposition::{CONTENT_TYPE, Format};
use crate::metrics::process::ProcessSample;
use crate::metrics::render::Scrape;
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use std::io::Write;
use std::sync::Arc;

pub(super) fn routes() -> Router<Arc<Pod>> {
    Router::new()
        .route("/metrics", get(exposed).head(negotiated).fallback(negotiated))
        .route("/metrics/", any(negotiated))
        .route("/metrics/{*rest}", any(negotiated))
}

/// Endpoint of the instrumentator.
async fn exposed(State(pod): State<Arc<Pod>>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], pod.metrics_page(Format::Text, &[])).into_response()
}

/// Mounted app of `prometheus_client`, which takes every method.
async fn negotiated(
    State(pod): State<Arc<Pod>>,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let (format, content_type) = Format::negotiate(&joined(&headers, header::ACCEPT));
    let only: Vec<String> = query
        .into_iter()
        .flat_map(|Query(pairs)| pairs)
        .filter(|(name, value)| name == "name[]" && !value.is_empty())
        .map(|(_, value)| value)
        .collect();
    let text = pod.metrics_page(format, &only);
    let content_type = HeaderValue::try_from(content_type).expect("the version was a header's value");
    let accepts_gzip = joined(&headers, header::ACCEPT_ENCODING)
        .split(',')
        .any(|coding| coding.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case("gzip")));
    if !accepts_gzip {
        return ([(header::CONTENT_TYPE, content_type)], text).into_response();
    }
    let encoding = HeaderValue::from_static("gzip");
    let headers = [(header::CONTENT_TYPE, content_type), (header::CONTENT_ENCODING, encoding)];
    (headers, Body::from(gzip(&text))).into_response()
}

impl Pod {
    /// Writes the true page, whatever faults do to `/metrics`.
    pub(super) fn true_page(&self, format: Format, only: &[String]) -> String {
        let process = ProcessSample::read();
        let scrape = Scrape { format, only, process: process.as_ref() };
        scrape.render(&self.metrics.lock(), &self.http_metrics)
    }
}

/// Joins all values of a header into one list.
fn joined(headers: &HeaderMap, name: HeaderName) -> String {
    let values: Vec<_> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    values.join(",")
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let written = encoder.write_all(text.as_bytes());
    written.and_then(|()| encoder.finish()).expect("a Vec takes any bytes")
}
