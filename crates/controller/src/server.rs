//! The controller's process: ports, tasks, the end.
//!
//! ```text
//! bind ─► follow the API server ─► first lists are in ─► serve hooks ─(stop)─► finish calls ─► end
//! ```
//! Connections wait until hooks are served: Envoy Gateway asks without a deadline, and takes an error for the answer.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use envoy_proto::envoygateway::extension::envoy_gateway_extension_server::EnvoyGatewayExtensionServer;
use gateway_config::xds::Editor;
use kube::Client;
use pool_watch::connect;
use pool_watch::watches::Watches;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server as Grpc;
use tracing::info;

use crate::facts::{Facts, Place};
use crate::hooks::Hooks;
use crate::metrics::Metrics;
use crate::names;
use crate::pages::Pages;
use crate::probes::{Probes, Resolver};
use crate::reconciler::{Reconciler, Told};
use crate::setup::Setup;
use crate::tls::{self, Served};
use crate::writer::Writer;

/// Longest wait for calls and writes that are under way when the process is told to end.
const LAST_CALLS: Duration = Duration::from_secs(5);
/// Configuration of the resolver, which kubelet writes for every pod.
const RESOLVER: &str = "/etc/resolv.conf";
/// Time between two pings of a connection without calls: Envoy Gateway keeps one for days.
const PING: Duration = Duration::from_secs(30);

/// Settings that are fixed before the process serves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// File that names the API server; `None`: found as `kubectl` and pods find it.
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of the controller, in which managed pickers run.
    pub namespace: String,
    pub setup: Setup,
    /// Address of the hooks' port.
    pub host: IpAddr,
    pub hooks_port: u16,
    /// DNS names for the certificate of the hooks; `None`: without TLS.
    pub secure_names: Option<Vec<String>>,
    pub metrics_host: IpAddr,
    pub metrics_port: u16,
}

/// The ports in use, also if port 0 was asked for.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct BoundPorts {
    pub hooks: SocketAddr,
    pub metrics: SocketAddr,
}

/// A controller that has bound its ports.
pub struct Server {
    settings: Settings,
    client: Client,
    hooks: TcpListener,
    metrics: TcpListener,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Server {
    /// Finds the API server and binds the ports. Nothing is asked of the API server yet.
    ///
    /// # Errors
    /// If no API server is known or a port is taken; the message names the flag.
    pub async fn bind(settings: Settings) -> anyhow::Result<Self> {
        let config = connect::config(settings.kubeconfig.as_deref()).await.context("find the API server")?;
        info!(api_server = %config.cluster_url, namespace = settings.namespace, "Following the cluster");
        let client = connect::client(config)?;
        let hooks = listen(settings.host, settings.hooks_port, "--hooks-port").await?;
        let metrics = listen(settings.metrics_host, settings.metrics_port, "--metrics-port").await?;
        Ok(Self { settings, client, hooks, metrics })
    }

    /// The addresses of the bound ports.
    ///
    /// # Errors
    /// If the system does not know the address of a bound port.
    pub fn ports(&self) -> anyhow::Result<BoundPorts> {
        let address = |listener: &TcpListener| listener.local_addr().context("read the bound address");
        Ok(BoundPorts { hooks: address(&self.hooks)?, metrics: address(&self.metrics)? })
    }

    /// Serves until `stop`.
    ///
    /// # Errors
    /// If a part of the controller ends before it is told to.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let ports = self.ports()?;
        let Self { settings, client, hooks: listener, metrics: metrics_listener } = self;
        let Settings { namespace, setup, secure_names, .. } = settings;
        let editor = Editor::new(setup.explains);
        let (watches, watch_state) = Watches::new();
        let metrics = Arc::new(Metrics::new(watch_state));
        let reconciler = Reconciler::new(
            (client.clone(), Place { namespace: namespace.clone(), domain: domain() }),
            setup,
            watches,
            Arc::clone(&metrics),
            wall_clock,
        );
        let Told { facts, authority, work, found } = reconciler.told();
        let probes = Probes::new(facts.subscribe(), found.clone(), Arc::clone(&metrics), Resolver::Dns);
        let (facts, authority, work) = (facts.subscribe(), authority.subscribe(), work.subscribe());
        let mut parts = JoinSet::new();
        let writer = Writer::new(client, namespace, Arc::clone(&metrics), wall_clock);
        spawn(&mut parts, "writer", writer.run(work, stop.clone()));
        spawn(&mut parts, "reconciler", reconciler.run(stop.clone()));
        spawn(&mut parts, "probes", probes.run(stop.clone()));
        let pages = Pages { metrics: Arc::clone(&metrics), facts: facts.clone(), stop: stop.clone() };
        let pages = axum::serve(metrics_listener, pages.router())
            .with_graceful_shutdown(stop.clone().cancelled_owned());
        spawn(&mut parts, "metrics port", async { drop(pages.await) });
        let service = Hooks::new(editor, facts.clone(), metrics).into_service();
        let security = match secure_names {
            None => None,
            Some(hosts) => {
                let served = Arc::new(Served::default());
                let config = served.config()?;
                let following = served.follow(authority, hosts, wall_clock, stop.clone());
                spawn(&mut parts, "certificate of the hooks", following);
                Some(config)
            }
        };
        spawn(&mut parts, "hooks port", serve(listener, service, security, (facts, stop.clone())));
        info!(hooks = %ports.hooks, metrics = %ports.metrics, "Bound");
        let result = tokio::select! {
            () = stop.cancelled() => Ok(()),
            Some(ended) = parts.join_next() => Err(match ended {
                Ok(name) => anyhow!("a part of the controller has ended: {name}"),
                Err(error) => anyhow!(error).context("a part of the controller has died"),
            }),
        };
        stop.cancel();
        let _ = timeout(LAST_CALLS, async { while parts.join_next().await.is_some() {} }).await;
        info!("Ended");
        result
    }
}

