//! The command line, and the process around the server.

mod explain;
mod knobs;

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use inference_api::object::ObjectKey;
use pool_index::source::files;
use prometheus_client::metrics::counter::Counter;
use scheduling::saturation::Thresholds;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tracing::{error, info};

use self::explain::ExplainArgs;
use self::knobs::KnobArgs;
use crate::compat::Compat;
use crate::director::{Options, Peers};
use crate::kv_events;
use crate::log::{self, Filter, Format};
use crate::server::accept::Patience;
use crate::server::ext_proc::Timeouts;
use crate::server::tls::{Security, local_names};
use crate::server::{Ports, Server, Settings, Shutdown};
use crate::spans::Otlp;

const AFTER_HELP: &str = "\
Examples:
  One pool, two model servers:
    epp --pool-file pool.yaml --endpoint 127.0.0.1:18001 --endpoint 127.0.0.1:18002
  Pods selected by the pool's labels:
    epp --pool-file pool.yaml --endpoints-file endpoints.yaml

The endpoints file is a YAML list:
  - {name: qwen-0, namespace: default, address: 127.0.0.1:18001, labels: {app: qwen}, ready: true}

The policy's file has knobs for every pool and for single ones:
  default: {threshold: 0.5, spillTokens: 256}
  pools: {default/vllm-qwen-pool: {threshold: 0.6}}
A later source wins: built in, flag, the file's default, the file's pool, the pool's annotation
inference.networking.x-k8s.io/routing-policy: '{threshold: 0.6}'.
Ask what is in force:       curl localhost:9090/debug/policy

Files are read again when they change; an invalid version is logged and the last good one stays in force.
A pool's annotation inference.networking.x-k8s.io/routing-strategy chooses DEFAULT (load) or PREFIX_CACHE.

Ask why a pod was picked:   curl 'localhost:9090/debug/decisions?after=0' | epp explain

Signals: SIGTERM and SIGINT drain, a second one ends at once; SIGHUP reads the certificate of --cert-path again, which
happens every 10 seconds anyway.

Exit codes: 0 after such a signal, 1 when the picker failed, 2 when the command line is wrong.";

/// Endpoint picker: tells Envoy which model server shall serve a request, by prefix cache and load.
#[derive(Debug, Parser)]
#[command(
    name = "epp",
    version,
    after_help = AFTER_HELP,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    knobs: KnobArgs,
    #[command(flatten)]
    peers: PeerArgs,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say why a pod was picked, offline: from decisions' records, or from requests
    Explain(ExplainArgs),
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Pools and endpoints")]
struct SourceArgs {
    /// YAML with InferencePools and InferenceModels; may be given several times
    #[arg(long = "pool-file", value_name = "FILE", required = true)]
    pool_files: Vec<PathBuf>,
    /// YAML list of endpoints, which pools select by label and namespace
    #[arg(long, value_name = "FILE")]
    endpoints_file: Option<PathBuf>,
    /// A model server that belongs to every pool; may be given several times
    #[arg(long = "endpoint", value_name = "IP:PORT", value_parser = pool_index::address::parse)]
    endpoints: Vec<SocketAddr>,
    /// The pool to pick from [default: the one that the proxy names, the only one, or the one that has the model]
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pool: Option<ObjectKey>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Ports (0 takes any free one)")]
struct ListenArgs {
    /// Address of the ports of ext_proc and health
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Port of Envoy's ext_proc protocol (gRPC)
    #[arg(long, value_name = "PORT", default_value_t = 9002)]
    grpc_port: u16,
    /// Serve ext_proc over TLS, with the certificate of --cert-path or one that is made at the start
    #[arg(long)]
    secure_serving: bool,
    /// Directory with tls.crt and tls.key (PEM), as a Kubernetes Secret is mounted
    #[arg(long, value_name = "DIR", requires = "secure_serving")]
    cert_path: Option<PathBuf>,
    /// DNS name or IP address of the certificate that is made; may be given several times [default: localhost, 127.0.0.1, ::1]
    #[arg(
        long = "cert-name",
        value_name = "NAME",
        requires = "secure_serving",
        conflicts_with = "cert_path"
    )]
    cert_names: Vec<String>,
    /// Write the certificate that is made to this file, for the proxy to trust
    #[arg(long, value_name = "FILE", requires = "secure_serving", conflicts_with = "cert_path")]
    cert_out: Option<PathBuf>,
    /// Port of gRPC health checks
    #[arg(long, value_name = "PORT", default_value_t = 9003)]
    health_port: u16,
    /// Address of the metrics port, whose pages tell of pods and requests; Prometheus, probes and other pickers (--peer) on
    /// other machines need one that they reach
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    metrics_host: IpAddr,
    /// Port of /metrics, /healthz, /readyz and /debug/decisions (HTTP)
    #[arg(long, value_name = "PORT", default_value_t = 9090)]
    metrics_port: u16,
    /// Write the bound addresses to this file, as JSON, once all of them are bound
    #[arg(long, value_name = "FILE")]
    port_file: Option<PathBuf>,
    /// How long open streams may take to end after the first SIGTERM or SIGINT; a second one ends them at once
    #[arg(long, value_name = "DURATION", default_value = "25s", value_parser = parse_duration)]
    grace_period: Duration,
    /// How long new streams are still taken after that signal, while health checks say that the picker is ending. Envoy
    /// notices after two checks, one second apart and each up to a second long
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = parse_wait)]
    drain_delay: Duration,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Other pickers of the same pools")]
