//! Texts, chains and indexes in short calls.

use std::num::NonZeroU32;

use prefix_index::chain::{Chain, ChainBuilder, ChainSeed};
use prefix_index::endpoint::EndpointId;
use prefix_index::index::PrefixIndex;
use prefix_index::matches::Matches;

pub(crate) const SEED: ChainSeed<'_> =
    ChainSeed { target_model: "/model/qwen", adapter: None, cache_salt: None };

pub(crate) fn chain(text: impl AsRef<[u8]>) -> Chain {
    seeded_chain(text, &SEED)
}

pub(crate) fn seeded_chain(text: impl AsRef<[u8]>, seed: &ChainSeed<'_>) -> Chain {
    let mut builder = ChainBuilder::new();
    builder.push(text.as_ref());
    builder.finish(seed)
}

pub(crate) fn index(capacity: u32) -> PrefixIndex {
    PrefixIndex::new(NonZeroU32::new(capacity).expect("tests pass a capacity"))
}

pub(crate) fn endpoint(slot: u32) -> EndpointId {
    EndpointId::new(slot, 0)
}

/// Bytes of `text` that `endpoint` holds.
pub(crate) fn matched(index: &PrefixIndex, text: impl AsRef<[u8]>, endpoint: EndpointId) -> u64 {
    let mut matches = Matches::new();
    index.longest_match(&chain(text), &mut matches);
    matches.bytes(endpoint)
}

/// Random bytes that repeat nowhere.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    use rand::{RngExt, SeedableRng};
    let mut bytes = vec![0; len];
    rand_chacha::ChaCha8Rng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}
