//! Sockets of one pod: of its API, on TCP or in the file system, and of its KV events. They are taken before anything
//! is built, so that a port that is in use costs no time.

use super::{PodSettings, kv_event_channel};
use crate::faults::socket::listen;
use crate::kv_events::publisher::KvEventPublisher;
use crate::kv_events::service::BoundService;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tokio::net::{TcpListener, UnixListener};

/// Place where a pod listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenOn {
    /// TCP port; 0 lets the system choose.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

/// Address of a pod; displays as `host:port` or `unix:path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodAddress {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Debug)]
pub enum ApiListener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// File of a socket, which is removed when this is dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

/// Sockets that a pod holds before it is built.
#[derive(Debug)]
pub struct Ports {
    pub api: ApiListener,
    pub address: PodAddress,
    /// Both ends of its KV events; `None` if they are off.
    pub kv_events: Option<(KvEventPublisher, BoundService)>,
}

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("{listen_on} is taken, and pod {pod} was to listen there: {way_out}", way_out = listen_on.way_out())]
    Taken { pod: String, listen_on: ListenOn },
    #[error("pod {pod} cannot listen on {listen_on}")]
    Refused { pod: String, listen_on: ListenOn, source: io::Error },
    #[error(
        "KV events of pod {pod}: {endpoint} is taken; name another endpoint in --kv-events-config, or port * to let the \
         system choose"
    )]
    KvEventsTaken { pod: String, endpoint: String },
    #[error("KV events of pod {pod}: cannot listen on {endpoint}")]
    KvEventsRefused { pod: String, endpoint: String, source: io::Error },
}

// === impl Ports ===

impl Ports {
    /// Takes the sockets.
    ///
    /// # Errors
    /// Names the address that is not available.
    pub async fn bind(listen_on: ListenOn, settings: &PodSettings) -> Result<Self, BindError> {
        let pod = &settings.http.pod_name;
        let (api, address) = listen_on.bind().await.map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::Taken { pod: pod.clone(), listen_on },
            _ => BindError::Refused { pod: pod.clone(), listen_on, source },
        })?;
        let kv_events = match kv_event_channel(settings) {
            Some((publisher, service)) => {
                let bound = service.bind().await.map_err(|error| match error.source.kind() {
                    io::ErrorKind::AddrInUse => {
                        BindError::KvEventsTaken { pod: pod.clone(), endpoint: error.endpoint }
                    }
                    _ => BindError::KvEventsRefused {
                        pod: pod.clone(),
                        endpoint: error.endpoint,
                        source: error.source,
                    },
                })?;
                Some((publisher, bound))
            }
            None => None,
        };
        Ok(Self { api, address, kv_events })
    }
}

/// Listens on the first available address of the host.
async fn listen_on_any(host: &str, port: u16) -> io::Result<TcpListener> {
    let mut result = Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "the host has no address"));
    for address in tokio::net::lookup_host((host, port)).await? {
        result = listen(address);
        if result.is_ok() {
            break;
        }
    }
    result
}

// === impl ListenOn ===

impl ListenOn {
    async fn bind(&self) -> io::Result<(ApiListener, PodAddress)> {
        match self {
            Self::Tcp { host, port } => {
                let listener = listen_on_any(host, *port).await?;
                let address = listener.local_addr()?;
                Ok((ApiListener::Tcp(listener), PodAddress::Tcp(address)))
            }
            Self::Unix(path) => {
                remove_stale(path).await;
                let listener = UnixListener::bind(path)?;
                let file = SocketFile(path.clone());
                Ok((ApiListener::Unix(listener, file), PodAddress::Unix(path.clone())))
            }
        }
    }

    fn way_out(&self) -> &'static str {
        match self {
            Self::Tcp { .. } => {
                "stop what listens there, choose another --port, or --port 0 to let the system choose"
            }
            Self::Unix(_) => "stop what listens there, or choose another --uds",
        }
    }
}

impl fmt::Display for ListenOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } => write!(f, "port {port} of {host}"),
            Self::Unix(path) => write!(f, "socket {}", path.display()),
        }
    }
}

/// Removes the socket of a server that was killed: it stays in the file system, and no process answers on it.
async fn remove_stale(path: &Path) {
    let answer = tokio::net::UnixStream::connect(path).await;
    if answer.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
        let _bind_tells = std::fs::remove_file(path);
    }
}

// === impl PodAddress ===

impl fmt::Display for PodAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

// === impl SocketFile ===

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _already_gone = std::fs::remove_file(&self.0);
    }
}
