//! TLS on the ext_proc port: with the operator's certificate, or with one that is made at the start.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use tracing::info;

/// How the port is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Security {
    /// HTTP/2 without TLS.
    #[default]
    Plain,
    /// With `tls.crt` and `tls.key` of the directory, PEM, as a Secret of Kubernetes is mounted.
    Directory(PathBuf),
    /// With a certificate that signs itself.
    Made {
        /// DNS names and IP addresses that it is valid for.
        names: Vec<String>,
        /// Where it is written, for those who are to trust it.
        certificate_file: Option<PathBuf>,
    },
}

/// What upstream's certificate is valid for: ten years.
const LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// For clocks that are slow.
const BACKDATED: Duration = Duration::from_secs(24 * 3600);

impl Security {
    /// What the server is configured with; `None` without TLS.
    ///
    /// # Errors
    /// A file that cannot be read or written, or is not what it should be; or a name that no certificate can have.
    pub fn config(&self, now: SystemTime) -> anyhow::Result<Option<Arc<ServerConfig>>> {
        let (certificate, key) = match self {
            Self::Plain => return Ok(None),
            Self::Directory(dir) => {
                let [certificate, key] = ["tls.crt", "tls.key"].map(|name| read(&dir.join(name)));
                (certificate?, key?)
            }
            Self::Made { names, certificate_file } => {
                let (certificate, key) = make(names, now)?;
                if let Some(path) = certificate_file {
                    std::fs::write(path, &certificate)
                        .with_context(|| format!("write {}", path.display()))?;
                }
                info!(?names, "Made a certificate");
                (certificate.into_bytes(), key.into_bytes())
            }
        };
        let config = server_config(&certificate, &key).context("serve TLS")?;
        Ok(Some(Arc::new(config)))
    }
}

/// Serves HTTP/2 with a chain of certificates and the first one's key, PEM.
fn server_config(certificate: &[u8], key: &[u8]) -> anyhow::Result<ServerConfig> {
    let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>();
    let chain = chain.context("read the certificate (tls.crt)")?;
    let key = PrivateKeyDer::from_pem_slice(key).context("read the key (tls.key)")?;
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth();
    let mut config = builder.with_single_cert(chain, key).context("use the certificate with its key")?;
    config.alpn_protocols.push(b"h2".to_vec());
    Ok(config)
}

/// Names of this machine: what a certificate is for when nobody says.
#[must_use]
pub fn local_names() -> Vec<String> {
    let loopback = [IpAddr::from([127, 0, 0, 1]), IpAddr::from(1_u128.to_be_bytes())];
    let addresses = loopback.iter().map(IpAddr::to_string);
    std::iter::once("localhost".to_owned()).chain(addresses).collect()
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {} (--cert-path)", path.display()))
}

/// Certificate and key, PEM.
fn make(names: &[String], now: SystemTime) -> anyhow::Result<(String, String)> {
    let mut params = CertificateParams::new(names).context("make a certificate for --cert-name")?;
    params.distinguished_name.push(DnType::OrganizationName, "Warmpath");
    params.not_before = OffsetDateTime::from(now) - BACKDATED;
    params.not_after = OffsetDateTime::from(now) + LIFETIME;
    let key = KeyPair::generate().context("make a key")?;
    let certificate = params.self_signed(&key).context("make a certificate")?;
    Ok((certificate.pem(), key.serialize_pem()))
}
