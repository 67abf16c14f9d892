//! Scrapes the load of each endpoint over a persistent connection. Requests never wait for this.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use inference_api::pool::ModelServerRuntime;
use picking::endpoint::Sample;
use picking::endpoint::health::Doubts;
use rand::Rng;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, warn};

use self::attempts::Attempts;
use self::exposition::NoLoad;
use self::times::ScrapeTimes;
use crate::datastore::LiveEndpoint;
use crate::metrics::{Metrics, OutcomeLabels, ReasonLabels};

pub mod attempts;
pub mod exposition;
pub mod times;

/// Largest page that is read; vLLM 0.11 sends about 100 KB.
const MAX_BODY: usize = 8 << 20;
/// Scrapes of the whole page before the filter is tried again: a server may answer 404 or 503 while it starts.
const WHOLE_PAGES: u32 = 100;

/// vLLM's page with nothing but the metrics that the picker reads.
static FILTERED: LazyLock<Uri> = LazyLock::new(|| {
    let query = exposition::filter(ModelServerRuntime::Vllm);
    format!("/metrics/?{query}").parse().expect("names of metrics need no escapes")
});

/// The page that is requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    /// Only the metrics that the picker reads, 2 % of all. vLLM's `/metrics/`, with the slash, is an app that filters.
    Filtered,
    /// All metrics, for the next `n_left` scrapes: the filter finds nothing behind several API servers, and other
    /// engines do not have it.
    Whole { n_left: u32 },
}

/// A scraped endpoint, its times, and the parts that all scrapes share.
#[derive(Debug)]
pub struct Scraping {
    pub endpoint: Arc<LiveEndpoint>,
    pub times: ScrapeTimes,
    /// The moment from which the times of scrapes count.
    pub start: Instant,
    pub attempts: Arc<Attempts>,
    pub metrics: Arc<Metrics>,
}

/// Result of a scrape.
#[derive(Clone, Debug)]
pub enum ScrapeResult {
    /// The endpoint's answer to a scrape that began after `doubts`.
    Sample { sample: Sample, doubts: Doubts, taken: std::time::Instant },
    /// Nothing listens at the address.
    Down,
}

/// History of an endpoint's scrapes.
#[derive(Debug)]
struct Course {
    page: Page,
    /// Number of failed scrapes in a row.
    n_failures: u32,
    /// Reasons of failures that were already logged.
    said: BTreeSet<&'static str>,
}

/// Reason why a connection is not used any longer.
enum End {
    /// The endpoint closed it between two scrapes, which is allowed; the next scrape opens another.
    Closed,
    Failed(Failure),
}

/// Reason why a scrape failed.
#[derive(Debug, Error)]
enum Failure {
    #[error("nothing listens there")]
    Refused,
    #[error("cannot connect: {0}")]
    Unreachable(std::io::Error),
    #[error("no answer in {0:?}")]
    Timeout(Duration),
    #[error("the answer breaks off: {0}")]
    Broken(Box<dyn std::error::Error + Send + Sync>),
    #[error("status {0}")]
    Status(StatusCode),
    #[error("the page has more than {MAX_BODY} bytes")]
    TooLarge,
    #[error("the page does not tell the load: {0}")]
    NoLoad(#[from] NoLoad),
}

/// Scrapes an endpoint until this future is dropped. Calls `note` with each result that contains the load, and if
/// nothing listens at the address.
pub async fn scrape(scraping: Scraping, mut rng: impl Rng, note: impl Fn(&LiveEndpoint, ScrapeResult)) {
    let Scraping { endpoint, times, start: _, attempts, metrics: _ } = &scraping;
    let mut course = Course { page: Page::Filtered, n_failures: 0, said: BTreeSet::new() };
    loop {
        let connected = attempts.connect(endpoint.address, course.n_failures, times.patience()).await;
        let failure = match connected {
            Ok(stream) => match serve_connection(&scraping, stream, &mut course, &note).await {
                End::Closed => continue,
                End::Failed(failure) => failure,
            },
            Err(failure) => failure,
        };
        scraping.note_failure(&failure, &mut course, &note);
        sleep(times.backoff(course.n_failures, &mut rng)).await;
    }
}

impl Scraping {
    fn note_failure(
        &self,
        failure: &Failure,
        course: &mut Course,
        note: &impl Fn(&LiveEndpoint, ScrapeResult),
    ) {
        let Self { endpoint, metrics, times: _, start: _, attempts: _ } = self;
        course.n_failures = course.n_failures.saturating_add(1);
        // The last numbers may be out of date: they count again after a scrape that succeeds.
        endpoint.state.distrust();
        metrics.scrapes.get_or_create(&OutcomeLabels { outcome: "failed" }).inc();
        let reason = failure.reason();
        metrics.scrape_failures.get_or_create(&ReasonLabels { reason }).inc();
        let (destination, pod) = (&*endpoint.destination, &*endpoint.pod);
        match failure {
            // Not logged as a warning: pods come and go.
            Failure::Refused => note(endpoint, ScrapeResult::Down),
            Failure::Unreachable(_)
            | Failure::Timeout(_)
            | Failure::Broken(_)
            | Failure::Status(_)
            | Failure::TooLarge
            | Failure::NoLoad(_) => {
                if course.said.insert(reason) {
                    warn!(endpoint = destination, pod, reason, error = %failure, "Scrape failed, so the load is not known");
                }
            }
        }
    }
}

impl Failure {
    /// The reason's name in the metric.
    fn reason(&self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable(_) => "unreachable",
            Self::Timeout(_) => "timeout",
            Self::Broken(_) => "broken",
            Self::Status(_) => "status",
            Self::TooLarge => "too_large",
            Self::NoLoad(_) => "no_load",
        }
    }

    fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Broken(error.into())
    }
}

/// Scrapes over one connection for as long as it works.
async fn serve_connection(
    scraping: &Scraping,
    stream: TcpStream,
    course: &mut Course,
    note: &impl Fn(&LiveEndpoint, ScrapeResult),
) -> End {
    let Scraping { endpoint, times, start, metrics, attempts: _ } = scraping;
    let patience = times.patience();
    let (mut sender, connection) = match handshake(TokioIo::new(stream)).await {
        Ok(opened) => opened,
        Err(error) => return End::Failed(Failure::broken(error)),
    };
    let scrapes = async {
        let mut n_scrapes = 0_u64;
        loop {
            if sender.ready().await.is_err() && n_scrapes > 0 {
                return End::Closed;
            }
            let (begun, doubts) = (Instant::now(), endpoint.state.doubts());
            let sample = match timeout(patience, fetch(&mut sender, endpoint, &mut course.page)).await {
                Ok(Ok(sample)) => sample,
                Ok(Err(failure)) => return End::Failed(failure),
                Err(_) => return End::Failed(Failure::Timeout(patience)),
            };
            note(endpoint, ScrapeResult::Sample { sample, doubts, taken: Instant::now().into_std() });
            n_scrapes += 1;
            course.n_failures = 0;
            metrics.scrapes.get_or_create(&OutcomeLabels { outcome: "ok" }).inc();
            // Most pods of a large pool are idle most of the time.
            let begun = begun.saturating_duration_since(*start);
            sleep_until(*start + times.next(begun, endpoint.state.is_idle())).await;
        }
    };
    // An endpoint may close the connection after its answer, which must still be read.
    let driven = async {
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        end = scrapes => end,
        never = driven => match never {},
    }
}

/// Reads the load from the filtered page, or from the whole one if the filtered one does not have it.
async fn fetch(
    sender: &mut SendRequest<Empty<Bytes>>,
    endpoint: &LiveEndpoint,
    page: &mut Page,
) -> Result<Sample, Failure> {
    let runtime = endpoint.runtime();
    if runtime == ModelServerRuntime::Vllm && page.asks_filtered() {
        let failure = match load(sender, endpoint, &FILTERED).await {
            Err(failure @ (Failure::Status(_) | Failure::NoLoad(_))) => failure,
            answer => return answer,
        };
        debug!(endpoint = %endpoint.destination, error = %failure, "Reading the whole page for a while");
        *page = Page::Whole { n_left: WHOLE_PAGES };
        if sender.ready().await.is_err() {
            return Err(failure);
        }
    }
    let sample = load(sender, endpoint, &Uri::from_static(path(runtime))).await;
    if sample.is_err() {
        *page = Page::Filtered;
    }
    sample
}

/// The load on the page at `uri`.
async fn load(
    sender: &mut SendRequest<Empty<Bytes>>,
    endpoint: &LiveEndpoint,
    uri: &Uri,
) -> Result<Sample, Failure> {
    Ok(exposition::parse(&get(sender, endpoint, uri).await?, endpoint.runtime())?)
}

/// Requests the page at `uri`.
async fn get(
    sender: &mut SendRequest<Empty<Bytes>>,
    endpoint: &LiveEndpoint,
    uri: &Uri,
) -> Result<Bytes, Failure> {
    let request = Request::get(uri.clone())
        .header(header::HOST, &*endpoint.destination)
        .header(header::ACCEPT, "text/plain")
        .body(Empty::new())
        .map_err(Failure::broken)?;
    let response = sender.send_request(request).await.map_err(Failure::broken)?;
    let status = response.status();
    let says_its_length = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING]
        .iter()
        .any(|name| response.headers().contains_key(name));
    let body = match Limited::new(response.into_body(), MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => return Err(Failure::TooLarge),
        Err(error) => return Err(Failure::Broken(error)),
    };
    if !status.is_success() {
        return Err(Failure::Status(status));
    }
    Ok(if says_its_length { body } else { whole_lines(body) })
}

/// The body up to its last line end: a body that ends with its connection may be cut off.
fn whole_lines(body: Bytes) -> Bytes {
    let end = body.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    body.slice(..end)
}

impl Page {
    /// Returns true if the next request is for the filtered page.
    fn asks_filtered(&mut self) -> bool {
        match self {
            Self::Filtered => true,
            Self::Whole { n_left: 0 } => {
                *self = Self::Filtered;
                true
            }
            Self::Whole { n_left } => {
                *n_left -= 1;
                false
            }
        }
    }
}

/// Path of the engine's Prometheus metrics.
fn path(runtime: ModelServerRuntime) -> &'static str {
    match runtime {
        ModelServerRuntime::Vllm | ModelServerRuntime::Sglang | ModelServerRuntime::TrtLlm => "/metrics",
        ModelServerRuntime::TrtllmServe => "/prometheus/metrics",
    }
}
