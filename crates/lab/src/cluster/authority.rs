//! Certificates of a run: the run's own authority signs one for each picker, and Envoy trusts no other authority.

use std::fmt;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use time::{Duration, OffsetDateTime};

/// Validity of a certificate, longer than any cluster stays up.
const LIFETIME: Duration = Duration::days(365);
/// Time that certificates are dated back, for clocks that are slow.
const BACKDATED: Duration = Duration::days(1);

/// Signs certificates; its key is never written.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    now: OffsetDateTime,
}

// === impl Authority ===

impl Authority {
    /// # Errors
    /// When there is no randomness for a key.
    pub fn new(now: OffsetDateTime) -> Result<Self> {
        let mut params = params(Vec::new(), "Warmpath, for one run", now)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("make the authority's key")?;
        let certificate = params.self_signed(&key).context("make the authority's certificate")?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate, now })
    }

    /// Returns the authority's certificate in PEM, for those who must trust it.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Writes `tls.crt` and `tls.key` for the DNS name into the directory, and creates the directory if needed.
    ///
    /// # Errors
    /// When the name is not a DNS name, or the files cannot be written.
    pub fn write_identity(&self, dir: &Path, name: &str) -> Result<()> {
        let key = KeyPair::generate().context("make a key")?;
        let params = params(vec![name.to_owned()], name, self.now)?;
        let certificate = params.signed_by(&key, &self.issuer).context("sign a certificate")?;
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        write(&dir.join("tls.crt"), &certificate.pem())?;
        write(&dir.join("tls.key"), &key.serialize_pem())
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// DNS name in a picker's certificate: that of its Service.
pub fn picker_host(picker: &str) -> String {
    // A label of a DNS name has at most 63 characters, and a server refuses a client that asks for a longer one.
    let label = picker.get(..63).unwrap_or(picker).trim_end_matches('-');
    format!("{label}.envoy-gateway-system.svc")
}

fn params(names: Vec<String>, common_name: &str, now: OffsetDateTime) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(names).context("a name that no certificate can have")?;
    params.distinguished_name.push(DnType::OrganizationName, "Warmpath");
    // A common name has at most 64 characters. Clients ignore it if there are alternative names.
    params.distinguished_name.push(DnType::CommonName, common_name.get(..64).unwrap_or(common_name));
    params.not_before = now - BACKDATED;
    params.not_after = now + LIFETIME;
    Ok(params)
}

/// Writes a file that only its owner may read.
fn write(path: &Path, text: &str) -> Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let file = options.create(true).truncate(true).write(true).mode(0o600).open(path);
    let write = |mut file: std::fs::File| file.write_all(text.as_bytes());
    file.and_then(write).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::picker_host;

    #[test]
    fn a_long_name_is_cut_to_a_label() {
        let name = "epp-".to_owned() + &"a".repeat(58) + "-b";
        assert_eq!(picker_host(&name), format!("epp-{}.envoy-gateway-system.svc", "a".repeat(58)));
        assert_eq!(picker_host("epp-a"), "epp-a.envoy-gateway-system.svc", "a short one stays");
    }
}
