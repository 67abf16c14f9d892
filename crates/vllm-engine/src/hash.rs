//! Block hashes as vLLM 0.33 computes them: SHA-256 over an encoding of (parent, token ids, extra keys). Equal ids must
//! give the same digests as vLLM's Python, so every byte counts.

use crate::request::LoraAdapter;
use crate::vllm_version::VllmVersion;
use sha2::{Digest, Sha256};

/// Seed of sha256 and sha256_cbor without `PYTHONHASHSEED`, from vLLM 0.33 `kv_cache_utils.py`.
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

/// Source of the parent of all first blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashSeed {
    /// Hash of `PYTHONHASHSEED`, or else of vLLM 0.33's constant: equal in all processes.
    Text(String),
    /// 32 random bytes, as before 0.33 without `PYTHONHASHSEED`: every process names its blocks differently.
    Random([u8; 32]),
}

/// Digest that names a full block and everything before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash(pub [u8; 32]);

/// Facts that a block depends on besides its tokens and its parent.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExtraKeys<'a> {
    /// Adapter, in every block of a request that uses one.
    pub lora: Option<&'a LoraAdapter>,
    /// Salt, only in the first block of a request.
    pub cache_salt: Option<&'a str>,
}

/// Form in which extra keys are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExtraKeyForm {
    /// `("lora", name, path)` and `("cache_salt", salt)`, since vLLM 0.33.
    Tagged,
    /// The adapter's number and the salt alone, as before.
    Bare,
}

/// Hashes one block after the other, and reuses its buffer.
#[derive(Clone, Debug)]
pub struct BlockHasher {
    algorithm: HashAlgorithm,
    none_hash: BlockHash,
    extra_keys: ExtraKeyForm,
    buffer: Vec<u8>,
}

// === impl BlockHash ===

impl BlockHash {
    /// Returns the form in KV events: the last 8 bytes, big endian (`VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=1`).
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

// === impl BlockHasher ===

impl BlockHasher {
    /// Makes a hasher. `seed` is `PYTHONHASHSEED`, or else `DEFAULT_SEED`.
    pub fn new(algorithm: HashAlgorithm, seed: &str) -> Self {
        let mut buffer = Vec::new();
        match algorithm {
            HashAlgorithm::Sha256 => pickle::seed(&mut buffer, seed),
            HashAlgorithm::Sha256Cbor => cbor::text(&mut buffer, seed),
        }
        let none_hash = digest(&buffer);
        Self { algorithm, none_hash, extra_keys: ExtraKeyForm::Tagged, buffer }
    }

    /// Makes the hasher of an engine of this version.
    pub fn of(version: VllmVersion, algorithm: HashAlgorithm, seed: &HashSeed) -> Self {
        let mut hasher = match seed {
            HashSeed::Text(seed) => Self::new(algorithm, seed),
            HashSeed::Random(bytes) => Self { none_hash: BlockHash(*bytes), ..Self::new(algorithm, "") },
        };
        hasher.extra_keys = match version {
            VllmVersion::V0_8 | VllmVersion::V0_11 => ExtraKeyForm::Bare,
            VllmVersion::V0_33 => ExtraKeyForm::Tagged,
        };
        hasher
    }

    /// Returns the parent of every first block.
    pub fn none_hash(&self) -> BlockHash {
        self.none_hash
    }

    /// Returns the hash of a full block, whose token ids come in two parts. `parent` is `None` for a request's first
    /// block.
    pub fn hash(
        &mut self,
        parent: Option<BlockHash>,
        tokens: [&[u32]; 2],
        extra: ExtraKeys<'_>,
    ) -> BlockHash {
        let parent = parent.unwrap_or(self.none_hash);
        self.buffer.clear();
        let buffer = &mut self.buffer;
        match self.algorithm {
            HashAlgorithm::Sha256 => pickle::block(buffer, &parent, tokens, (extra, self.extra_keys)),
            HashAlgorithm::Sha256Cbor => cbor::block(buffer, &parent, tokens, (extra, self.extra_keys)),
        }
        digest(&self.buffer)
    }
}

fn digest(bytes: &[u8]) -> BlockHash {
    BlockHash(Sha256::digest(bytes).into())
}

/// Opcodes that CPython's `pickle.dumps(.., protocol=5)` writes for these values.
mod pickle {
    use super::{BlockHash, ExtraKeyForm, ExtraKeys};

    const MEMOIZE: u8 = 0x94;
    const MARK: u8 = b'(';
    const NONE: u8 = b'N';
    const STOP: u8 = b'.';
    /// PROTO 5, FRAME and eight bytes of frame length.
    const HEADER: [u8; 11] = [0x80, 5, 0x95, 0, 0, 0, 0, 0, 0, 0, 0];

    pub(super) fn seed(out: &mut Vec<u8>, seed: &str) {
        out.extend(HEADER);
        text(out, seed);
        finish(out);
    }

