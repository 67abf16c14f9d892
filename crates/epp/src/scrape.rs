//! Asks each endpoint for its load over one kept connection. Requests never wait for this.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::debug;

use self::exposition::Gauges;
use crate::candidates::{Cache, Member, Sample};
use crate::metrics::{Metrics, OutcomeLabels};

pub mod exposition;

/// Longest wait for one answer. Upstream waits 5 s; a pod that is that slow is stale long before.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(1);
/// Largest answer that is read; vLLM 0.11 sends about 100 KB.
const MAX_BODY: usize = 8 << 20;

/// Scrapes `member` every `period` until it is dropped. `lost` is called when the process behind it is gone.
pub async fn scrape(member: Arc<Member>, period: Duration, metrics: Arc<Metrics>, lost: impl Fn(&Member)) {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let cache = match timeout(SCRAPE_TIMEOUT, TcpStream::connect(member.address)).await {
            Ok(Ok(stream)) => {
                let Err(error) = serve_connection(&member, stream, &mut ticks, &metrics, &lost).await;
                debug!(endpoint = %member.destination, error = format!("{error:#}"), "Reconnecting for metrics");
                Cache::Kept
            }
            Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => member.report_down(),
            // The network's fault, or our own: the sample grows old instead.
            Ok(Err(_)) | Err(_) => Cache::Kept,
        };
        metrics.scrapes.get_or_create(&OutcomeLabels { outcome: "failed" }).inc();
        if cache == Cache::Lost {
            debug!(endpoint = %member.destination, pod = %member.pod, "Endpoint is down");
            lost(&member);
        }
    }
}

/// Scrapes over one connection for as long as it works.
async fn serve_connection(
    member: &Member,
    stream: TcpStream,
    ticks: &mut tokio::time::Interval,
    metrics: &Metrics,
    lost: &impl Fn(&Member),
) -> anyhow::Result<Infallible> {
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.context("open the connection")?;
    let scrapes = async {
        loop {
            let gauges = timeout(SCRAPE_TIMEOUT, fetch(&mut sender, member)).await.context("time out")??;
            let Gauges { waiting, running, kv_usage, started } = gauges;
            let sample = Sample { waiting, running, kv_usage, started, taken: now() };
            if member.report(sample) == Cache::Lost {
                debug!(endpoint = %member.destination, pod = %member.pod, "Endpoint was restarted");
                lost(member);
            }
            metrics.scrapes.get_or_create(&OutcomeLabels { outcome: "ok" }).inc();
            ticks.tick().await;
        }
    };
    // An endpoint may close the connection behind its answer, which must still be read; the next scrape then fails.
    let driven = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        scraped = scrapes => scraped,
        never = driven => never,
    }
}

async fn fetch(sender: &mut SendRequest<Empty<Bytes>>, member: &Member) -> anyhow::Result<Gauges> {
    let request = Request::get("/metrics")
        .header(header::HOST, &*member.destination)
        .header(header::ACCEPT, "text/plain")
        .body(Empty::new())
        .context("build the request")?;
    sender.ready().await.context("wait for the connection")?;
    let response = sender.send_request(request).await.context("send the request")?;
    ensure!(response.status().is_success(), "status {}", response.status());
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error)).context("read the answer")?;
    Ok(exposition::parse(&body.to_bytes()))
}

#[expect(clippy::disallowed_methods, reason = "the scraper is a driver: it stamps samples")]
fn now() -> Instant {
    Instant::now()
}
