//! Block hashes as vLLM 0.33 computes them: a digest over (parent, token ids, extra keys).

/// vLLM 0.33 `kv_cache_utils.py`: the seed of sha256 and sha256_cbor when `PYTHONHASHSEED` is unset.
pub const DEFAULT_SEED: &str = "vllm-none-hash";

/// `--prefix-caching-hash-algo`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// SHA-256 over pickle protocol 5.
    #[default]
    Sha256,
    /// SHA-256 over canonical CBOR.
    Sha256Cbor,
}

/// The digest that names a full block and everything before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash(pub [u8; 32]);

// === impl BlockHash ===

impl BlockHash {
    /// The form in KV events: the last 8 bytes, big endian (`VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=1`).
    pub fn event_int(&self) -> u64 {
        let [.., a, b, c, d, e, f, g, h] = self.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h])
    }
}

impl std::fmt::Display for BlockHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}
