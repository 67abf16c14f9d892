//! The process: ports, tasks, readiness, drain.
//!
//! ```text
//! bind ─► serve ─(drain)─► NOT_SERVING ─(drain delay)─► no new streams ─(streams ended │ grace period │ abort)─► end
//! ```

pub mod ext_proc;
mod follow;
mod health;
mod http;
pub mod tls;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use envoy_proto::service::ext_proc::v3::external_processor_server::ExternalProcessorServer;
use pool_index::source::files::{self, Files};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::Server as Grpc;
use tonic::transport::ServerTlsConfig;
use tonic::transport::server::TcpIncoming;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::HealthService;
use tracing::{info, warn};

use self::ext_proc::Processor;
use self::follow::Follower;
use self::health::Health;
use self::tls::Security;
use crate::director::{Director, Options};
use crate::kv_events;
use crate::metrics::Metrics;
use crate::peers::follow::Followers;
use crate::policies::WatchedFile;
use crate::spans::{Otlp, Spans};
use crate::tokens::Tokenizer;

/// Streams of one connection. The proxy sends one stream per request in flight and closes none early; hyper's default
/// of 200 would make it open connections instead.
const MAX_CONCURRENT_STREAMS: u32 = 40_000;
/// Flow-control windows [bytes], so that a body of megabytes does not wait for a round trip every 64 KiB.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// A message holds a body and its envelope.
const ENVELOPE_BYTES: usize = 1 << 20;

/// Everything that is decided before the process serves.
#[derive(Clone, Debug)]
pub struct Settings {
    pub files: files::Config,
    /// Tunes the policy while the process runs.
    pub policy_file: Option<PathBuf>,
    pub host: IpAddr,
    pub grpc_port: u16,
    pub health_port: u16,
    pub metrics_port: u16,
    /// Of the ext_proc port.
    pub security: Security,
    /// Where the requests' spans are sent.
    pub otlp: Option<Otlp>,
    /// `host:port` of other pickers' metrics ports.
    pub peers: Vec<String>,
    pub scrape_interval: Duration,
    /// Of engines, for pools that go by their events.
    pub kv_ports: kv_events::follow::Ports,
    /// How long a request of such a pool waits for its tokens.
    pub tokenize_timeout: Duration,
    pub grace_period: Duration,
    /// How long streams are still taken when the drain has begun and health checks say so.
    pub drain_delay: Duration,
    pub max_body_bytes: usize,
    pub director: Options,
}

/// The ports that are served, where 0 was asked for too.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ports {
    pub grpc: SocketAddr,
    pub health: SocketAddr,
    pub metrics: SocketAddr,
}

/// How a server is told to end.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Finish what is open, and take nothing new after the drain delay.
    pub drain: CancellationToken,
    /// End at once.
    pub abort: CancellationToken,
}

/// A picker with its files read and its ports bound.
#[derive(Debug)]
pub struct Server {
    settings: Settings,
    director: Arc<Director>,
    files: Files,
    policy_file: Option<WatchedFile>,
    follower: Follower,
    tls: Option<ServerTlsConfig>,
    spans: Arc<Spans>,
    grpc: TcpListener,
    health: TcpListener,
    metrics: TcpListener,
}

impl Server {
    /// Reads the files, then binds the ports.
    ///
    /// # Errors
    /// A file that is not valid, or a port that is taken; the message names the flag.
    pub async fn bind(settings: Settings) -> anyhow::Result<Self> {
        let (files, reader) = Files::load(settings.files.clone()).context("read the pools")?;
        let director = Arc::new(Director::new(settings.director.clone(), Arc::new(Metrics::default())));
        let policy_file = settings.policy_file.clone();
        let policy_file = policy_file.map(|path| WatchedFile::load(path, director.policies())).transpose();
        let policy_file = policy_file.map_err(|error| anyhow!(error)).context("read the policy")?;
        let follower =
            Follower::new(Arc::clone(&director), reader, (settings.scrape_interval, settings.kv_ports));
        let tls = settings.security.config(wall_clock())?;
        let spans = Arc::new(Spans::try_new(settings.otlp.as_ref())?);
        let host = settings.host;
        Ok(Self {
            grpc: listen(host, settings.grpc_port, "ext_proc", "--grpc-port").await?,
            health: listen(host, settings.health_port, "gRPC health", "--health-port").await?,
            metrics: listen(host, settings.metrics_port, "metrics", "--metrics-port").await?,
            settings,
            director,
            files,
            policy_file,
            follower,
            tls,
            spans,
        })
    }

