//! TLS of the hooks, with a certificate that the authority signs and that is replaced before it ends.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::certificates::{Authority, Pair, REPLACED_AFTER};

/// Time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause after a connection could not be accepted, for example because file descriptors are short.
const BACK_OFF: Duration = Duration::from_millis(500);
/// Connections that wait for the server.
const WAITING: usize = 16;

/// The certificate in use; `None` until there is an authority.
#[derive(Debug, Default)]
pub struct Served(ArcSwapOption<CertifiedKey>);

impl ResolvesServerCert for Served {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

impl Served {
    /// The TLS configuration that serves the certificate.
    ///
    /// # Errors
    /// If the crypto provider has no safe protocol version.
    pub fn config(self: &Arc<Self>) -> anyhow::Result<Arc<ServerConfig>> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .context("configure TLS")?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols.push(b"h2".to_vec());
        Ok(Arc::new(config))
    }

    /// Keeps the certificate for `hosts` signed by the newest authority until `stop`.
    pub async fn follow(
        self: Arc<Self>,
        mut authority: watch::Receiver<Option<Arc<Authority>>>,
        hosts: Vec<String>,
        clock: fn() -> SystemTime,
        stop: CancellationToken,
    ) {
        loop {
            let newest = authority.borrow_and_update().clone();
            if let Some(newest) = newest {
                let pair = newest.sign(&hosts, clock()).map_err(anyhow::Error::from);
                match pair.and_then(|pair| certified(&pair)) {
                    Ok(certified) => {
                        self.0.store(Some(Arc::new(certified)));
                        info!(?hosts, "Serving a new certificate");
                    }
                    Err(error) => {
                        warn!(error = format!("{error:#}"), "Cannot make a certificate for the hooks")
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = authority.changed() => if changed.is_err() { return },
                () = sleep(REPLACED_AFTER) => {}
            }
        }
    }
}

fn certified(pair: &Pair) -> anyhow::Result<CertifiedKey> {
    let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).context("read the key")?;
    let chain = chain.context("read the certificate")?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).context("use the certificate")
}

/// Accepts connections until `stop`, and gives those that have shaken hands to `accepted`. A slow one holds up no other.
pub async fn accept(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    accepted: mpsc::Sender<std::io::Result<TlsStream<TcpStream>>>,
    stop: CancellationToken,
) {
    let (acceptor, handshakes) = (TlsAcceptor::from(config), TaskTracker::new());
    loop {
        let socket = tokio::select! {
            () = stop.cancelled() => return,
            socket = listener.accept() => socket,
        };
        let Ok((socket, peer)) = socket else {
            sleep(BACK_OFF).await;
            continue;
        };
        let (acceptor, accepted) = (acceptor.clone(), accepted.clone());
        handshakes.spawn(async move {
            match timeout(HANDSHAKE, acceptor.accept(socket)).await {
                // The server may have ended.
                Ok(Ok(stream)) => drop(accepted.send(Ok(stream)).await),
                Ok(Err(error)) => debug!(%peer, %error, "A handshake failed"),
                Err(_) => debug!(%peer, "A handshake took too long"),
            }
        });
    }
}

/// A queue of connections.
#[must_use]
pub fn queue<T>() -> (mpsc::Sender<T>, mpsc::Receiver<T>) {
    mpsc::channel(WAITING)
}
