//! The command line.

use std::io::IsTerminal as _;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use tracing_subscriber::EnvFilter;

use crate::names;
use crate::server::{Server, Settings};
use crate::setup::Setup;

const AFTER_HELP: &str = "\
Examples:
  In a cluster with Envoy Gateway, as manifests/components installs it:
    controller --picker-image warmpath/epp:0.1.0
  On this machine, against the cluster of the current context:
    controller --picker-image warmpath/epp:0.1.0 --host 127.0.0.1 --metrics-host 127.0.0.1

Envoy Gateway asks it by its hooks Route, Cluster and Translation: `extensionManager.service` in the
ConfigMap envoy-gateway-config names the hooks' port. With --secure-serving, `certificateRef` there is
the Secret warmpath-authority, which the controller makes.

For each InferencePool it makes a headless Service NAME-pods beside it. A v1alpha2 pool also gets a
picker in the controller's namespace, epp-POOLNAMESPACE-SERVICE, unless the Service that its
extensionRef names exists. A v1 pool gets one if its annotation
inference.networking.x-k8s.io/managed-picker is \"true\". What no pool asks for is deleted.

A picker that it has not made is sent a part of a request, to see how it takes bodies, unless the
pool's annotation inference.networking.x-k8s.io/picker-body-mode says it: full-duplex-streamed, or
streamed.

HTTPRoutes that lead to a pool get the annotation gateway.envoyproxy.io/warmpath-attachment. It
changes when Envoy Gateway has to translate again.

Several controllers may run at a time. While the API server is away, hooks are answered from what
was known last.

Signals: SIGTERM or SIGINT ends it after the calls that are under way, for at most 5 seconds; a
second one ends it at once.

Exit codes: 0 after such a signal, 1 if the controller fails, 2 if the command line is wrong.";

/// Lets stock Envoy Gateway route to InferencePools: answers its hooks, runs the pools' endpoint pickers, writes statuses.
#[derive(Debug, Parser)]
#[command(name = "controller", version = env!("PROGRAM_VERSION"), after_help = AFTER_HELP)]
struct Cli {
    /// Image of the pickers that it runs
    #[arg(long, value_name = "IMAGE")]
    picker_image: String,
    /// Replicas of every picker [default: one, and whoever scales the Deployment may change that]
    #[arg(long, value_name = "N")]
    picker_replicas: Option<NonZeroU16>,
    /// Argument of every picker, after the controller's own, as in --picker-arg=--grace-period=30s; may be given several
    /// times
    #[arg(long = "picker-arg", value_name = "ARG", allow_hyphen_values = true)]
    picker_args: Vec<String>,
    /// Tell clients that send the header x-warmpath-explain why their pod was picked: names, loads and prefixes of pods
    #[arg(long)]
    explain_to_clients: bool,
    /// Its own namespace, in which it runs pickers
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", default_value = "envoy-gateway-system")]
    namespace: String,
    /// File that names the API server [default: $KUBECONFIG or ~/.kube/config, or else the pod's service account]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Address of the hooks' port
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    host: IpAddr,
    /// Port of Envoy Gateway's extension service (gRPC)
    #[arg(long, value_name = "PORT", default_value_t = 5005)]
    hooks_port: u16,
    /// Serve the hooks over TLS, with a certificate that the authority of the pickers signs
    #[arg(long)]
    secure_serving: bool,
    /// DNS name for that certificate; may be given several times
    /// [default: warmpath-controller.NAMESPACE.svc, with and without .cluster.local]
    #[arg(long = "cert-name", value_name = "NAME", requires = "secure_serving")]
    cert_names: Vec<String>,
    /// Address of the metrics port
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    metrics_host: IpAddr,
    /// Port of /metrics, /healthz and /readyz (HTTP)
    #[arg(long, value_name = "PORT", default_value_t = 9090)]
    metrics_port: u16,
    /// A level, or levels by module: `debug`, `warn,controller=debug`
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log_level: EnvFilter,
}

/// Parses the command line, serves, and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let mut cli = Cli::parse();
    let filter = std::mem::take(&mut cli.log_level);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(std::io::stderr().is_terminal()).init();
    match serve(cli.settings()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = format!("{error:#}"), "Failed");
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    fn settings(self) -> Settings {
        let Self {
            picker_image: image,
            picker_replicas: replicas,
            picker_args: arguments,
            explain_to_clients: explains,
            namespace,
            kubeconfig,
            host,
            hooks_port,
            secure_serving,
            cert_names,
            metrics_host,
            metrics_port,
            log_level: _,
        } = self;
        let secure_names = secure_serving
            .then(|| if cert_names.is_empty() { names::controller_hosts(&namespace) } else { cert_names });
        Settings {
            kubeconfig,
            namespace,
            setup: Setup { image, replicas, arguments, explains },
            host,
            hooks_port,
            secure_names,
            metrics_host,
            metrics_port,
        }
    }
}

/// Serves until a signal ends it; a second one does not wait for what is under way.
#[tokio::main]
async fn serve(settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let server = Server::bind(settings).await?;
    let stop = CancellationToken::new();
    let mut run = pin!(server.run(stop.clone()));
    loop {
        tokio::select! {
            ended = &mut run => return ended,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if stop.is_cancelled() {
            return Ok(());
        }
        info!("Ending");
        stop.cancel();
    }
}
