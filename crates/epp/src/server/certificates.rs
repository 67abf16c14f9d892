//! The operator's certificate, read again while it is in use: a renewal needs no restart.
//!
//! Files that do not fit together, as in the middle of a renewal, change nothing: the last valid certificate stays in
//! use.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use pool_index::source::reading::FileReader;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Time between two looks at the files. A mounted Secret follows its object within a minute (kubelet's sync period),
/// and certificates are renewed days before they expire.
const INTERVAL: Duration = Duration::from_secs(10);
/// Longest wait for one file.
const PATIENCE: Duration = Duration::from_secs(2);

/// The certificate in use, replaced as a whole.
#[derive(Debug)]
pub(super) struct Served(ArcSwap<CertifiedKey>);

/// The files of a certificate and its key.
#[derive(Debug)]
pub struct Certificates {
    certificate: FileReader,
    key: FileReader,
    /// The texts that were read last, valid or not.
    seen: Pem,
    served: Arc<Served>,
}

/// A chain of certificates and the key of the first one, as PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pem {
    pub(super) certificate: String,
    pub(super) key: String,
}

// === impl Served ===

impl Served {
    pub(super) fn new(certified: CertifiedKey) -> Self {
        Self(ArcSwap::from_pointee(certified))
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

// === impl Pem ===

impl Pem {
    /// The certificate with its key.
    ///
    /// # Errors
    /// If the certificate or its key is not valid, or they do not fit together.
    pub(super) fn certified(&self) -> anyhow::Result<CertifiedKey> {
        let chain =
            CertificateDer::pem_slice_iter(self.certificate.as_bytes()).collect::<Result<Vec<_>, _>>();
        let chain = chain.context("read the certificate (tls.crt)")?;
        anyhow::ensure!(!chain.is_empty(), "the certificate (tls.crt) is empty");
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).context("read the key (tls.key)")?;
        CertifiedKey::from_der(chain, key, &ring::default_provider())
            .context("use the certificate with its key")
    }
}

// === impl Certificates ===

impl Certificates {
    /// Reads `tls.crt` and `tls.key` in `dir`, the layout of a mounted Kubernetes Secret.
    ///
    /// # Errors
    /// If a file cannot be read or is not valid.
    pub(super) fn load(dir: &Path) -> anyhow::Result<Self> {
        let [mut certificate, mut key] = ["tls.crt", "tls.key"].map(|name| FileReader::new(dir.join(name)));
        let seen = Pem { certificate: read(&mut certificate)?, key: read(&mut key)? };
        let served = Arc::new(Served::new(seen.certified().context("serve TLS")?));
        Ok(Self { certificate, key, seen, served })
    }

    pub(super) fn served(&self) -> &Arc<Served> {
        &self.served
    }

    /// Looks at the files from time to time, and whenever `asked` is notified, until `stop`.
    pub(super) async fn run(mut self, asked: Arc<Notify>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = asked.notified() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
            let looked = tokio::task::spawn_blocking(move || {
                self.look();
                self
            });
            match looked.await {
                Ok(certificates) => self = certificates,
                Err(_) => return,
            }
        }
    }

    fn read(&mut self) -> anyhow::Result<Pem> {
        Ok(Pem { certificate: read(&mut self.certificate)?, key: read(&mut self.key)? })
    }

    /// Uses a changed certificate; logs once if it is not valid.
    fn look(&mut self) {
        let found = match self.read() {
            Ok(found) => found,
            // A file that cannot be read may be readable at the next look.
            Err(error) => return warn!(error = format!("{error:#}"), "Cannot look at the certificate"),
        };
        if found == self.seen {
            return;
        }
        match found.certified() {
            Ok(certified) => {
                self.served.0.store(Arc::new(certified));
                info!(file = %self.certificate.path().display(), "Serving another certificate");
            }
            Err(error) => warn!(
                file = %self.certificate.path().display(),
                error = format!("{error:#}"),
                "Serving the earlier certificate, the new one is not valid"
            ),
        }
        self.seen = found;
    }
}

fn read(reader: &mut FileReader) -> anyhow::Result<String> {
    let text = reader.read(PATIENCE);
    text.with_context(|| format!("read {} (--cert-path)", reader.path().display()))
}
