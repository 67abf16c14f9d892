//! The picker's process: ports, tasks, readiness, drain.
//!
//! ```text
//! bind ─► serve ─(drain)─► NOT_SERVING ─(drain delay)─► no new streams ─(streams ended │ grace period │ abort)─► end
//! ```

pub mod accept;
mod access_log;
mod gathered;
mod follow;
mod workers;
mod health;
pub mod grpc;
mod cut;
mod http;
pub mod tls;
pub mod certificates;
pub mod parts;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, anyhow};
use prometheus_client::metrics::counter::Counter;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::{info, warn};

use self::accept::{Grpc, Http, Patience, Port, Services};
use self::access_log::AccessLog;
use self::follow::Follower;
use self::grpc::{Limits, Processor, Timeouts};
use self::health::Health;
use self::parts::Parts;
use self::tls::{Security, Tls};
use self::workers::Workers;
use crate::director::{Director, Options};
use crate::follow_peers::Followers;
use crate::kv_events;
use crate::metrics::Metrics;
use crate::policies::WatchedFile;
use crate::reports::{LOOKS, Reports};
use crate::source::{self, Source};
use crate::spans::{Otlp, Spans};
use crate::tokens::Tokenizer;
use ext_proc::budget::Budget;

/// Settings that are fixed before the process serves.
#[derive(Clone, Debug)]
pub struct Settings {
    pub source: source::Config,
    /// File that tunes the policy while the process runs.
    pub policy_file: Option<PathBuf>,
    /// Address of the ext_proc and the health port.
    pub host: IpAddr,
    pub grpc_port: u16,
    pub health_port: u16,
    /// Address of the metrics port, whose pages show pods and requests.
    pub metrics_host: IpAddr,
    pub metrics_port: u16,
    /// TLS on the ext_proc port.
    pub security: Security,
    /// Patience with the peers on all ports.
    pub patience: Patience,
    /// Receiver of the requests' spans.
    pub otlp: Option<Otlp>,
    /// Lines that the log has dropped.
    pub n_dropped_lines: Counter,
    /// Metrics ports of other pickers, as `host:port`.
    pub peers: Vec<String>,
    pub scrape_interval: Duration,
    /// Ports of engines, for pools that use KV events.
    pub kv_ports: kv_events::follow::KvPorts,
    /// Longest wait of such a pool's request for its token ids.
    pub tokenize_timeout: Duration,
    pub grace_period: Duration,
    /// Time after the start of the drain during which new streams are still accepted; health checks already say
    /// NOT_SERVING.
    pub drain_delay: Duration,
    pub max_body_bytes: usize,
    /// Most bytes that the bodies of all streams take together.
    pub max_buffered_bytes: usize,
    pub body_timeouts: Timeouts,
    pub director: Options,
}

/// The ports in use, also if port 0 was asked for.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BoundPorts {
    pub grpc: SocketAddr,
    pub health: SocketAddr,
    pub metrics: SocketAddr,
}

/// Signals that end a server.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Finish open streams, and accept no new ones after the drain delay.
    pub drain: CancellationToken,
    /// End at once.
    pub abort: CancellationToken,
}

/// A picker that has opened its source of pools and bound its ports.
#[derive(Debug)]
pub struct Server {
    settings: Settings,
    director: Arc<Director>,
    limits: Limits,
    source: Source,
    policy_file: Option<WatchedFile>,
    follower: Follower,
    parts: Parts,
    tls: Option<Tls>,
    reload: Arc<Notify>,
    spans: Arc<Spans>,
    workers: Workers,
    grpc: TcpListener,
    health: TcpListener,
    metrics: TcpListener,
}

