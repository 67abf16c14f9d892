//! Metrics of the API server, as `prometheus-fastapi-instrumentator` 8 makes them with vLLM's settings: sizes by
//! `Content-Length`, durations from the request's arrival to the end of the answer's body, in wall time.

use super::exposition::{Exposition, Labels, MetricHead, Series};
use super::histogram::Histogram;
use crate::clock::Clock;
use http::StatusCode;
use parking_lot::Mutex;
use std::time::Duration;

/// Handlers that contain one of these are not counted: vLLM's `excluded_handlers`, which are searched for, not
/// compared.
const EXCLUDED: [&str; 6] = ["/metrics", "/health", "/load", "/ping", "/version", "/server_info"];
/// Handler of a path without a route.
const NO_HANDLER: &str = "none";
/// `latency_highr_buckets`, seconds.
const FINE_BUCKETS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0,
    30.0, 60.0,
];
/// `latency_lowr_buckets`, seconds.
const COARSE_BUCKETS: &[f64] = &[0.1, 0.5, 1.0];

/// Metrics of one pod, shared by its connections.
#[derive(Debug)]
pub struct HttpMetrics {
    /// Unix time in seconds.
    created: f64,
    state: Mutex<State>,
}

/// A request that is counted once its answer is known.
#[derive(Clone, Debug)]
pub struct HttpExchange {
    handler: String,
    method: String,
    /// `Content-Length`; 0 without one.
    request_bytes: u64,
}

#[derive(Debug)]
struct State {
    fine: Histogram,
    by_status: Vec<(StatusKey, f64, u64)>,
    by_method: Vec<(MethodKey, f64, Histogram)>,
    by_handler: Vec<(String, f64, HandlerSizes)>,
}

#[derive(Debug, PartialEq, Eq)]
struct StatusKey {
    handler: String,
    method: String,
    /// First digit of the status.
    class: u16,
}

#[derive(Debug, PartialEq, Eq)]
struct MethodKey {
    handler: String,
    method: String,
}

/// Number of requests, and sums of their bytes.
#[derive(Debug, Default)]
struct HandlerSizes {
    n: u64,
    request_bytes: u64,
    response_bytes: u64,
}

// === impl HttpExchange ===

impl HttpExchange {
    /// Makes the exchange; `None` if it is not counted. `route` is the template of the path's route, if it has one.
    pub fn new(route: Option<&str>, path: &str, method: &str, request_bytes: u64) -> Option<Self> {
        let searched = route.unwrap_or(path);
        if EXCLUDED.iter().any(|excluded| searched.contains(excluded)) {
            return None;
        }
        let handler = route.unwrap_or(NO_HANDLER).to_owned();
        Some(Self { handler, method: method.to_owned(), request_bytes })
    }

    /// Names the handler of a redirected request: the route that takes the path without its slash. With more than one
    /// slash there is none.
    pub fn redirect(&mut self, path: &str) {
        if !path.ends_with("//") {
            path.clone_into(&mut self.handler);
        }
    }

    /// Removes the handler, if the route takes the path but not the method.
    pub fn forget_handler(&mut self) {
        NO_HANDLER.clone_into(&mut self.handler);
    }
}

// === impl HttpMetrics ===

impl HttpMetrics {
    /// Makes empty metrics. `created` is the Unix time in seconds.
    pub fn new(created: f64) -> Self {
        let fine = Histogram::new(FINE_BUCKETS);
        let state = State { fine, by_status: Vec::new(), by_method: Vec::new(), by_handler: Vec::new() };
        Self { created, state: Mutex::new(state) }
    }

