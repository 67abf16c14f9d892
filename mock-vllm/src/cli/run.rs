//! `serve` as a process: starts the log, takes the ports, runs the pods and watches the signals, in this order.

use super::UsageError;
use super::flags::Ignored;
use super::log::Log;
use super::serve::ServeArgs;
use crate::faults::Rule;
use crate::server::fleet::BoundFleet;
use crate::server::{BuildError, Stop};
use anyhow::Context as _;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Serves until a signal stops it.
///
/// # Errors
/// Returns a `UsageError`, before any port is taken, if the command line alone is at fault.
pub(super) fn serve(args: ServeArgs, ignored: &[Ignored]) -> anyhow::Result<ExitCode> {
    let _log = start_log(&args.log_filter)?;
    for Ignored { flag, values, reason } in ignored {
        tracing::info!(%flag, ?values, "Ignored flag: {reason}");
    }
    let (listen_on, is_port_open, grace) =
        (args.listen.listen_on(), args.listen.is_port_open(), args.listen.grace());
    let replicas = args.listen.replicas().map_err(UsageError)?;
    let port_file = args.listen.port_file.clone();
    let settings = args.into_settings().map_err(UsageError)?;
    settings.engine.validate().map_err(|error| UsageError(format!("invalid engine settings: {error}")))?;
    if settings.kv_events.is_on() && !settings.engine.prefix_caching {
        tracing::warn!("KV cache events are on, but prefix caching is not enabled: there will be none");
    }
    let plan = replicas.plan(&settings, &listen_on).map_err(|error| UsageError(error.to_string()))?;
    let names: Vec<&str> = plan.iter().map(|pod| pod.settings.http.pod_name.as_str()).collect();
    check_pods_of_faults(&settings.faults, &names)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async move {
        let signals = watch_signals(Stop::after(grace))?;
        let bound = BoundFleet::bind(plan).await?;
        let addresses: Vec<(String, String)> =
            bound.addresses().map(|(name, address)| (name.to_owned(), address)).collect();
        let fleet = bound.build().map_err(|error| match error {
            BuildError::Engine(source) => {
                anyhow::Error::new(UsageError(format!("invalid engine settings: {source}")))
            }
            other => anyhow::Error::new(other),
        })?;
        if let Some(path) = &port_file {
            write_addresses(path, &addresses).with_context(|| format!("write {}", path.display()))?;
        }
        if is_port_open {
            print_addresses(&addresses);
        }
        let (model, kv_blocks) = (settings.http.displayed_model(), settings.engine.n_blocks);
        for (pod, address) in &addresses {
            tracing::info!(%pod, %address, %model, kv_blocks, "Serving");
        }
        fleet.run(signals).await.context("serve")
    })?;
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

fn check_pods_of_faults(rules: &[Rule], names: &[&str]) -> Result<(), UsageError> {
    let unknown = |rule: &&Rule| rule.pod.as_ref().is_some_and(|pod| !names.contains(&pod.as_str()));
    match rules.iter().find(unknown) {
        Some(rule) => Err(UsageError(format!("--fault {rule}: the pods are {}", names.join(", ")))),
        None => Ok(()),
    }
}

fn start_log(filter: &str) -> anyhow::Result<Log> {
    let filter = EnvFilter::try_new(filter).map_err(|error| UsageError(format!("--log-filter: {error}")))?;
    Log::start(filter).context("start the log's thread")
}

/// Prints one line per pod. A closed stdout is not an error: the log has the addresses too.
fn print_addresses(addresses: &[(String, String)]) {
    let mut stdout = std::io::stdout().lock();
    let _reader_gone = stdout.write_all(address_lines(addresses).as_bytes()).and_then(|()| stdout.flush());
}

/// Writes the file under another name and renames it, so that a reader sees all lines or none.
fn write_addresses(path: &Path, addresses: &[(String, String)]) -> std::io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    std::fs::write(&partial, address_lines(addresses))?;
    std::fs::rename(&partial, path)
}

fn address_lines(addresses: &[(String, String)]) -> String {
    addresses.iter().map(|(name, address)| format!("{name} {address}\n")).collect()
}

/// Begins the shutdown at the first SIGTERM or SIGINT; the second aborts what still runs.
fn watch_signals(stop: Stop) -> anyhow::Result<Stop> {
    let mut terminate = signal(SignalKind::terminate()).context("watch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch SIGINT")?;
    let watching = stop.clone();
    #[expect(clippy::disallowed_methods, reason = "it ends with the process, which it is there to end")]
    tokio::spawn(async move {
        let mut next_signal = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        next_signal().await;
        tracing::info!("Stopping");
        watching.begin();
        next_signal().await;
        watching.hurry();
    });
    Ok(stop)
}
