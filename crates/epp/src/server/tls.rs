//! TLS on the ext_proc port: with the operator's certificate, or with one that is generated at the start.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::certificates::{Certificates, Pem, Served};
use super::parts::Parts;

/// Protection of the port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Security {
    /// HTTP/2 without TLS.
    #[default]
    Plain,
    /// TLS with `tls.crt` and `tls.key` in the directory (PEM), the layout of a mounted Kubernetes Secret.
    Directory(PathBuf),
    /// TLS with a self-signed certificate.
    Made {
        /// DNS names and IP addresses for which it is valid.
        names: Vec<String>,
        /// File to which it is written, for clients that must trust it.
        certificate_file: Option<PathBuf>,
    },
}

/// Validity of the certificate: ten years, the same as upstream's.
const LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Time by which the start of the validity lies in the past, for clients with slow clocks.
const BACKDATED: Duration = Duration::from_secs(24 * 3600);

/// TLS configuration of a port.
#[derive(Debug)]
pub struct Tls {
    config: Arc<ServerConfig>,
    /// The operator's files; `None` for a generated certificate, which does not change.
    certificates: Option<Certificates>,
}

impl Security {
    /// The TLS configuration; `None` without TLS.
    ///
    /// # Errors
    /// If a file cannot be read or written or is not valid, or a name cannot be in a certificate.
    pub fn config(&self, now: SystemTime) -> anyhow::Result<Option<Tls>> {
        let (served, certificates) = match self {
            Self::Plain => return Ok(None),
            Self::Directory(dir) => {
                let certificates = Certificates::load(dir)?;
                (Arc::clone(certificates.served()), Some(certificates))
            }
            Self::Made { names, certificate_file } => {
                let made = make(names, now)?;
                if let Some(path) = certificate_file {
                    std::fs::write(path, &made.certificate)
                        .with_context(|| format!("write {}", path.display()))?;
                }
                info!(?names, "Made a certificate");
                (Arc::new(Served::new(made.certified()?)), None)
            }
        };
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth();
        let mut config = builder.with_cert_resolver(served);
        config.alpn_protocols.push(b"h2".to_vec());
        Ok(Some(Tls { config: Arc::new(config), certificates }))
    }
}

impl Tls {
    /// The configuration of handshakes; also starts the task that keeps the certificate up to date.
    pub(super) fn follow(
        self,
        parts: &mut Parts,
        (reload, stop): (Arc<Notify>, CancellationToken),
    ) -> Arc<ServerConfig> {
        if let Some(certificates) = self.certificates {
            parts.spawn("certificates", certificates.run(reload, stop));
        }
        self.config
    }
}

/// Names of this machine, used for a certificate without configured names.
#[must_use]
pub fn local_names() -> Vec<String> {
    let loopback = [IpAddr::from([127, 0, 0, 1]), IpAddr::from(1_u128.to_be_bytes())];
    let addresses = loopback.iter().map(IpAddr::to_string);
    std::iter::once("localhost".to_owned()).chain(addresses).collect()
}

/// Generates a certificate and its key.
fn make(names: &[String], now: SystemTime) -> anyhow::Result<Pem> {
    let mut params = CertificateParams::new(names).context("make a certificate for --cert-name")?;
    params.distinguished_name.push(DnType::OrganizationName, "Warmpath");
    params.not_before = OffsetDateTime::from(now) - BACKDATED;
    params.not_after = OffsetDateTime::from(now) + LIFETIME;
    let key = KeyPair::generate().context("make a key")?;
    let certificate = params.self_signed(&key).context("make a certificate")?;
    Ok(Pem { certificate: certificate.pem(), key: key.serialize_pem() })
}
