//! The HTTP pages for people and Prometheus: `/metrics`, `/healthz`, `/readyz`, `/debug/decisions`, `/debug/pools`,
//! `/debug/policy`.
//!
//! Long pages are rendered one at a time, and decisions part by part, so that many readers leave the other threads to
//! requests.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{FromRef, Query, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::StreamExt as _;
use futures::stream::{once, unfold};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::yield_now;
use tokio_util::sync::CancellationToken;

use crate::director::Director;
use crate::metrics;
use crate::peers::{HEARTBEAT, PeerJournal, PeerLine};
use crate::reports::Reports;

/// Approximate bytes of journal lines that are sent to a peer at once.
const PEER_CHUNK: usize = 64 << 10;

#[derive(Debug, Deserialize)]
struct After {
    /// Only decisions with a higher number are shown.
    #[serde(default)]
    after: u64,
}

/// Position up to which a peer has read.
#[derive(Debug, Deserialize)]
struct Place {
    #[serde(default)]
    instance: String,
    #[serde(default)]
    after: u64,
}

/// State of the handlers.
#[derive(Clone, Debug)]
struct Served {
    reports: Arc<Reports>,
    /// Cancelled when the drain begins.
    drain: CancellationToken,
    /// Ends streams that would otherwise never end.
    stop: CancellationToken,
    /// Permit to render a page; there is one.
    turns: Arc<Semaphore>,
}

impl Served {
    fn director(&self) -> &Director {
        self.reports.director()
    }

    async fn turn(&self) -> SemaphorePermit<'_> {
        self.turns.acquire().await.expect("the semaphore is never closed")
    }
}

impl FromRef<Served> for Arc<Director> {
    fn from_ref(served: &Served) -> Self {
        Arc::clone(served.reports.director())
    }
}

/// The routes of the metrics port.
pub(super) fn router(reports: Arc<Reports>, (drain, stop): (CancellationToken, CancellationToken)) -> Router {
    Router::new()
        .route("/metrics", get(show_metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(show_readiness))
        .route("/debug/decisions", get(show_decisions))
        .route("/debug/pools", get(show_pools))
        .route("/debug/policy", get(show_policy))
        .route("/peers/insertions", get(tell_peer))
        .with_state(Served { reports, drain, stop, turns: Arc::new(Semaphore::new(1)) })
}

/// 200 if requests are placed with knowledge, 503 before that and while draining.
async fn show_readiness(State(served): State<Served>) -> (StatusCode, &'static str) {
    if served.drain.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n");
    }
    match served.director().is_ready() {
        true => (StatusCode::OK, "ok\n"),
        false => (
            StatusCode::SERVICE_UNAVAILABLE,
            "no pool, or endpoints that were not asked for their load yet\n",
        ),
    }
}

/// Metrics as OpenMetrics for clients that ask for it, such as Prometheus; in the older format for others, such as
/// curl.
async fn show_metrics(State(served): State<Served>, headers: HeaderMap) -> Response {
    let _turn = served.turn().await;
    let director = served.director();
    let standing = director.standing(now());
    let accepts = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let (content_type, text) = if accepts.contains("application/openmetrics-text") {
        (metrics::OPENMETRICS, director.metrics().encode(&standing))
    } else {
        (metrics::CLASSIC, director.metrics().encode_classic(&standing))
    };
    ([(CONTENT_TYPE, content_type)], text).into_response()
}

async fn show_decisions(State(served): State<Served>, Query(After { after }): Query<After>) -> Response {
    let listing = served.director().decisions().listing(after);
    let parts = unfold((served, listing), async |(served, mut listing)| {
        // Otherwise a fast reader would keep the thread to the end.
        yield_now().await;
        let turn = served.turn().await;
        let part = listing.next_part(served.director().decisions())?;
        drop(turn);
        Some((part, (served, listing)))
    });
    let body = Body::from_stream(parts.map(Ok::<_, Infallible>));
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

async fn show_pools(State(served): State<Served>) -> Response {
    let _turn = served.turn().await;
    Json(served.director().status(now())).into_response()
}

/// The value in force and its source, by pool and knob.
async fn show_policy(State(director): State<Arc<Director>>) -> Json<Value> {
    let pools = director.policies().all();
    let pools = pools.iter().map(|(pool, tuning)| (pool.to_string(), json!(tuning.settings())));
    Json(json!({ "pools": pools.collect::<Map<_, _>>() }))
}

/// The journal from the peer's position on, as lines of JSON, for as long as the peer listens.
async fn tell_peer(State(served): State<Served>, Query(place): Query<Place>) -> Response {
    let Some(journal) = served.director().journal() else {
        return (StatusCode::NOT_FOUND, "this picker has no --peer\n").into_response();
    };
    // Numbers of another process mean nothing here.
    let after = if place.instance == journal.instance() { place.after } else { 0 };
    let hello = line(&journal.hello(after));
    let lines = unfold((served, after, now()), async |(served, after, mut due)| {
        let (mut lines, after) = next_lines(served.director().journal()?, after, &served.stop).await?;
        let now = now();
        if lines.is_empty() || now >= due {
            lines += &line(&PeerLine::Waiting { ages_ms: served.reports.ages(now) });
            due = now + HEARTBEAT;
        }
        Some((lines, (served, after, due)))
    });
    let stream = once(async { hello }).chain(lines).map(Ok::<_, Infallible>);
    ([(CONTENT_TYPE, "application/jsonl")], Body::from_stream(stream)).into_response()
}

/// The next events, or none if it is time for a heartbeat; `None` after `stop` and the last event, which is often the end
/// of a request that a peer waits for.
async fn next_lines(journal: &PeerJournal, after: u64, stop: &CancellationToken) -> Option<(String, u64)> {
    tokio::select! {
        biased;
        more = more_lines(journal, after) => Some(more),
        () = stop.cancelled() => None,
    }
}

/// The next events, as many as exist and fit into a chunk, or none after [`HEARTBEAT`]; and the number of the last one.
async fn more_lines(journal: &PeerJournal, mut after: u64) -> (String, u64) {
    let mut lines = String::new();
    if !journal.wait_for_more(after).await {
        return (lines, after);
    }
    while lines.len() < PEER_CHUNK
        && let Some(event) = journal.after(after)
    {
        after = event.seq;
        lines += &line(&event.line);
    }
    (lines, after)
}

fn line(line: &PeerLine) -> String {
    serde_json::to_string(line).unwrap_or_default() + "\n"
}

#[expect(clippy::disallowed_methods, reason = "the server is the edge that hands the time in")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use ext_proc::observation::{Ending, Name};
    use tokio_util::sync::CancellationToken;

    use super::{PEER_CHUNK, next_lines};
    use crate::peers::PeerJournal;

    #[tokio::test]
    async fn a_picker_that_ends_tells_everything_first() {
        let journal = PeerJournal::new("me".to_owned(), usize::MAX);
        let note = || {
            let name = Name::Ticket("t".repeat(PEER_CHUNK));
            let ending = Ending { name, served_elsewhere: None, status: None, n_bytes: 0, complete: false };
            journal.note_end(ending);
        };
        (0..20).for_each(|_| note());
        let stop = CancellationToken::new();
        stop.cancel();
        let (mut after, mut n_told) = (0, 0);
        while let Some((_, last)) = next_lines(&journal, after, &stop).await {
            (after, n_told) = (last, n_told + 1);
        }
        assert_eq!((after, n_told), (20, 20));
    }
}