    /// Counts an exchange whose answer's body has ended or whose client has left. `response_bytes` is the
    /// `Content-Length`; 0 without one.
    pub fn record(
        &self,
        exchange: &HttpExchange,
        status: StatusCode,
        response_bytes: u64,
        duration: Duration,
    ) {
        let HttpExchange { handler, method, request_bytes } = exchange;
        let seconds = duration.as_secs_f64();
        let mut state = self.state.lock();
        let State { fine, by_status, by_method, by_handler } = &mut *state;
        let class = status.as_u16() / 100;
        *entry(
            by_status,
            |key| key.class == class && key.handler == *handler && key.method == *method,
            || (StatusKey { handler: handler.clone(), method: method.clone(), class }, 0),
        ) += 1;
        let sizes = entry(by_handler, |key| key == handler, || (handler.clone(), HandlerSizes::default()));
        sizes.n += 1;
        sizes.request_bytes += request_bytes;
        sizes.response_bytes += response_bytes;
        fine.observe(seconds);
        entry(
            by_method,
            |key| key.handler == *handler && key.method == *method,
            || {
                let key = MethodKey { handler: handler.clone(), method: method.clone() };
                (key, Histogram::new(COARSE_BUCKETS))
            },
        )
        .observe(seconds);
    }

    pub(super) fn render(&self, out: &mut Exposition<'_>) {
        let state = self.state.lock();
        let State { fine, by_status, by_method, by_handler } = &*state;
        let requests: Vec<_> =
            by_status.iter().map(|(key, created, n)| series(key.labels(), *n as f64, *created)).collect();
        let help = "Total number of requests by method, status and handler.";
        out.counter(MetricHead { name: "http_requests", help }, &requests);
        let sizes = |bytes: fn(&HandlerSizes) -> u64| -> Vec<_> {
            let labels = |handler: &str| Labels::new([("handler", handler.to_owned())]);
            let summary = |sizes: &HandlerSizes| (sizes.n, bytes(sizes) as f64);
            by_handler
                .iter()
                .map(|(handler, created, sizes)| series(labels(handler), summary(sizes), *created))
                .collect()
        };
        let help = "Content length of incoming requests by handler. Only value of header is respected. Otherwise \
            ignored. No percentile calculated. ";
        let head = MetricHead { name: "http_request_size_bytes", help };
        out.summary(head, &sizes(|sizes| sizes.request_bytes));
        let help = "Content length of outgoing responses by handler. Only value of header is respected. Otherwise \
            ignored. No percentile calculated. ";
        let head = MetricHead { name: "http_response_size_bytes", help };
        out.summary(head, &sizes(|sizes| sizes.response_bytes));
        let help = "Latency with many buckets but no API specific labels. Made for more accurate percentile \
            calculations. ";
        let head = MetricHead { name: "http_request_duration_highr_seconds", help };
        out.histogram(head, &[series(Labels::default(), fine, self.created)]);
        let durations: Vec<_> = by_method
            .iter()
            .map(|(key, created, durations)| series(key.labels(), durations, *created))
            .collect();
        let help = "Latency with only few buckets by handler. Made to be only used if aggregation by handler is \
            important. ";
        out.histogram(MetricHead { name: "http_request_duration_seconds", help }, &durations);
    }
}

// === impl StatusKey ===

impl StatusKey {
    fn labels(&self) -> Labels {
        let Self { handler, method, class } = self;
        Labels::new([
            ("handler", handler.clone()),
            ("method", method.clone()),
            ("status", format!("{class}xx")),
        ])
    }
}

// === impl MethodKey ===

impl MethodKey {
    fn labels(&self) -> Labels {
        let Self { handler, method } = self;
        Labels::new([("handler", handler.clone()), ("method", method.clone())])
    }
}

/// Returns the value of a key, and adds new keys. There are few of them, so that the search goes through all.
fn entry<K, V>(
    entries: &mut Vec<(K, f64, V)>,
    is_it: impl Fn(&K) -> bool,
    make: impl FnOnce() -> (K, V),
) -> &mut V {
    let idx = entries.iter().position(|(key, ..)| is_it(key)).unwrap_or_else(|| {
        let (key, value) = make();
        entries.push((key, Clock::unix_now().as_secs_f64(), value));
        entries.len() - 1
    });
    &mut entries[idx].2
}

fn series<T>(labels: Labels, value: T, created: f64) -> Series<T> {
    Series { labels, value, created: Some(created) }
}