    /// # Errors
    /// When the system does not know the address of a bound port.
    pub fn ports(&self) -> anyhow::Result<Ports> {
        let address = |listener: &TcpListener| listener.local_addr().context("read the bound address");
        Ok(Ports {
            grpc: address(&self.grpc)?,
            health: address(&self.health)?,
            metrics: address(&self.metrics)?,
        })
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// When a part of the server fails while it is needed.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let ports = self.ports()?;
        let Self { settings, director, files, policy_file, follower, tls, spans, grpc, health, metrics } =
            self;
        let tracker = TaskTracker::new();
        let stop = CancellationToken::new();
        let state = Health::new().await;
        serve_health(health, state.service(), &tracker, &stop);
        let health_service = state.service();
        tracker.spawn(state.follow(Arc::clone(&director), shutdown.drain.clone()));
        let router = http::router(Arc::clone(&director), (shutdown.drain.clone(), stop.clone()));
        let stopped = stop.clone().cancelled_owned();
        tracker.spawn(async move { axum::serve(metrics, router).with_graceful_shutdown(stopped).await });
        tracker.spawn(files.run(stop.clone().cancelled_owned()));
        if let Some(file) = policy_file {
            tracker.spawn(file.run(Arc::clone(director.policies()), stop.clone().cancelled_owned()));
        }
        if !settings.peers.is_empty() {
            let followers = Followers::new(Arc::clone(&director), settings.peers.clone());
            tracker.spawn(followers.run(stop.clone()));
        }
        let following = tracker.spawn(follower.run(stop.clone()));
        let cut = CancellationToken::new();
        let tokenizer = Tokenizer::new(settings.tokenize_timeout);
        let limits = (settings.max_body_bytes, tokenizer);
        let processor = Processor::new(director, Arc::clone(&spans), limits, cut.clone());
        let is_secure = tls.is_some();
        let closed = CancellationToken::new();
        let services = (processor, health_service, settings.max_body_bytes);
        let streams = serve_ext_proc(grpc, tls, services, closed.clone());
        tokio::pin!(streams);
        info!(grpc = %ports.grpc, tls = is_secure, health = %ports.health, metrics = %ports.metrics, "Serving");

        let drained = drain(&shutdown, (settings.drain_delay, settings.grace_period), closed);
        let result = tokio::select! {
            served = &mut streams => served.context("serve ext_proc"),
            followed = following => Err(match followed {
                Ok(()) => anyhow!("the pool index has ended"),
                Err(error) => anyhow!(error).context("follow the pool index"),
            }),
            () = drained => {
                warn!("Cutting streams that are still open");
                cut.cancel();
                let ended = tokio::time::timeout(LAST_TASKS, streams).await;
                ended.unwrap_or(Ok(())).context("serve ext_proc")
            }
        };
        stop.cancel();
        tracker.close();
        let _ = tokio::time::timeout(LAST_TASKS, tracker.wait()).await;
        let sent = tokio::task::spawn_blocking(move || spans.shut_down());
        let _ = tokio::time::timeout(LAST_TASKS, sent).await;
        info!("Ended");
        result
    }
}

#[expect(clippy::disallowed_methods, reason = "certificates are dated by the wall clock")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}

/// Longest wait for tasks that were told to stop; none of them waits for anything but its next line of code.
const LAST_TASKS: Duration = Duration::from_secs(1);

async fn listen(host: IpAddr, port: u16, what: &str, flag: &str) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(host, port);
    TcpListener::bind(address).await.with_context(|| {
        format!("listen on {address} for {what} (choose another port with {flag}, 0 takes any free one)")
    })
}

async fn serve_ext_proc(
    listener: TcpListener,
    tls: Option<ServerTlsConfig>,
    (processor, health, max_body_bytes): (Processor, HealthServer<HealthService>, usize),
    closed: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let service = ExternalProcessorServer::new(processor)
        .max_decoding_message_size(max_body_bytes.saturating_add(ENVELOPE_BYTES));
    let mut server = Grpc::builder();
    if let Some(tls) = tls {
        server = server.tls_config(tls)?;
    }
    server
        .max_concurrent_streams(MAX_CONCURRENT_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(service)
        .add_service(health)
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)),
            closed.cancelled_owned(),
        )
        .await
}

fn serve_health(
    listener: TcpListener,
    service: HealthServer<HealthService>,
    tracker: &TaskTracker,
    stop: &CancellationToken,
) {
    let stopped = stop.clone().cancelled_owned();
    tracker.spawn(
        Grpc::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stopped),
    );
}

/// Ends when open streams need not be waited for any longer. From `closed` on nothing new is taken, either way.
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
