//! Names of the objects that are made for a pool.

use inference_api::object::ObjectKey;
use sha2::{Digest as _, Sha256};

/// Label by which a picker's Service selects its pods.
pub const INSTANCE: &str = "app.kubernetes.io/instance";
/// Port on which pickers tell each other their picks, and serve metrics.
pub const METRICS_PORT: u16 = 9090;
/// Domain of a cluster of which nothing else is known.
const USUAL_DOMAIN: &str = "cluster.local";
/// Longest name of a Service (RFC 1123 label).
const MAX_LEN: usize = 63;
/// Digits of the hash in a name that was cut.
const HASH_LEN: usize = 8;

/// The headless Service that resolves to a pool's ready pods.
#[must_use]
pub fn pods_service(pool: &ObjectKey) -> ObjectKey {
    ObjectKey::new(&pool.namespace, shortened(format!("{}-pods", pool.name)))
}

/// The managed picker for the pools that name the Service `named`: its Deployment, Service, ServiceAccount and Secret, in
/// the controller's namespace. Two Services can have the same text here, the namespace `a-b` with `c` and `a` with `b-c`:
/// see [`other_managed_picker`].
#[must_use]
pub fn managed_picker(named: &ObjectKey, namespace: &str) -> ObjectKey {
    ObjectKey::new(namespace, shortened(format!("epp-{}-{}", named.namespace, named.name)))
}

/// The managed picker for `named` if another one has the name that [`managed_picker`] gives.
#[must_use]
pub fn other_managed_picker(named: &ObjectKey, namespace: &str) -> ObjectKey {
    let plain = format!("epp-{}-{}", named.namespace, named.name);
    ObjectKey::new(namespace, hashed(&plain, &named.to_string()))
}

/// The Secret of the authority that signs the certificates of managed pickers and of the hooks.
#[must_use]
pub fn authority(namespace: &str) -> ObjectKey {
    ObjectKey::new(namespace, "warmpath-authority")
}

/// The DNS names by which Envoy Gateway may know a controller.
#[must_use]
pub fn controller_hosts(namespace: &str) -> Vec<String> {
    let host = host(&ObjectKey::new(namespace, "warmpath-controller"));
    vec![format!("{host}.{USUAL_DOMAIN}"), host]
}

/// The DNS name of a Service in its certificate: the same in a cluster of any domain.
#[must_use]
pub fn host(service: &ObjectKey) -> String {
    format!("{}.{}.svc", service.name, service.namespace)
}

/// The absolute DNS name of a Service in a cluster of this domain. A resolver asks for it once, and only the cluster. A
/// shorter name is completed with each search domain, and asked of servers outside of the cluster while it has no
/// address; if these are out of reach, each such look-up takes seconds, in which new addresses stay unknown.
#[must_use]
pub fn address(service: &ObjectKey, domain: &str) -> String {
    format!("{}.{domain}.", host(service))
}

/// The domain of the cluster, which the resolver's configuration of a pod names in its search list after `svc`. A machine
/// outside of the cluster does not know it.
#[must_use]
pub fn domain(resolv_conf: &str) -> &str {
    let searched = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("search")).next_back();
    let mut domains = searched.unwrap_or_default().split_whitespace();
    domains.find_map(|domain| domain.trim_end_matches('.').strip_prefix("svc.")).unwrap_or(USUAL_DOMAIN)
}

/// The digest of a text, in as many hexadecimal digits as tell versions of it apart.
#[must_use]
pub fn digest(text: &str) -> String {
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// `name`, or its beginning and a hash if it is too long, so that different names stay different.
fn shortened(name: String) -> String {
    if name.len() <= MAX_LEN { name } else { hashed(&name, &name) }
}

/// The beginning of `name`, and the hash of `identity`.
fn hashed(name: &str, identity: &str) -> String {
    let hash: String = digest(identity).chars().take(HASH_LEN).collect();
    let begin: String = name.chars().take(MAX_LEN - HASH_LEN - 1).collect();
    format!("{begin}-{hash}")
}
