//! Asks each endpoint for its load over one kept connection. Requests never wait for this.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use inference_api::pool::ModelServerRuntime;
use tokio::net::TcpStream;
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};
use tracing::debug;

use self::exposition::Gauges;
use crate::candidates::{Cache, Member, Sample};
use crate::metrics::{Metrics, OutcomeLabels};

pub mod exposition;

/// Longest wait for one answer, in scrape intervals, and its bounds. Upstream waits 5 s, and sends requests to a pod that
/// hangs for as long.
const TIMEOUT_INTERVALS: u32 = 10;
const TIMEOUT_BOUNDS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(1));
/// Largest answer that is read; vLLM 0.11 sends about 100 KB.
const MAX_BODY: usize = 8 << 20;

/// Which page is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    /// The metrics that are read and no others, 2 % of all: vLLM's `/metrics/`, with the slash, is an app that filters.
    Filtered,
    /// Where that does not work: behind several API servers it finds nothing, and other engines have it not.
    Whole,
}

/// What is scraped, and what is done with it.
struct Scraping<'a, F> {
    member: &'a Member,
    patience: Duration,
    metrics: &'a Metrics,
    noted: &'a F,
}

/// Why a connection is used no longer.
enum End {
    /// The endpoint closed it between two scrapes, as servers may: the next one takes another.
    Closed,
    /// A scrape failed.
    Failed(anyhow::Error),
}

/// Scrapes `member` every `period` until it is dropped, and half as often while it has nothing to do. `noted` is called when its report changed: with each sample, and when
/// the process behind it is gone.
pub async fn scrape(
    member: Arc<Member>,
    period: Duration,
    metrics: Arc<Metrics>,
    noted: impl Fn(&Member, Cache),
) {
    let patience = (period * TIMEOUT_INTERVALS).clamp(TIMEOUT_BOUNDS.0, TIMEOUT_BOUNDS.1);
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let scraping = Scraping { member: &member, patience, metrics: &metrics, noted: &noted };
    let mut page = Page::Filtered;
    loop {
        ticks.tick().await;
        let cache = match timeout(patience, TcpStream::connect(member.address)).await {
            Ok(Ok(stream)) => match serve_connection(&scraping, stream, &mut ticks, &mut page).await {
                End::Closed => {
                    ticks.reset_immediately();
                    continue;
                }
                End::Failed(error) => {
                    debug!(endpoint = %member.destination, error = format!("{error:#}"), "Scrape failed");
                    Cache::Kept
                }
            },
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => member.report_down(),
            // The network's fault, or our own.
            Ok(Err(_)) | Err(_) => Cache::Kept,
        };
        // What was read before may be over: it counts again when a scrape succeeds.
        member.distrust();
        metrics.scrapes.get_or_create(&OutcomeLabels { outcome: "failed" }).inc();
        if cache == Cache::Lost {
            debug!(endpoint = %member.destination, pod = %member.pod, "Endpoint is down");
            noted(&member, cache);
        }
    }
}

/// Scrapes over one connection for as long as it works.
async fn serve_connection<F: Fn(&Member, Cache)>(
    scraping: &Scraping<'_, F>,
    stream: TcpStream,
    ticks: &mut Interval,
    page: &mut Page,
) -> End {
    let Scraping { member, patience, metrics, noted } = scraping;
    let (mut sender, connection) = match open(stream).await {
        Ok(opened) => opened,
        Err(error) => return End::Failed(error),
    };
    let scrapes = async {
        let mut n_scrapes = 0_u64;
        loop {
            if sender.ready().await.is_err() && n_scrapes > 0 {
                return End::Closed;
            }
            let gauges = match timeout(*patience, fetch(&mut sender, member, page)).await {
                Ok(Ok(gauges)) => gauges,
                Ok(Err(error)) => return End::Failed(error),
                Err(_) => return End::Failed(anyhow!("no answer in {patience:?}")),
            };
            let Gauges { waiting, running, kv_usage, started, prompt_tokens, kv_tokens, adapters } = gauges;
            let taken = now();
            let cache = member.report(Sample {
                waiting,
                running,
                kv_usage,
                started,
                prompt_tokens,
                kv_tokens,
                taken,
                adapters,
            });
            if cache == Cache::Lost {
                debug!(endpoint = %member.destination, pod = %member.pod, "Endpoint was restarted");
            }
            noted(member, cache);
            n_scrapes += 1;
            metrics.scrapes.get_or_create(&OutcomeLabels { outcome: "ok" }).inc();
            ticks.tick().await;
            if member.is_idle() {
                // Most pods of a large pool, most of the time.
                ticks.tick().await;
            }
        }
    };
    // An endpoint may close the connection behind its answer, which must still be read.
    let driven = async {
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        end = scrapes => end,
        never = driven => match never {},
    }
}

type Connection = hyper::client::conn::http1::Connection<TokioIo<TcpStream>, Empty<Bytes>>;

async fn open(stream: TcpStream) -> anyhow::Result<(SendRequest<Empty<Bytes>>, Connection)> {
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    handshake(TokioIo::new(stream)).await.context("open the connection")
}

async fn fetch(
    sender: &mut SendRequest<Empty<Bytes>>,
    member: &Member,
    page: &mut Page,
) -> anyhow::Result<Gauges> {
    let runtime = member.runtime();
    if *page == Page::Filtered && runtime == ModelServerRuntime::Vllm {
        let path = format!("/metrics/?{}", exposition::filter(runtime));
        match get(sender, member, &path).await? {
            (status, body) if status.is_success() && exposition::is_of(&body, runtime) => {
                return Ok(exposition::parse(&body, runtime));
            }
            (status, _) => {
                debug!(endpoint = %member.destination, %status, "Reading the whole page from now on");
                *page = Page::Whole;
                sender.ready().await.context("ask again")?;
            }
        }
    }
    let (status, body) = get(sender, member, path(runtime)).await?;
    ensure!(status.is_success(), "status {status}");
    Ok(exposition::parse(&body, runtime))
}

async fn get(
    sender: &mut SendRequest<Empty<Bytes>>,
    member: &Member,
    path: &str,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let request = Request::get(path)
        .header(header::HOST, &*member.destination)
        .header(header::ACCEPT, "text/plain")
        .body(Empty::new())
        .context("build the request")?;
    let response = sender.send_request(request).await.context("send the request")?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error)).context("read the answer")?;
    Ok((status, body.to_bytes()))
}

/// Where the engine has its Prometheus metrics.
fn path(runtime: ModelServerRuntime) -> &'static str {
    match runtime {
        ModelServerRuntime::Vllm | ModelServerRuntime::Sglang | ModelServerRuntime::TrtLlm => "/metrics",
        ModelServerRuntime::TrtllmServe => "/prometheus/metrics",
    }
}

#[expect(clippy::disallowed_methods, reason = "the scraper is a driver: it stamps samples")]
fn now() -> Instant {
    Instant::now()
}
