//! Ids of requests that bring none: random like vLLM's, or with a detached clock equal in every run.

use hashbrown::HashMap;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

/// Source of a pod's request ids.
#[derive(Debug)]
pub enum RequestIds {
    Random,
    /// Ids that derive from the pod's seed, the request's body, and how often this body came before.
    Derived {
        seed: u64,
        seen: Mutex<HashMap<[u8; 32], u64>>,
    },
}

// === impl RequestIds ===

impl RequestIds {
    pub fn derived(seed: u64) -> Self {
        Self::Derived { seed, seen: Mutex::default() }
    }

    /// Returns 32 hex digits.
    pub(super) fn next(&self, body: &[u8]) -> String {
        match self {
            Self::Random => random(),
            Self::Derived { seed, seen } => {
                let content: [u8; 32] = Sha256::digest(body).into();
                let mut hasher = Sha256::new_with_prefix(content);
                let mut seen = seen.lock();
                let n_before = seen.entry(content).or_default();
                hasher.update(seed.to_le_bytes());
                hasher.update(n_before.to_le_bytes());
                *n_before += 1;
                hasher.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
            }
        }
    }
}

/// Makes an id like vLLM's `random_uuid`.
pub(super) fn random() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}
