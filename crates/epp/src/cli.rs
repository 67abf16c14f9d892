//! The command line.

mod bodies;
#[cfg(feature = "kubernetes")]
mod cluster;
mod engines;
mod explain;
mod knobs;
mod logging;
mod peers;
mod picking;
mod pools;
mod ports;
mod serve;
mod values;

use std::num::NonZeroU32;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use inference_api::picker_config::PickerConfig;
use prefix_index::blocks::Bounds;
use prometheus_client::metrics::counter::Counter;
use tracing::error;

use self::bodies::BodyArgs;
use self::engines::EngineArgs;
use self::explain::ExplainArgs;
use self::knobs::KnobArgs;
use self::logging::LogArgs;
use self::peers::PeerArgs;
use self::picking::PickArgs;
use self::pools::PoolArgs;
use self::ports::PortArgs;
use crate::director::Options;
use crate::log;
use crate::server::Settings;
use crate::server::accept::Patience;
use crate::source;
use crate::tuning::Patch;

const EXAMPLES: &str = "\
Examples:
  One pool, two model servers:
    epp --pool-file pool.yaml --endpoint 127.0.0.1:18001 --endpoint 127.0.0.1:18002
  Pods selected by the pool's labels:
    epp --pool-file pool.yaml --endpoints-file endpoints.yaml
  Why was this pod picked?
    curl 'localhost:9090/debug/decisions?after=0' | epp explain
";

const AFTER_HELP: &str = "--help lists all flags, the format of the files, signals and exit codes.";

const AFTER_LONG_HELP: &str = "  Which policy values are in force?
    curl localhost:9090/debug/policy

The endpoints file is a YAML list:
  - {name: qwen-0, namespace: default, address: 127.0.0.1:18001, labels: {app: qwen}, ready: true}

The policy file has values for all pools:
  default: {threshold: 0.5, spillTokens: 256}
Later sources override earlier ones: the built-in value, the flag, the policy file, the pool's annotation
inference.networking.x-k8s.io/routing-policy: '{threshold: 0.6}'.

Files are read again when they change. A version that is not valid is logged, and the last good one stays in force.
A pool's annotation inference.networking.x-k8s.io/routing-strategy chooses DEFAULT (load) or PREFIX_CACHE.

Signals: the first SIGTERM or SIGINT drains, a second one ends at once. SIGHUP reads the certificate of --cert-path again,
which also happens every 10 seconds.

Exit codes: 0 after such a signal, 1 if the picker fails, 2 if the command line is wrong.";

/// Endpoint picker: tells Envoy which model server should serve a request, by prefix cache and load.
#[derive(Debug, Parser)]
#[command(
    name = "epp",
    version = env!("PROGRAM_VERSION"),
    after_help = format!("{EXAMPLES}\n{AFTER_HELP}"),
    after_long_help = format!("{EXAMPLES}{AFTER_LONG_HELP}"),
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    pools: PoolArgs,
    #[cfg(feature = "kubernetes")]
    #[command(flatten)]
    cluster: cluster::ClusterArgs,
    #[command(flatten)]
    ports: PortArgs,
    #[command(flatten)]
    pick: PickArgs,
    #[command(flatten)]
    knobs: KnobArgs,
    #[command(flatten)]
    engines: EngineArgs,
    #[command(flatten)]
    bodies: BodyArgs,
    #[command(flatten)]
    peers: PeerArgs,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Explain offline why a pod was picked, from decision records or from requests
    Explain(ExplainArgs),
}

/// Parses the command line, serves, and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(Command::Explain(args)) = &cli.command {
        return explain::run(args, cli.options(&PickerConfig::default(), cli.knobs.patch()));
    }
    // The log outlives the server, so that its last lines are written.
    let log = match log::init(&cli.log.log_level) {
        Ok(log) => log,
        Err(error) => return failed(&error),
    };
    let served = cli
        .settings(log.n_dropped().clone())
        .and_then(|settings| serve::serve(settings, cli.ports.port_file.as_deref()));
    served.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

fn failed(error: &anyhow::Error) -> ExitCode {
    error!(error = format!("{error:#}"), "Failed");
    ExitCode::FAILURE
}

// === impl Cli ===

impl Cli {
    fn settings(&self, n_dropped_lines: Counter) -> anyhow::Result<Settings> {
        let Self {
            command: _,
            pools,
            #[cfg(feature = "kubernetes")]
            cluster,
            ports,
            pick,
            knobs,
            engines,
            bodies,
            peers,
            log,
        } = self;
        let config = pick.config()?;
        let policy = Patch::of_config(&config)?.with(knobs.patch());
        let source = source::Config::Files(pools.files());
        #[cfg(feature = "kubernetes")]
        let source = cluster.cluster().map_or(source, source::Config::Cluster);
        Ok(Settings {
            policy_file: pick.policy_file.clone(),
            source,
            security: ports.security(),
            host: ports.host,
            grpc_port: ports.grpc_port,
            health_port: ports.health_port,
            metrics_host: ports.metrics_host,
            metrics_port: ports.metrics_port,
            patience: Patience::default(),
            otlp: log.otlp(),
            n_dropped_lines,
            peers: peers.peers.clone(),
            scrape_interval: engines.scrape_interval,
            kv_ports: engines.kv_ports(),
            tokenize_timeout: engines.tokenize_timeout,
            grace_period: ports.grace_period,
            drain_delay: ports.drain_delay,
            max_body_bytes: bodies.max_body_bytes,
            max_buffered_bytes: bodies.max_buffered_bytes,
            body_timeouts: bodies.timeouts(),
            director: self.options(&config, policy),
        })
    }

    fn options(&self, config: &PickerConfig, policy: Patch) -> Options {
        let Self { pools, pick, engines, peers, .. } = self;
        let capacity = config.index_capacity.and_then(NonZeroU32::new);
        Options {
            pool: pools.pool.clone(),
            policy,
            max_metrics_age: engines.max_metrics_age,
            compat: pick.compat(),
            explains: pick.explain_to_clients,
            saturation: engines.saturation(&config.saturation),
            index_capacity: capacity.unwrap_or(pick.index_capacity),
            kv_bounds: Bounds::default(),
            endpoints_per_pick: pick.endpoints_per_pick,
            n_decisions: pick.decisions,
            seed: pick.seed.unwrap_or_else(rand::random),
            peers: peers.options(),
        }
    }
}
