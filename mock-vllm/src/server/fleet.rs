//! All pods of a process: first their ports are taken, then the pods are built around shared objects, then they serve
//! until one signal ends them all.
//!
//! ```text
//! plan ──bind──► BoundFleet ──build──► Fleet ──run──► stopped
//! ```

use super::ports::{ApiListener, BindError, ListenOn, Ports};
use super::{BuildError, Crashed, PodSettings, Shared, Stop, build_pod, run_on};
use crate::faults::socket::{TcpDoor, UnixDoor};
use crate::http::Pod;
use crate::kv_events::config::KvEventsConfigError;
use crate::kv_events::service::BoundService;
use std::io;
use std::sync::Arc;
use tokio::task::JoinSet;

/// A pod and the place where it will listen.
#[derive(Clone, Debug)]
pub struct PlannedPod {
    pub settings: PodSettings,
    pub listen_on: ListenOn,
}

/// Pods whose ports are held, but which are not built.
#[derive(Debug)]
pub struct BoundFleet {
    pods: Vec<(PodSettings, Ports)>,
}

/// Pods that are ready to serve; at least one.
#[derive(Debug)]
pub struct Fleet {
    pods: Vec<(Arc<Pod>, ApiListener, Option<BoundService>)>,
}

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("{n_pods} pods from port {port} on pass port 65535")]
    Ports { port: u16, n_pods: u16 },
    #[error("--kv-events-config: {0}")]
    KvEvents(#[from] KvEventsConfigError),
}

/// Differences between the pods of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replicas {
    /// One pod, exactly as its settings say.
    One,
    /// Independent servers: pod `i` is called `<name>-<i>`, and has the seed and every port plus `i`.
    Pods(u16),
    /// Ranks of one data-parallel deployment, each with an API of its own: rank `i` is called `<name>-dp<i>`, is `i` in
    /// metrics and KV events, and has the seed and every port plus `i`.
    Ranks(u16),
}

// === impl Replicas ===

impl Replicas {
    /// Plans the pods.
    ///
    /// # Errors
    /// Fails if a port passes 65535.
    pub fn plan(self, settings: &PodSettings, listen_on: &ListenOn) -> Result<Vec<PlannedPod>, PlanError> {
        let n_pods = match self {
            Self::One => {
                return Ok(vec![PlannedPod { settings: settings.clone(), listen_on: listen_on.clone() }]);
            }
            Self::Pods(n_pods) | Self::Ranks(n_pods) => n_pods,
        };
        let planned = (0..n_pods).map(|pod_idx| {
            let mut settings = settings.clone();
            settings.kv_events = settings.kv_events.for_rank(pod_idx)?;
            settings.seed = settings.seed.wrapping_add(u64::from(pod_idx));
            let name = &settings.http.pod_name;
            settings.http.pod_name = match self {
                Self::One | Self::Pods(_) => format!("{name}-{pod_idx}"),
                Self::Ranks(_) => {
                    settings.rank = pod_idx;
                    format!("{name}-dp{pod_idx}")
                }
            };
            let listen_on = listen_on.for_pod(pod_idx, n_pods)?;
            Ok(PlannedPod { settings, listen_on })
        });
        planned.collect()
    }
}

// === impl ListenOn ===

impl ListenOn {
    /// Adds the pod's index: to the port, except to port 0, which lets the system choose; to a socket's name as a
    /// suffix.
    fn for_pod(&self, pod_idx: u16, n_pods: u16) -> Result<Self, PlanError> {
        match self {
            Self::Tcp { host, port: 0 } => Ok(Self::Tcp { host: host.clone(), port: 0 }),
            Self::Tcp { host, port } => {
                let own = port.checked_add(pod_idx).ok_or(PlanError::Ports { port: *port, n_pods })?;
                Ok(Self::Tcp { host: host.clone(), port: own })
            }
            Self::Unix(path) => {
                let mut own = path.clone().into_os_string();
                own.push(format!("-{pod_idx}"));
                Ok(Self::Unix(own.into()))
            }
        }
    }
}

// === impl BoundFleet ===

impl BoundFleet {
    /// Takes all ports.
    ///
    /// # Errors
    /// Names the first address that is not available; the others are released.
    pub async fn bind(plan: Vec<PlannedPod>) -> Result<Self, BindError> {
        let mut pods = Vec::with_capacity(plan.len());
        for PlannedPod { settings, listen_on } in plan {
            let ports = Ports::bind(listen_on, &settings).await?;
            pods.push((settings, ports));
        }
        Ok(Self { pods })
    }

    /// Returns name and address of every pod, in order.
    pub fn addresses(&self) -> impl Iterator<Item = (&str, String)> {
        self.pods.iter().map(|(settings, ports)| (settings.http.pod_name.as_str(), ports.address.to_string()))
    }

    /// Builds the pods.
    ///
    /// # Errors
    /// Fails if a file cannot be loaded, or if the engine's settings contradict each other.
    pub fn build(self) -> Result<Fleet, BuildError> {
        let Some((first, _)) = self.pods.first() else { return Ok(Fleet { pods: Vec::new() }) };
        let shared = Shared::load(first)?;
        let build = |(settings, ports): (PodSettings, Ports)| {
            let (publisher, kv_events) = ports.kv_events.unzip();
            Ok((build_pod(&shared, settings, publisher)?, ports.api, kv_events))
        };
        Ok(Fleet { pods: self.pods.into_iter().map(build).collect::<Result<_, BuildError>>()? })
    }
}

// === impl Fleet ===

impl Fleet {
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.iter().map(|(pod, ..)| pod)
    }

    /// Serves all pods until `stop`, or until one fails: then the others stop too, unless a fault made it fail.
    ///
    /// # Errors
    /// Fails if a listener breaks.
    pub async fn run(self, stop: Stop) -> io::Result<()> {
        let mut serving = JoinSet::new();
        for (pod, listener, kv_events) in self.pods {
            let stop = stop.clone();
            serving.spawn(async move {
                match listener {
                    ApiListener::Tcp(listener) => run_on(TcpDoor::new(listener)?, pod, kv_events, stop).await,
                    ApiListener::Unix(listener, _file) => {
                        run_on(UnixDoor::new(listener), pod, kv_events, stop).await
                    }
                }
            });
        }
        let mut result = Ok(());
        while let Some(ended) = serving.join_next().await {
            let ended = ended.unwrap_or_else(|panicked| Err(io::Error::other(panicked)));
            if ended.as_ref().is_err_and(is_crash) && !serving.is_empty() {
                continue;
            }
            if ended.is_err() {
                stop.begin();
                result = result.and(ended);
            }
        }
        result
    }
}

fn is_crash(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|source| source.is::<Crashed>())
}
