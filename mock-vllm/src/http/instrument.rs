//! Counts and times every exchange for `http_*`. An answer of known length counts at once, a stream at its end.

use super::Pod;
use super::framework::Redirected;
use crate::metrics::http::HttpExchange;
use axum::body::{Body, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use vllm_engine::vllm_version::VllmVersion;

/// Prefix of the mock's own paths, which vLLM's metrics do not have.
const OWN_PATHS: &str = "/debug";

/// Counts one exchange, either when its end is reported or when dropped.
#[derive(Debug)]
struct Meter {
    pod: Arc<Pod>,
    exchange: HttpExchange,
    start: Instant,
    status: StatusCode,
    response_bytes: u64,
}

/// Stream whose end is the end of its exchange.
#[derive(Debug)]
struct MeteredBody {
    body: Body,
    /// Meter of the exchange; `None` once the stream has ended.
    meter: Option<Meter>,
}

pub(super) async fn instrument(State(pod): State<Arc<Pod>>, request: Request, next: Next) -> Response {
    #[expect(clippy::disallowed_methods, reason = "these durations are the web server's, in wall time")]
    let start = Instant::now();
    let path = request.uri().path();
    if path.starts_with(OWN_PATHS) {
        return next.run(request).await;
    }
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let exchange =
        HttpExchange::new(route, path, request.method().as_str(), content_length(request.headers()));
    let Some(exchange) = exchange else { return next.run(request).await };
    // Bytes that vLLM writes if the client leaves before the answer. They count if this future is dropped.
    let unread_bytes = match pod.config.version {
        VllmVersion::V0_8 | VllmVersion::V0_11 => "null".len() as u64,
        VllmVersion::V0_33 => 0,
    };
    let mut meter = Meter { pod, exchange, start, status: StatusCode::OK, response_bytes: unread_bytes };
    let response = next.run(request).await;
    let length = response.body().size_hint().exact();
    meter.status = response.status();
    meter.response_bytes = length.unwrap_or_default();
    if meter.status == StatusCode::METHOD_NOT_ALLOWED {
        meter.exchange.forget_handler();
    }
    if let Some(Redirected { from }) = response.extensions().get() {
        meter.exchange.redirect(from);
    }
    match length {
        Some(_) => {
            drop(meter);
            response
        }
        None => response.map(|body| Body::new(MeteredBody { body, meter: Some(meter) })),
    }
}

fn content_length(headers: &HeaderMap) -> u64 {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    length.and_then(|length| length.parse().ok()).unwrap_or_default()
}

// === impl Meter ===

impl Drop for Meter {
    fn drop(&mut self) {
        let Self { pod, exchange, start, status, response_bytes } = self;
        pod.http_metrics.record(exchange, *status, *response_bytes, start.elapsed());
    }
}

// === impl MeteredBody ===

impl HttpBody for MeteredBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() {
            self.meter = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