/// Runs a part that the process needs until it is told to end.
fn spawn(
    parts: &mut JoinSet<&'static str>,
    name: &'static str,
    part: impl Future<Output = ()> + Send + 'static,
) {
    parts.spawn(async move {
        part.await;
        name
    });
}

/// Serves the hooks from the first facts on.
async fn serve(
    listener: TcpListener,
    service: EnvoyGatewayExtensionServer<Hooks>,
    security: Option<Arc<rustls::ServerConfig>>,
    (mut facts, stop): (watch::Receiver<Option<Arc<Facts>>>, CancellationToken),
) {
    tokio::select! {
        () = stop.cancelled() => return,
        known = facts.wait_for(Option::is_some) => if known.is_err() { return },
    }
    info!(tls = security.is_some(), "Serving hooks");
    let router = Grpc::builder().http2_keepalive_interval(Some(PING)).add_service(service);
    let served = match security {
        None => router.serve_with_incoming_shutdown(TcpListenerStream::new(listener), stop.cancelled()).await,
        Some(config) => {
            let (accepted, connections) = tls::queue();
            let accepting = tls::accept(listener, config, accepted, stop.clone());
            let connections = ReceiverStream::new(connections);
            tokio::join!(router.serve_with_incoming_shutdown(connections, stop.cancelled()), accepting).0
        }
    };
    if let Err(error) = served {
        tracing::error!(%error, "Cannot serve hooks");
    }
}

/// The domain of the cluster in which this process runs.
fn domain() -> String {
    names::domain(&std::fs::read_to_string(RESOLVER).unwrap_or_default()).to_owned()
}

async fn listen(host: IpAddr, port: u16, flag: &str) -> anyhow::Result<TcpListener> {
    let address = SocketAddr::new(host, port);
    TcpListener::bind(address).await.with_context(|| {
        format!("listen on {address} (choose another port with {flag}, 0 takes any free one)")
    })
}

#[expect(clippy::disallowed_methods, reason = "statuses and certificates are dated by the wall clock")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}