impl Server {
    /// Opens the source of pools and starts the threads that streams run on, then binds the ports. From then on clients
    /// may use up the file descriptors.
    ///
    /// # Errors
    /// If a file is not valid, the system gives no thread, or a port is taken; the message names the flag.
    pub async fn bind(settings: Settings) -> anyhow::Result<Self> {
        let options = settings.director.clone().for_scrapes_every(settings.scrape_interval);
        let mut metrics = Metrics::default();
        let (source, reader) = settings.source.open(&mut metrics).await?;
        metrics.register_dropped_lines(settings.n_dropped_lines.clone());
        let budget = Arc::new(Budget::new(settings.max_buffered_bytes));
        metrics.register_budget(Arc::clone(&budget));
        let limits = settings.limits(budget);
        let director = Arc::new(Director::new(options, Arc::new(metrics)));
        let policy_file = settings.policy_file.clone();
        let policy_file = policy_file.map(|path| WatchedFile::load(path, director.policies())).transpose();
        let policy_file = policy_file.map_err(|error| anyhow!(error)).context("read the policy")?;
        let follower =
            Follower::new(Arc::clone(&director), reader, (settings.scrape_interval, settings.kv_ports))
                .context("start the scrapers")?;
        let tls = settings.security.config(wall_clock())?;
        let spans = Arc::new(Spans::try_new(settings.otlp.as_ref())?);
        let workers = Workers::start("worker").context("start the workers")?;
        let host = settings.host;
        Ok(Self {
            workers,
            grpc: listen(host, settings.grpc_port, "ext_proc", "--grpc-port").await?,
            health: listen(host, settings.health_port, "gRPC health", "--health-port").await?,
            metrics: listen(settings.metrics_host, settings.metrics_port, "metrics", "--metrics-port")
                .await?,
            settings,
            director,
            limits,
            source,
            policy_file,
            follower,
            parts: Parts::default(),
            tls,
            reload: Arc::default(),
            spans,
        })
    }

    /// Wakes the tasks that otherwise look at their files only from time to time.
    #[must_use]
    pub fn reload(&self) -> Arc<Notify> {
        Arc::clone(&self.reload)
    }

    /// Collects tasks that run with the picker. The picker ends if one of them does.
    pub fn parts(&mut self) -> &mut Parts {
        &mut self.parts
    }

