//! Flags of `serve` about how many pods there are, where clients reach them, and how they stop.

use crate::server::fleet::Replicas;
use crate::server::ports::ListenOn;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(next_help_heading = "Server")]
pub(in crate::cli) struct ListenArgs {
    /// Address to listen on
    #[arg(long, default_value = "0.0.0.0")]
    host: String,
    /// Port to listen on; 0 lets the system choose, and the chosen address goes to stdout as `name address`
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Unix domain socket to listen on, instead of --host and --port
    #[arg(long, value_name = "PATH")]
    uds: Option<PathBuf>,
    /// Number of pods in this process, each with its own engine, cache and metrics: pod i listens on the port plus i,
    /// has the seed plus i, is called `<pod-name>-<i>`, and sends its KV events on their port plus i
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), conflicts_with = "data_parallel_size")]
    pods: Option<u16>,
    /// File to write `name address` to, one line per pod, once every port is held
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) port_file: Option<PathBuf>,
    /// Number of data-parallel ranks, each with an API of its own on the port plus its rank, as with vLLM's
    /// --data-parallel-multi-port-external-lb; `engine` in metrics and KV-event ports follow the rank
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    data_parallel_size: Option<u16>,
    /// Serve only this rank of --data-parallel-size, on --port
    #[arg(long, value_name = "RANK", conflicts_with = "pods")]
    data_parallel_rank: Option<u16>,
    /// Seconds that requests in flight get to finish after SIGTERM or SIGINT; a second signal aborts them
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    shutdown_timeout: u32,
}

// === impl ListenArgs ===

impl ListenArgs {
    pub(in crate::cli) fn listen_on(&self) -> ListenOn {
        match &self.uds {
            Some(path) => ListenOn::Unix(path.clone()),
            None => ListenOn::Tcp { host: self.host.clone(), port: self.port },
        }
    }

    /// Returns whether the system chooses the port, so that the program must print it.
    pub(in crate::cli) fn is_port_open(&self) -> bool {
        self.uds.is_none() && self.port == 0
    }

    /// Returns the pods of this process.
    ///
    /// # Errors
    /// Fails for a rank beyond `--data-parallel-size`.
    pub(in crate::cli) fn replicas(&self) -> Result<Replicas, String> {
        match (self.pods, self.data_parallel_size, self.data_parallel_rank) {
            (_, size, Some(rank)) => {
                let size = size.unwrap_or(1);
                if rank != 0 && rank >= size {
                    return Err(format!(
                        "--data-parallel-rank {rank} must be below --data-parallel-size {size}"
                    ));
                }
                Ok(Replicas::One)
            }
            (Some(n_pods), _, None) => Ok(Replicas::Pods(n_pods)),
            (None, Some(1) | None, None) => Ok(Replicas::One),
            (None, Some(n_ranks), None) => Ok(Replicas::Ranks(n_ranks)),
        }
    }

    pub(super) fn rank(&self) -> u16 {
        self.data_parallel_rank.unwrap_or_default()
    }

    pub(in crate::cli) fn grace(&self) -> Duration {
        Duration::from_secs(self.shutdown_timeout.into())
    }
}
