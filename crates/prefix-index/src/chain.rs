//! A text as a chain of block hashes, built from chunks as they arrive.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::schedule::{block_len, blocks_within, bytes_in_blocks, next_longer};

/// Hash of the seed and of all text up to the end of a block: equal hashes mean equal prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockHash(u64);

impl BlockHash {
    pub(crate) const fn get(self) -> u64 {
        self.0
    }
}

/// Everything besides text that two requests must have in common to use the same cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainSeed<'a> {
    /// The model that the request is sent to, after the InferenceModel has chosen a target.
    pub target_model: &'a str,
    /// The LoRA adapter, if the name of the target model does not imply it.
    pub adapter: Option<&'a str>,
    /// vLLM's `cache_salt`.
    pub cache_salt: Option<&'a str>,
}

/// The hashes of a text's full blocks, in order. The rest, shorter than a block, is left out.
///
/// Serialised as the list of its hashes, so that pickers with the same hash function understand each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Chain {
    hashes: Box<[BlockHash]>,
}

/// Builds a [`Chain`] from chunks of text; it does not matter where they are split.
///
/// The seed comes last, because a body may name its model after its messages. The builder buffers at most one block of
/// text, which is 1/64 of what was pushed, or 8 bytes.
#[derive(Clone, Debug, Default)]
pub struct ChainBuilder {
    hashes: Vec<BlockHash>,
    /// The start of the block that is not full yet.
    pending: Vec<u8>,
}

// === impl ChainSeed ===

impl ChainSeed<'_> {
    /// Hash of the seed. Each part is preceded by its presence and length, so that no two seeds have the same bytes.
    fn hash(&self) -> u64 {
        let Self { target_model, adapter, cache_salt } = self;
        let mut bytes = Vec::with_capacity(128);
        for part in [Some(*target_model), *adapter, *cache_salt] {
            match part {
                None => bytes.push(0),
                Some(text) => {
                    bytes.push(1);
                    bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
                    bytes.extend_from_slice(text.as_bytes());
                }
            }
        }
        xxh3_64(&bytes)
    }
}

// === impl Chain ===

impl Chain {
    #[must_use]
    pub fn hashes(&self) -> &[BlockHash] {
        &self.hashes
    }

    #[must_use]
    pub fn n_blocks(&self) -> u32 {
        u32::try_from(self.hashes.len()).expect("block lengths double, so no text has 2^32 blocks")
    }

    /// Bytes in full blocks, which matches are compared with. 0 for texts under 8 bytes.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        bytes_in_blocks(self.n_blocks())
    }
}

// === impl ChainBuilder ===

impl ChainBuilder {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends `chunk` to the text.
    pub fn push(&mut self, chunk: &[u8]) -> &mut Self {
        let mut rest = chunk;
        if !self.pending.is_empty() {
            let missing = self.next_block_len() - self.pending.len();
            let (head, tail) = rest.split_at(missing.min(rest.len()));
            self.pending.extend_from_slice(head);
            if head.len() < missing {
                return self;
            }
            let mut block = std::mem::take(&mut self.pending);
            self.close_blocks(&block);
            block.clear();
            (self.pending, rest) = (block, tail);
        }
        let rest = self.close_blocks(rest);
        self.pending.extend_from_slice(rest);
        self
    }

    /// The chain of the text so far under `seed`.
    #[must_use]
    pub fn finish(self, seed: &ChainSeed<'_>) -> Chain {
        let seed = seed.hash();
        let mut hashes = self.hashes;
        for hash in &mut hashes {
            hash.0 ^= seed;
        }
        Chain { hashes: hashes.into_boxed_slice() }
    }

    fn n_blocks(&self) -> u32 {
        u32::try_from(self.hashes.len()).expect("block lengths double, so no text has 2^32 blocks")
    }

    fn next_block_len(&self) -> usize {
        usize::try_from(block_len(self.n_blocks())).expect("a block is shorter than the text in memory")
    }

    /// Closes the blocks that `text` fills, and returns the rest of it.
    fn close_blocks<'a>(&mut self, mut text: &'a [u8]) -> &'a [u8] {
        let n_blocks = self.n_blocks();
        let n_full = blocks_within(bytes_in_blocks(n_blocks) + text.len() as u64);
        self.hashes.reserve(usize::try_from(n_full - n_blocks).expect("a text has fewer blocks than bytes"));
        while self.n_blocks() < n_full {
            let n_bytes = self.next_block_len();
            let n_equal = n_full.min(next_longer(self.n_blocks())) - self.n_blocks();
            let n_equal = usize::try_from(n_equal).expect("a text has fewer blocks than bytes");
            let (blocks, rest) = text.split_at(n_equal * n_bytes);
            // Most blocks have one of two lengths; the hash takes half of the time if the length is a constant.
            match n_bytes {
                8 => self.close_each(blocks.as_chunks::<8>().0),
                16 => self.close_each(blocks.as_chunks::<16>().0),
                _ => self.close_each(blocks.chunks_exact(n_bytes)),
            }
            text = rest;
        }
        text
    }

    #[inline]
    fn close_each<B: AsRef<[u8]>>(&mut self, blocks: impl IntoIterator<Item = B>) {
        let mut previous = self.hashes.last().map_or(0, |hash| hash.0);
        self.hashes.extend(blocks.into_iter().map(|block| {
            previous = xxh3_64_with_seed(block.as_ref(), previous);
            BlockHash(previous)
        }));
    }
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64_with_seed;

    use super::{BlockHash, ChainBuilder, ChainSeed};
    use crate::schedule::block_len;

    /// Pickers of different versions exchange hashes.
    #[test]
    fn each_hash_is_that_of_a_block_under_the_one_before() {
        let text: Vec<u8> = (0..20_000_u32).map(|at| (at * at % 251).to_le_bytes()[0]).collect();
        let seed = ChainSeed { target_model: "m", adapter: None, cache_salt: Some("s") };
        let (mut rest, mut previous) = (text.as_slice(), 0);
        let mut expected = Vec::new();
        while let Some((block, tail)) =
            rest.split_at_checked(usize::try_from(block_len(expected.len().try_into().unwrap())).unwrap())
        {
            (previous, rest) = (xxh3_64_with_seed(block, previous), tail);
            expected.push(BlockHash(previous ^ seed.hash()));
        }
        let recorded = [3_114_157_297_292_548_840, 4_242_819_468_557_610_986].map(BlockHash);
        assert_eq!(expected[..2], recorded, "The same in every version");
        for chunk_len in [1, 7, 100, 20_000] {
            let mut builder = ChainBuilder::new();
            text.chunks(chunk_len).for_each(|chunk| {
                builder.push(chunk);
            });
            assert_eq!(builder.finish(&seed).hashes(), expected, "in chunks of {chunk_len}");
        }
    }
}
