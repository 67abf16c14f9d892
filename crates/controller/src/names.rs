//! Names of the objects that are made for a pool.

use inference_api::object::ObjectKey;
use inference_api::pool::InferencePool;
use sha2::{Digest as _, Sha256};

/// Longest name of a Service (RFC 1123 label).
const MAX_LEN: usize = 63;
/// Digits of the hash in a name that was cut.
const HASH_LEN: usize = 8;

/// The headless Service that resolves to a pool's ready pods.
#[must_use]
pub fn pods_service(pool: &ObjectKey) -> ObjectKey {
    ObjectKey::new(&pool.namespace, shortened(format!("{}-pods", pool.name)))
}

/// The managed picker of a pool: its Deployment, Service, ServiceAccount and Secret, in the controller's namespace.
/// Pools of a namespace that name the same Service share it.
#[must_use]
pub fn managed_picker(pool: &InferencePool, namespace: &str) -> ObjectKey {
    ObjectKey::new(namespace, shortened(format!("epp-{}-{}", pool.meta.namespace, pool.picker.name)))
}

/// The DNS name of a Service, as pods of any namespace resolve it in a cluster of any domain.
#[must_use]
pub fn host(service: &ObjectKey) -> String {
    format!("{}.{}.svc", service.name, service.namespace)
}

/// `name`, or its beginning and a hash if it is too long, so that different names stay different.
fn shortened(name: String) -> String {
    if name.len() <= MAX_LEN {
        return name;
    }
    let digest = Sha256::digest(&name);
    let hash: String = digest.iter().take(HASH_LEN / 2).map(|byte| format!("{byte:02x}")).collect();
    let begin: String = name.chars().take(MAX_LEN - HASH_LEN - 1).collect();
    format!("{begin}-{hash}")
}