    /// The addresses of the bound ports.
    ///
    /// # Errors
    /// If the system does not know the address of a bound port.
    pub fn ports(&self) -> anyhow::Result<BoundPorts> {
        let address = |listener: &TcpListener| listener.local_addr().context("read the bound address");
        Ok(BoundPorts {
            grpc: address(&self.grpc)?,
            health: address(&self.health)?,
            metrics: address(&self.metrics)?,
        })
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// If a part of the server fails while it is needed.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let (ports, state) = (self.ports()?, Health::new().await);
        let Self {
            settings,
            director,
            limits,
            source,
            policy_file,
            follower,
            mut parts,
            tls,
            reload,
            spans,
            workers,
            grpc,
            health,
            metrics,
        } = self;
        let (stop, patience) = (CancellationToken::new(), settings.patience);
        let others = Routes::new(state.service());
        let services = Services { processor: None, others: others.clone().prepare() };
        let port = Port::shared("health", health, Grpc { tls: None, services }, patience);
        parts.spawn("health port", port.serve(stop.clone()));
        let readiness = state.follow(Arc::clone(&director), shutdown.drain.clone());
        let stopped = stop.clone().cancelled_owned();
        parts.spawn("readiness", async {
            tokio::join!(readiness, stopped);
        });
        let reports = Arc::new(Reports::new(Arc::clone(&director), wall_clock()));
        let router = http::router(Arc::clone(&reports), (shutdown.drain.clone(), stop.clone()));
        let port = Port::shared("metrics", metrics, Http(router), patience);
        parts.spawn("metrics port", port.serve(stop.clone()));
        parts.spawn("source of pools and endpoints", source.run(stop.clone().cancelled_owned()));
        if let Some(file) = policy_file {
            let policies = Arc::clone(director.policies());
            parts.spawn("policy file", file.run(policies, stop.clone().cancelled_owned()));
        }
        if !settings.peers.is_empty() {
            let followers = Followers::new(Arc::clone(&reports), settings.peers.clone());
            parts.spawn("peers", followers.run(stop.clone()));
        }
        parts.spawn("pool index", follower.run(stop.clone()));
        let (cut, closed) = (CancellationToken::new(), CancellationToken::new());
        let tokenizer = Tokenizer::new(settings.tokenize_timeout);
        parts.spawn("reports of responses", give_up_reports(Arc::clone(&reports), stop.clone()));
        let others = others.add_service(AccessLog::service(Arc::clone(&reports), closed.clone())).prepare();
        let processor = Processor::new(reports, Arc::clone(&spans), (limits, tokenizer), cut.clone());
        let is_secure = tls.is_some();
        let tls = tls.map(|tls| tls.follow(&mut parts, (reload, stop.clone())));
        let protocol = Grpc { tls, services: Services { processor: Some(processor), others } };
        let port = Port { name: "ext_proc", listener: grpc, protocol, patience, workers };
        let mut streams = pin!(port.serve(closed.clone()));
        info!(grpc = %ports.grpc, tls = is_secure, health = %ports.health, metrics = %ports.metrics, "Serving");

        let drained = drain(&shutdown, (settings.drain_delay, settings.grace_period), closed);
        let result = tokio::select! {
            () = &mut streams => Ok(()),
            error = parts.failed() => Err(error),
            () = drained => {
                warn!("Cutting streams that are still open");
                cut.cancel();
                let _ = tokio::time::timeout(LAST_TASKS, streams).await;
                Ok(())
            }
        };
        stop.cancel();
        let _ = tokio::time::timeout(LAST_TASKS, parts.ended()).await;
        let _ = tokio::time::timeout(LAST_TASKS, spawn_blocking(move || spans.shut_down())).await;
        info!("Ended");
        result
    }
}

impl Settings {
    /// Limits of a stream. A body that could never find room in the budget is too large, whatever else is held.
    fn limits(&self, budget: Arc<Budget>) -> Limits {
        Limits {
            max_body_bytes: self.max_body_bytes.min(budget.longest_body()),
            budget,
            timeouts: self.body_timeouts,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "certificates and the process are dated by the wall clock")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

#[expect(clippy::disallowed_methods, reason = "the server is the edge that hands the time in")]
fn clock() -> Instant {
    Instant::now()
}

/// Ends requests of whose end nobody tells, until `stop`.
async fn give_up_reports(reports: Arc<Reports>, stop: CancellationToken) {
    while timeout(LOOKS, stop.cancelled()).await.is_err() {
        reports.give_up(clock());
    }
}

/// Longest wait for tasks that were told to stop; each of them stops at its next await.
const LAST_TASKS: Duration = Duration::from_secs(1);

async fn listen(host: IpAddr, port: u16, what: &str, flag: &str) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(host, port);
    TcpListener::bind(address).await.with_context(|| {
        format!("listen on {address} for {what} (choose another port with {flag}, 0 takes any free one)")
    })
}

/// Returns when the process need not wait for open streams any longer. Once `closed`, it accepts nothing new.
async fn drain(shutdown: &Shutdown, (delay, grace_period): (Duration, Duration), closed: CancellationToken) {
    tokio::select! {
        () = shutdown.drain.cancelled() => {}
        () = shutdown.abort.cancelled() => {
            shutdown.drain.cancel();
            return closed.cancel();
        }
    }
    info!(?delay, ?grace_period, "Draining");
    tokio::select! {
        () = tokio::time::sleep(delay) => {}
        () = shutdown.abort.cancelled() => return closed.cancel(),
    }
    closed.cancel();
    tokio::select! {
        () = tokio::time::sleep(grace_period) => {}
        () = shutdown.abort.cancelled() => {}
    }
}
