//! The HTTP face for people and Prometheus: `/metrics`, `/healthz`, `/readyz`, `/debug/decisions`, `/debug/pools`, `/debug/policy`.
//!
//! Long pages are made one at a time, and decisions part by part: readers, however many, leave the other threads to requests.

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
use crate::peers::{Event, Journal, Line};

/// Lines that are sent to a peer at once [bytes], more or less.
const PEER_CHUNK: usize = 64 << 10;

#[derive(Debug, Deserialize)]
struct After {
    /// Only decisions numbered above this.
    #[serde(default)]
    after: u64,
}

/// How far a peer has read.
#[derive(Debug, Deserialize)]
struct Place {
    #[serde(default)]
    instance: String,
    #[serde(default)]
    after: u64,
}

/// What the handlers have.
#[derive(Clone, Debug)]
struct Served {
    director: Arc<Director>,
    /// Set when the picker ends.
    drain: CancellationToken,
    /// Ends streams that would go on for ever.
    stop: CancellationToken,
    /// The permit of the page that is being made: there is one.
    turns: Arc<Semaphore>,
}

impl Served {
    async fn turn(&self) -> SemaphorePermit<'_> {
        self.turns.acquire().await.expect("the semaphore is never closed")
    }
}

impl FromRef<Served> for Arc<Director> {
    fn from_ref(served: &Served) -> Self {
        Arc::clone(&served.director)
    }
}

/// The routes of the metrics port.
pub(super) fn router(
    director: Arc<Director>,
    (drain, stop): (CancellationToken, CancellationToken),
) -> Router {
    Router::new()
        .route("/metrics", get(show_metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(show_readiness))
        .route("/debug/decisions", get(show_decisions))
        .route("/debug/pools", get(show_pools))
        .route("/debug/policy", get(show_policy))
        .route("/peers/insertions", get(tell_peer))
        .with_state(Served { director, drain, stop, turns: Arc::new(Semaphore::new(1)) })
}

/// 200 when requests are placed knowingly, 503 until then and when the picker ends.
async fn show_readiness(State(served): State<Served>) -> (StatusCode, &'static str) {
    if served.drain.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n");
    }
    match served.director.is_ready() {
        true => (StatusCode::OK, "ok\n"),
        false => (
            StatusCode::SERVICE_UNAVAILABLE,
            "no pool, or endpoints that were not asked for their load yet\n",
        ),
    }
}

/// OpenMetrics for those who ask for it, as Prometheus does; the older format for curl and the like.
async fn show_metrics(State(served): State<Served>, headers: HeaderMap) -> Response {
    let _turn = served.turn().await;
    let director = &served.director;
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
    let listing = served.director.decisions().listing(after);
    let parts = unfold((served, listing), async |(served, mut listing)| {
        // A reader that takes each part at once would otherwise keep the thread to the end.
        yield_now().await;
        let turn = served.turn().await;
        let part = listing.next_part(served.director.decisions())?;
        drop(turn);
        Some((part, (served, listing)))
    });
    let body = Body::from_stream(parts.map(Ok::<_, Infallible>));
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

async fn show_pools(State(served): State<Served>) -> Response {
    let _turn = served.turn().await;
    Json(served.director.status(now())).into_response()
}

/// By pool and knob: the value in force, and where it comes from.
async fn show_policy(State(director): State<Arc<Director>>) -> Json<Value> {
    let pools = director.policies().all();
    let pools = pools.iter().map(|(pool, tuning)| (pool.to_string(), json!(tuning.settings())));
    Json(json!({ "pools": pools.collect::<Map<_, _>>() }))
}

/// The journal from there on, a line of JSON each, for as long as the peer listens.
async fn tell_peer(State(served): State<Served>, Query(place): Query<Place>) -> Response {
    let Some(journal) = served.director.journal() else {
        return (StatusCode::NOT_FOUND, "this picker has no --peer\n").into_response();
    };
    // Another process's numbers say nothing here.
    let after = if place.instance == journal.instance() { place.after } else { 0 };
    let hello = line(&journal.hello(after));
    let lines = unfold((served, after), async |(served, after)| {
        let (lines, after) = tokio::select! {
            () = served.stop.cancelled() => return None,
            more = more_lines(served.director.journal()?, after) => more,
        };
        Some((lines, (served, after)))
    });
    let stream = once(async { hello }).chain(lines).map(Ok::<_, Infallible>);
    ([(CONTENT_TYPE, "application/jsonl")], Body::from_stream(stream)).into_response()
}

/// The next events, as many as there are and fit in a chunk, or a sign of life; and the number of the last.
async fn more_lines(journal: &Journal, mut after: u64) -> (String, u64) {
    if !journal.wait_for_more(after).await {
        return (line(&Line::Tick), after);
    }
    let mut lines = String::new();
    while lines.len() < PEER_CHUNK
        && let Some(event) = journal.after(after)
    {
        after = event.seq;
        lines += &line(&Line::Insertion(Event::clone(&event)));
    }
    (lines, after)
}

fn line(line: &Line) -> String {
    serde_json::to_string(line).unwrap_or_default() + "\n"
}

#[expect(clippy::disallowed_methods, reason = "the server is the edge that hands the time in")]
fn now() -> Instant {
    Instant::now()
}
