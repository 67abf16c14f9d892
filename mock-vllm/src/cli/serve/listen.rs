//! Flags of `serve` about where pods are reached, how many there are, and how they stop.

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
    /// Pods in this process, each with an engine, a cache and metrics of its own: pod i listens on the port plus i, has the
    /// seed plus i, is called `<pod-name>-<i>`, and sends its KV events on that port plus i
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..), conflicts_with = "data_parallel_size")]
    pods: Option<u16>,
    /// Write `name address` there, one line per pod, once every port is held
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) port_file: Option<PathBuf>,
    /// Ranks, each with an API of its own on the port plus its rank, as with vLLM's --data-parallel-multi-port-external-lb;
    /// `engine` in metrics and KV-event ports follow the rank
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    data_parallel_size: Option<u16>,
    /// Be only this rank of --data-parallel-size, on --port
    #[arg(long, value_name = "RANK", conflicts_with = "pods")]
    data_parallel_rank: Option<u16>,
    /// Seconds that requests in flight get to end after SIGTERM or SIGINT; a second signal cuts them off
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

    /// The system chooses ports, so somebody has to be told.
    pub(in crate::cli) fn is_port_open(&self) -> bool {
        self.uds.is_none() && self.port == 0
    }

    /// # Errors
    /// For a rank that there is not.
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