struct PeerArgs {
    /// Metrics port of another picker, whose picks this one shall know; a name that stands for several, as a headless
    /// Service's does, is followed to each. May be given several times, and may be this picker itself
    #[arg(long = "peer", value_name = "HOST:PORT")]
    peers: Vec<String>,
    /// Most memory for picks that peers have not read yet, or will want to read when they begin anew
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 20)]
    peer_journal_bytes: usize,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Picking")]
struct PolicyArgs {
    /// YAML with `default:` and `pools:` of the policy's knobs, read again when it changes; overrides their flags, and a
    /// pool's annotation inference.networking.x-k8s.io/routing-policy overrides it
    #[arg(long, value_name = "FILE")]
    policy_file: Option<PathBuf>,
    /// How often each endpoint's /metrics is read; half as often while it has nothing to do and the limits on the metrics'
    /// age allow it
    #[arg(long, value_name = "DURATION", default_value = "50ms", value_parser = parse_duration)]
    scrape_interval: Duration,
    /// Port of each engine's KV events (ZMQ), for pools annotated inference.networking.x-k8s.io/prefix-cache-mode: precise;
    /// an endpoint's kvEvents overrides it
    #[arg(long, value_name = "PORT", default_value_t = 5557)]
    kv_events_port: u16,
    /// Port where each engine repeats its KV events; an endpoint's kvReplay overrides it [default: none is asked]
    #[arg(long, value_name = "PORT")]
    kv_replay_port: Option<u16>,
    /// How long a request of such a pool waits for its token ids, which a pod's /v1/.../render tells, or its /tokenize; after
    /// that it is placed by the estimate
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = parse_duration)]
    tokenize_timeout: Duration,
    /// Metrics older than this, and than two scrape intervals, do not count
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_duration)]
    max_metrics_age: Duration,
    /// A pod with a longer queue has no capacity for requests that are not critical
    #[arg(long, value_name = "COUNT", default_value_t = Thresholds::default().queue_depth)]
    saturation_queue_depth: u32,
    /// A pod that uses more of its KV cache has no capacity for requests that are not critical
    #[arg(long, value_name = "RATIO", default_value_t = Thresholds::default().kv_usage, value_parser = parse_ratio)]
    saturation_kv_usage: f64,
    /// A pod with metrics that are older, and older than two scrape intervals, has no capacity for requests that are not critical
    #[arg(long, value_name = "DURATION", default_value = "200ms", value_parser = parse_duration)]
    saturation_metrics_age: Duration,
    /// Bound of the prefix index, in blocks per endpoint; a prompt of 128 KB has about 580
    #[arg(long, value_name = "BLOCKS", default_value = "31250")]
    index_capacity: NonZeroU32,
    /// How many endpoints the proxy is told for a request: the picked one, then those to try when it cannot be reached
    #[arg(long, value_name = "COUNT", default_value = "1")]
    endpoints_per_pick: NonZeroUsize,
    /// Whose replies are given, headers, error texts and their codes in metrics, where those of others differ
    #[arg(long, value_enum, value_name = "PICKER", default_value_t)]
    compat: Compat,
    /// Tell clients that send `x-warmpath-explain: true` why their pod was picked: the answer's header x-warmpath-decision
    /// has pod names and addresses, so allow it only if every client may know them
    #[arg(long)]
    explain_to_clients: bool,
    /// Longest request body that is kept until it is complete
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    max_body_bytes: usize,
    /// Most memory for the bodies of all requests; a request whose body finds no room is refused with 503. A quarter is for
    /// bodies of up to 256 KiB, whatever longer ones take
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 30)]
    max_buffered_bytes: usize,
    /// A request of whose body nothing comes for so long is refused with 408
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    body_idle_timeout: Duration,
    /// A request whose body is not complete after so long is refused with 408: the longest body at 1 Mbit/s takes 9 minutes
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = parse_duration)]
    body_timeout: Duration,
    /// Decisions kept for /debug/decisions
    #[arg(long, value_name = "COUNT", default_value_t = 1000)]
    decisions: usize,
    /// Makes ties, weighted models and request ids repeatable [default: random]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Log (on stderr) and spans")]
