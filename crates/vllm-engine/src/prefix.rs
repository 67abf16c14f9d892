//! Finds what a prompt would hit, beside the engine: nothing is held, moved or counted.

use crate::block_pool::{BlockIdx, BlockPool};
use crate::config::EngineConfig;
use crate::hash::{BlockHash, ExtraKeys};
use crate::request::{CacheReading, LoraAdapter};

/// A prompt, and what its block hashes depend on besides its tokens.
#[derive(Clone, Copy, Debug)]
pub struct PromptPrefix<'a> {
    pub tokens: &'a [u32],
    pub lora: Option<&'a LoraAdapter>,
    pub cache_salt: Option<&'a str>,
    pub cache_reading: CacheReading,
}

// === impl PromptPrefix ===

impl PromptPrefix<'_> {
    /// Returns the hash chain of the blocks that a look-up may find: full blocks, without the last token. The chain is
    /// empty without a look-up: if prefix caching is off, or if the request skips it.
    pub fn hashes(&self, config: &EngineConfig) -> Vec<BlockHash> {
        if !config.prefix_caching || self.cache_reading == CacheReading::Skip {
            return Vec::new();
        }
        let mut hasher = config.block_hasher();
        let block_size = config.block_size as usize;
        let n_blocks = self.tokens.len().saturating_sub(1) / block_size;
        let mut hashes: Vec<BlockHash> = Vec::with_capacity(n_blocks);
        for (block, tokens) in self.tokens.chunks_exact(block_size).take(n_blocks).enumerate() {
            let cache_salt = self.cache_salt.filter(|_| block == 0);
            let extra = ExtraKeys { lora: self.lora, cache_salt };
            hashes.push(hasher.hash(hashes.last().copied(), [tokens, &[]], extra));
        }
        hashes
    }
}

/// Returns the blocks that a request with this chain would get from the cache, in order of position.
pub fn cached_prefix(pool: &BlockPool, hashes: &[BlockHash]) -> Vec<BlockIdx> {
    hashes.iter().map_while(|hash| pool.find(hash)).collect()
}
