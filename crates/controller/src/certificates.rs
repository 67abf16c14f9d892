//! Certificates of managed pickers and of the hooks, and the authority that signs them.
//!
//! The authority is a Secret in the controller's namespace. A renewed one keeps the certificate of the one before beside
//! its own, so that what was signed earlier stays trusted until it is renewed as well.

use std::fmt;
use std::time::{Duration, SystemTime};

use inference_api::object::ObjectKey;
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};
use thiserror::Error;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::names;
use crate::sweep;

/// Annotation of a Secret with the end of its certificate's validity, in RFC 3339.
const NOT_AFTER: &str = "inference.networking.x-k8s.io/certificate-not-after";
/// Annotation of a Secret with the digest of the certificate whose key has signed the Secret's.
const SIGNED_BY: &str = "inference.networking.x-k8s.io/certificate-authority";
const END: &str = "-----END CERTIFICATE-----";
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Validity of an authority: ten years, the same as that of upstream's own certificates.
const AUTHORITY_LIFETIME: Duration = DAY.saturating_mul(3650);
/// Validity of what it signs.
const LIFETIME: Duration = DAY.saturating_mul(90);
/// Time before the end of its validity at which an authority is renewed: longer than anything that it has signed lasts.
const AUTHORITY_RENEWAL: Duration = DAY.saturating_mul(365);
/// Time before the end of its validity at which a certificate is renewed.
const RENEWAL: Duration = DAY.saturating_mul(30);
/// Age at which a certificate that has no Secret is replaced.
pub const REPLACED_AFTER: Duration = DAY.saturating_mul(60);
/// Time by which the start of the validity lies in the past, for clients with slow clocks.
const BACKDATED: Duration = DAY;

/// Why there is no certificate.
#[derive(Debug, Error)]
pub enum CertificateError {
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    #[error("Secret {0} is no authority: delete it to have another one made")]
    NoAuthority(ObjectKey),
    #[error("a time is outside of what a certificate can say")]
    Time(#[from] time::error::Format),
}

/// Certificates of the authority, the newest one first, and the key of that one; as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    pub certificates: String,
    key: String,
}

/// A certificate and its key, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

// === impl Authority ===

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Authority {
    /// The authority that `secret` holds.
    ///
    /// # Errors
    /// If it holds none, for example because somebody has edited it.
    pub fn read(secret: &Value) -> Result<Self, CertificateError> {
        let text = |name: &str| text(secret, name);
        let (Some(certificates), Some(key)) = (text("tls.crt"), text("tls.key")) else {
            return Err(CertificateError::NoAuthority(key_of(secret)));
        };
        if !certificates.contains("-----BEGIN CERTIFICATE-----") || KeyPair::from_pem(&key).is_err() {
            return Err(CertificateError::NoAuthority(key_of(secret)));
        }
        Ok(Self { certificates, key })
    }

    /// The Secret `name` with a new authority, which also contains the certificate of the one `before`.
    ///
    /// # Errors
    /// If no certificate can be made.
    pub fn secret(
        name: &ObjectKey,
        before: Option<&Self>,
        now: SystemTime,
    ) -> Result<Value, CertificateError> {
        let key = KeyPair::generate()?;
        let (mut params, not_after) = (authority_params(), now + AUTHORITY_LIFETIME);
        set_validity(&mut params, now, not_after);
        let mut certificates = params.self_signed(&key)?.pem();
        if let Some(before) = before {
            certificates.push_str(before.newest());
            certificates.push('\n');
        }
        secret(name, &Pair { certificate: certificates, key: key.serialize_pem() }, not_after)
    }

    /// True if `secret` should get another certificate: it has none, or an old one, or one that this authority does not
    /// vouch for.
    #[must_use]
    pub fn is_due(&self, secret: &Value, now: SystemTime) -> bool {
        let signed_by = &secret["metadata"]["annotations"][SIGNED_BY];
        let is_ours = self
            .certificates
            .split_inclusive(END)
            .any(|certificate| *signed_by == names::digest(certificate.trim()));
        let has = |name| text(secret, name).is_some();
        !(is_ours && has("tls.crt") && has("tls.key")) || ends_before(secret, now + RENEWAL)
    }

    /// A certificate for these DNS names.
    ///
    /// # Errors
    /// If a name cannot be in a certificate, or the authority's key is none.
    pub fn sign(&self, hosts: &[String], now: SystemTime) -> Result<Pair, CertificateError> {
        let issuer = Issuer::new(authority_params(), KeyPair::from_pem(&self.key)?);
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(hosts)?;
        params.distinguished_name.push(DnType::OrganizationName, "Warmpath");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, now, now + LIFETIME);
        let certificate = params.signed_by(&key, &issuer)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// The Secret `name` with a certificate for `host`.
    ///
    /// # Errors
    /// Fails like [`Self::sign`].
    pub fn signed_secret(
        &self,
        name: &ObjectKey,
        host: &str,
        now: SystemTime,
    ) -> Result<Value, CertificateError> {
        let mut secret = secret(name, &self.sign(&[host.to_owned()], now)?, now + LIFETIME)?;
        secret["metadata"]["annotations"][SIGNED_BY] = json!(names::digest(self.newest().trim()));
        Ok(secret)
    }

    fn newest(&self) -> &str {
        self.certificates.split_inclusive(END).next().unwrap_or_default()
    }
}

/// True if the authority in `secret` should be renewed.
#[must_use]
pub fn is_authority_due(secret: &Value, now: SystemTime) -> bool {
    ends_before(secret, now + AUTHORITY_RENEWAL)
}

fn authority_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "Warmpath");
    params.distinguished_name.push(DnType::CommonName, "Warmpath endpoint pickers");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn set_validity(params: &mut CertificateParams, now: SystemTime, not_after: SystemTime) {
    params.not_before = OffsetDateTime::from(now) - BACKDATED;
    params.not_after = OffsetDateTime::from(not_after);
}

fn secret(name: &ObjectKey, pair: &Pair, not_after: SystemTime) -> Result<Value, CertificateError> {
    let data = |text: &str| ByteString(text.as_bytes().to_vec());
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name.name,
            "namespace": name.namespace,
            "labels": { sweep::MANAGED_BY: sweep::MANAGER },
            "annotations": { NOT_AFTER: OffsetDateTime::from(not_after).format(&Rfc3339)? },
        },
        "type": "kubernetes.io/tls",
        "data": { "tls.crt": data(&pair.certificate), "tls.key": data(&pair.key) },
    }))
}

fn text(secret: &Value, name: &str) -> Option<String> {
    let ByteString(bytes) = serde_json::from_value(secret["data"][name].clone()).ok()?;
    String::from_utf8(bytes).ok().filter(|text| !text.is_empty())
}

fn ends_before(secret: &Value, time: SystemTime) -> bool {
    let end = secret["metadata"]["annotations"][NOT_AFTER].as_str();
    let end = end.and_then(|end| OffsetDateTime::parse(end, &Rfc3339).ok());
    end.is_none_or(|end| end < OffsetDateTime::from(time))
}

fn key_of(object: &Value) -> ObjectKey {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
    ObjectKey::new(text("namespace"), text("name"))
}