struct LogArgs {
    /// How a line is written
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t)]
    log_format: Format,
    /// A level, or levels by module: `debug`, `warn,epp=debug`
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log_level: Filter,
    /// Send a span for each request to this OTLP receiver (gRPC), such as http://localhost:4317 [default: send none]
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
    /// Share of the requests that are sent, of those that the proxy has not decided about
    #[arg(long, value_name = "RATIO", default_value_t = 1.0, value_parser = parse_ratio)]
    otlp_sample_ratio: f64,
}

/// Parses the command line and serves; what `main` returns.
#[must_use]
pub fn main() -> ExitCode {
    let Cli { command, source, listen, policy, knobs, peers, log } = Cli::parse();
    let LogArgs { log_format, log_level, otlp_endpoint, otlp_sample_ratio } = log;
    let otlp = otlp_endpoint.map(|endpoint| Otlp { endpoint, sample_ratio: otlp_sample_ratio });
    let port_file = listen.port_file.clone();
    let mut settings = Settings { otlp, ..settings(source, &listen, policy, &knobs) };
    settings.director.peers = peers.options();
    settings.peers = peers.peers;
    if let Some(Command::Explain(args)) = command {
        return explain::run(&args, settings.director);
    }
    // The log is the last to go, so that what is said at the end is written.
    let log = match log::init(log_format, &log_level) {
        Ok(log) => log,
        Err(error) => return failed(&error),
    };
    settings.n_dropped_lines = log.n_dropped().clone();
    serve(settings, port_file.as_deref()).map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

fn failed(error: &anyhow::Error) -> ExitCode {
    error!(error = format!("{error:#}"), "Failed");
    ExitCode::FAILURE
}

fn settings(source: SourceArgs, listen: &ListenArgs, policy: PolicyArgs, knobs: &KnobArgs) -> Settings {
    let SourceArgs { pool_files, endpoints_file, endpoints, pool } = source;
    let PolicyArgs {
        policy_file,
        scrape_interval,
        kv_events_port,
        kv_replay_port,
        tokenize_timeout,
        max_metrics_age,
        saturation_queue_depth,
        saturation_kv_usage,
        saturation_metrics_age,
        index_capacity,
        endpoints_per_pick,
        compat,
        explain_to_clients,
        max_body_bytes,
        max_buffered_bytes,
        body_idle_timeout,
        body_timeout,
        decisions,
        seed,
    } = policy;
    Settings {
        policy_file,
        files: files::Config { pool_files, endpoints_file, static_endpoints: endpoints },
        security: listen.security(),
        host: listen.host,
        grpc_port: listen.grpc_port,
        health_port: listen.health_port,
        metrics_host: listen.metrics_host,
        metrics_port: listen.metrics_port,
        patience: Patience::default(),
        otlp: None,
        n_dropped_lines: Counter::default(),
        peers: Vec::new(),
        scrape_interval,
        kv_ports: kv_events::follow::Ports { events: kv_events_port, replay: kv_replay_port },
        tokenize_timeout,
        grace_period: listen.grace_period,
        drain_delay: listen.drain_delay,
        max_body_bytes,
        max_buffered_bytes,
        body_timeouts: Timeouts { idle: body_idle_timeout, total: body_timeout },
        director: Options {
            pool,
            policy: knobs.patch(),
            max_metrics_age,
            compat,
            explains: explain_to_clients,
            saturation: Thresholds {
                queue_depth: saturation_queue_depth,
                kv_usage: saturation_kv_usage,
                metrics_age: saturation_metrics_age,
            },
            index_capacity,
            endpoints_per_pick,
            n_decisions: decisions,
            seed: seed.unwrap_or_else(rand::random),
            peers: None,
        },
    }
}

impl PeerArgs {
    fn options(&self) -> Option<Peers> {
        let instance = || uuid::Uuid::new_v4().to_string();
        let journal_bytes = self.peer_journal_bytes;
        (!self.peers.is_empty()).then(|| Peers { instance: instance(), journal_bytes })
    }
}

impl ListenArgs {
    fn security(&self) -> Security {
        match (self.secure_serving, &self.cert_path) {
            (false, _) => Security::Plain,
            (true, Some(dir)) => Security::Directory(dir.clone()),
            (true, None) => Security::Made {
                names: if self.cert_names.is_empty() { local_names() } else { self.cert_names.clone() },
                certificate_file: self.cert_out.clone(),
            },
        }
    }
}

#[tokio::main]
async fn serve(settings: Settings, port_file: Option<&Path>) -> anyhow::Result<()> {
    // Before anyone can know of the ports: a signal from then on ends the picker in order.
    let signals = Signals::watch()?;
    let server = Server::bind(settings).await?;
    if let Some(path) = port_file {
        write_ports(path, server.ports()?)?;
    }
    let (shutdown, reload) = (Shutdown::default(), server.reload());
    tokio::select! {
        ended = server.run(shutdown.clone()) => ended,
        never = signals.pass_on(shutdown, &reload) => match never {},
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn watch() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("watch for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("watch for SIGINT")?,
            hangup: signal(SignalKind::hangup()).context("watch for SIGHUP")?,
        })
    }

    /// The first signal drains, the second ends; SIGHUP reads again what may have changed, at any time.
    async fn pass_on(mut self, shutdown: Shutdown, reload: &Notify) -> Infallible {
        let mut ends = [shutdown.drain, shutdown.abort].into_iter();
        loop {
            let (name, ends_it) = tokio::select! {
                _ = self.terminate.recv() => ("SIGTERM", true),
                _ = self.interrupt.recv() => ("SIGINT", true),
                _ = self.hangup.recv() => ("SIGHUP", false),
            };
            info!(signal = name, "Received signal");
            match ends_it {
                false => reload.notify_one(),
                true => ends.next().into_iter().for_each(|end| end.cancel()),
            }
        }
    }
}

/// Whoever waits for the file sees it whole or not at all.
fn write_ports(path: &Path, ports: Ports) -> anyhow::Result<()> {
    let text = serde_json::to_string(&ports).context("write the ports as JSON")?;
    let part = path.with_extension("part");
    std::fs::write(&part, text + "\n").with_context(|| format!("write {}", part.display()))?;
    std::fs::rename(&part, path).with_context(|| format!("write {}", path.display()))
}

/// `50ms`, `2s`, `1m 30s`; not 0.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = parse_wait(text)?;
    if duration.is_zero() { Err("must be longer than 0".to_owned()) } else { Ok(duration) }
}

/// The same, or 0.
fn parse_wait(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("expected a time, as in 50ms: {error}"))
}

fn parse_ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        Ok(_) | Err(_) => Err("expected a number from 0 to 1".to_owned()),
    }
}