    pub(super) fn block(
        out: &mut Vec<u8>,
        parent: &BlockHash,
        tokens: [&[u32]; 2],
        extra: (ExtraKeys<'_>, ExtraKeyForm),
    ) {
        out.extend(HEADER);
        // SHORT_BINBYTES
        out.extend([b'C', 32]);
        out.extend(parent.0);
        out.push(MEMOIZE);
        let n_tokens = tokens[0].len() + tokens[1].len();
        open_tuple(out, n_tokens);
        tokens.into_iter().flatten().for_each(|token| int(out, *token));
        close_tuple(out, n_tokens);
        extra_keys(out, extra);
        close_tuple(out, 3);
        finish(out);
    }

    fn extra_keys(out: &mut Vec<u8>, (ExtraKeys { lora, cache_salt }, form): (ExtraKeys<'_>, ExtraKeyForm)) {
        let n_keys = usize::from(lora.is_some()) + usize::from(cache_salt.is_some());
        if n_keys == 0 {
            out.push(NONE);
            return;
        }
        match (lora, form) {
            (Some(lora), ExtraKeyForm::Tagged) => {
                ["lora", &lora.name, &lora.path].into_iter().for_each(|part| text(out, part));
                close_tuple(out, 3);
            }
            (Some(lora), ExtraKeyForm::Bare) => int(out, lora.id),
            (None, _) => {}
        }
        match (cache_salt, form) {
            (Some(salt), ExtraKeyForm::Tagged) => {
                ["cache_salt", salt].into_iter().for_each(|part| text(out, part));
                close_tuple(out, 2);
            }
            (Some(salt), ExtraKeyForm::Bare) => text(out, salt),
            (None, _) => {}
        }
        close_tuple(out, n_keys);
    }

    /// Tuples of up to three items have their own opcodes and no mark.
    fn open_tuple(out: &mut Vec<u8>, len: usize) {
        if len > 3 {
            out.push(MARK);
        }
    }

    fn close_tuple(out: &mut Vec<u8>, len: usize) {
        match len {
            // The empty tuple is a constant, which is not memoized.
            0 => return out.push(b')'),
            1 => out.push(0x85),
            2 => out.push(0x86),
            3 => out.push(0x87),
            4.. => out.push(b't'),
        }
        out.push(MEMOIZE);
    }

    fn int(out: &mut Vec<u8>, value: u32) {
        let [a, b, c, d] = value.to_le_bytes();
        match value {
            0..=0xff => out.extend([b'K', a]),
            0x100..=0xffff => out.extend([b'M', a, b]),
            0x1_0000..=0x7fff_ffff => out.extend([b'J', a, b, c, d]),
            // LONG1: five bytes, so that the sign bit is clear.
            0x8000_0000.. => out.extend([0x8a, 5, a, b, c, d, 0]),
        }
    }

    fn text(out: &mut Vec<u8>, text: &str) {
        match (u8::try_from(text.len()), u32::try_from(text.len())) {
            (Ok(len), _) => out.extend([0x8c, len]),
            (Err(_), Ok(len)) => {
                out.push(b'X');
                out.extend(len.to_le_bytes());
            }
            (Err(_), Err(_)) => unreachable!("a salt or an adapter's name is shorter than 4 GiB"),
        }
        out.extend(text.bytes());
        out.push(MEMOIZE);
    }

    fn finish(out: &mut Vec<u8>) {
        out.push(STOP);
        let frame = (out.len() - HEADER.len()) as u64;
        out[3..HEADER.len()].copy_from_slice(&frame.to_le_bytes());
    }
}

/// Canonical CBOR (RFC 8949, 4.2): shortest heads, definite lengths.
mod cbor {
    use super::{BlockHash, ExtraKeyForm, ExtraKeys};

    const UINT: u8 = 0;
    const BYTES: u8 = 2;
    const TEXT: u8 = 3;
    const ARRAY: u8 = 4;
    const NULL: u8 = 0xf6;

    pub(super) fn block(
        out: &mut Vec<u8>,
        parent: &BlockHash,
        tokens: [&[u32]; 2],
        extra: (ExtraKeys<'_>, ExtraKeyForm),
    ) {
        head(out, ARRAY, 3);
        head(out, BYTES, 32);
        out.extend(parent.0);
        head(out, ARRAY, (tokens[0].len() + tokens[1].len()) as u64);
        tokens.into_iter().flatten().for_each(|token| head(out, UINT, u64::from(*token)));
        extra_keys(out, extra);
    }

    fn extra_keys(out: &mut Vec<u8>, (ExtraKeys { lora, cache_salt }, form): (ExtraKeys<'_>, ExtraKeyForm)) {
        let n_keys = u64::from(lora.is_some()) + u64::from(cache_salt.is_some());
        if n_keys == 0 {
            out.push(NULL);
            return;
        }
        head(out, ARRAY, n_keys);
        match (lora, form) {
            (Some(lora), ExtraKeyForm::Tagged) => {
                head(out, ARRAY, 3);
                ["lora", &lora.name, &lora.path].into_iter().for_each(|part| text(out, part));
            }
            (Some(lora), ExtraKeyForm::Bare) => head(out, UINT, u64::from(lora.id)),
            (None, _) => {}
        }
        match (cache_salt, form) {
            (Some(salt), ExtraKeyForm::Tagged) => {
                head(out, ARRAY, 2);
                ["cache_salt", salt].into_iter().for_each(|part| text(out, part));
            }
            (Some(salt), ExtraKeyForm::Bare) => text(out, salt),
            (None, _) => {}
        }
    }

    pub(super) fn text(out: &mut Vec<u8>, text: &str) {
        head(out, TEXT, text.len() as u64);
        out.extend(text.bytes());
    }

    fn head(out: &mut Vec<u8>, major: u8, value: u64) {
        let major = major << 5;
        let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
        match value {
            0..=23 => out.push(major | h),
            24..=0xff => out.extend([major | 24, h]),
            0x100..=0xffff => out.extend([major | 25, g, h]),
            0x1_0000..=0xffff_ffff => out.extend([major | 26, e, f, g, h]),
            0x1_0000_0000.. => out.extend([major | 27, a, b, c, d, e, f, g, h]),
        }
    }
}
