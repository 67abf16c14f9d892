//! vLLM's `KVCacheManager` for one full-attention group: which blocks each request holds, what of its context is cached
//! already, and which events subscribers get. It knows no queues and no budgets.

use crate::block_pool::{BlockIdx, BlockPool, FreeOrder};
use crate::config::EngineConfig;
use crate::event::KvEvent;
use crate::hash::{BlockHash, BlockHasher, ExtraKeys};
use crate::request::{CacheReading, EngineRequest};
use crate::vllm_version::VllmVersion;

/// Blocks and hashes of one request.
#[derive(Clone, Debug, Default)]
pub(super) struct RequestBlocks {
    /// Blocks in order of position: entry `i` is for tokens `i * block_size ..`.
    pub(super) blocks: Vec<BlockIdx>,
    /// Hash chain of the request's full blocks, as far as it was needed; it stays valid after preemptions.
    hashes: Vec<BlockHash>,
    /// Number of the `blocks` that are in the prefix cache.
    n_cached: usize,
}

/// Known tokens of a request: its prompt and what it has generated.
#[derive(Clone, Copy, Debug)]
pub(super) struct KnownTokens<'a> {
    pub(super) request: &'a EngineRequest,
    pub(super) n_outputs: usize,
}

/// Part of a waiting request that must fit in free blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Admission {
    FirstChunk,
    WholeInput,
}

#[derive(Clone, Debug)]
pub(super) struct KvCache {
    pool: BlockPool,
    hasher: BlockHasher,
    block_size: usize,
    prefix_caching: bool,
    admission: Admission,
    /// Blocks that must stay free when a request is admitted.
    n_watermark_blocks: usize,
    /// Blocks found by the last look-up.
    hits: Vec<BlockIdx>,
    events: Option<Vec<KvEvent>>,
}

// === impl RequestBlocks ===

impl RequestBlocks {
    /// Makes an empty value with room for all blocks of `n_tokens`, so that decoding never allocates.
    pub(super) fn with_capacity(n_tokens: usize, block_size: usize) -> Self {
        let n_blocks = n_tokens.div_ceil(block_size);
        Self { blocks: Vec::with_capacity(n_blocks), hashes: Vec::with_capacity(n_blocks), n_cached: 0 }
    }
}

// === impl KnownTokens ===

impl<'a> KnownTokens<'a> {
    pub(super) fn len(&self) -> usize {
        self.request.prompt.len() + self.n_outputs
    }

    /// Returns tokens `start..end` as two parts: of the prompt and of the output.
    fn range(&self, start: usize, end: usize) -> [&'a [u32]; 2] {
        let n_prompt = self.request.prompt.len();
        let prompt = &self.request.prompt[start.min(n_prompt)..end.min(n_prompt)];
        let output = &self.request.output[start.max(n_prompt) - n_prompt..end.max(n_prompt) - n_prompt];
        [prompt, output]
    }
}

// === impl KvCache ===

impl KvCache {
    pub(super) fn new(config: &EngineConfig) -> Self {
        Self {
            pool: BlockPool::new(config.n_blocks, FreeOrder::of(config.version)),
            hasher: config.block_hasher(),
            block_size: config.block_size as usize,
            prefix_caching: config.prefix_caching,
            admission: match config.version {
                VllmVersion::V0_8 | VllmVersion::V0_11 => Admission::FirstChunk,
                VllmVersion::V0_33 => Admission::WholeInput,
            },
            n_watermark_blocks: config.n_watermark_blocks() as usize,
            hits: Vec::with_capacity(config.max_model_len.div_ceil(config.block_size) as usize),
            events: config.kv_events.then(Vec::new),
        }
    }

    pub(super) fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Takes `n_blocks` in all out of use, or gives back the surplus, as far as blocks are free.
    pub(super) fn reserve(&mut self, n_blocks: u32) {
        let evicted = self.pool.reserve(n_blocks);
        if let Some(events) = &mut self.events {
            events.extend(evicted.into_iter().map(|block_hash| KvEvent::BlockRemoved { block_hash }));
        }
    }

    pub(super) fn take_events(&mut self) -> Vec<KvEvent> {
        self.events.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Looks up the longest cached prefix, keeps it for `admit`, and returns its length in tokens. The last token never
    /// comes from the cache, because its logits are needed.
    pub(super) fn look_up(
        &mut self,
        tokens: KnownTokens<'_>,
        held: &mut RequestBlocks,
        reading: CacheReading,
    ) -> usize {
        self.hits.clear();
        if !self.prefix_caching || reading == CacheReading::Skip {
            return 0;
        }
        let n_max = (tokens.len() - 1) / self.block_size;
        for block in 0..n_max {
            let hash = self.chain_hash(tokens, held, block);
            let Some(hit) = self.pool.find(&hash) else { break };
            self.hits.push(hit);
        }
        self.hits.len() * self.block_size
    }

    /// Gives a waiting request the blocks that `look_up` found, and new ones up to `n_computed` tokens. Returns false,
    /// without a change, if these do not fit. Since vLLM 0.33 (`scheduler_reserve_full_isl`) all its known tokens must
    /// fit.
    pub(super) fn admit(
        &mut self,
        tokens: KnownTokens<'_>,
        held: &mut RequestBlocks,
        n_computed: usize,
    ) -> bool {
        debug_assert!(held.blocks.is_empty(), "a waiting request holds nothing");
        let n_free_hits = self.hits.iter().filter(|block| self.pool.n_refs(**block) == 0).count();
        let n_tokens = match self.admission {
            Admission::FirstChunk => n_computed,
            Admission::WholeInput => tokens.len(),
        };
        let n_needed = n_tokens.div_ceil(self.block_size) - self.hits.len() + n_free_hits;
        if n_needed + self.n_watermark_blocks > self.pool.n_free() as usize {
            return false;
        }
        self.hits.iter().for_each(|block| self.pool.hold(*block));
        held.blocks.extend_from_slice(&self.hits);
        held.n_cached = self.hits.len();
        self.extend(tokens, held, n_computed)
    }

    /// Adds blocks up to `n_computed` tokens, and caches the blocks that become full. Returns false, without a change,
    /// if too few are free.
    pub(super) fn extend(
        &mut self,
        tokens: KnownTokens<'_>,
        held: &mut RequestBlocks,
        n_computed: usize,
    ) -> bool {
        let n_new = n_computed.div_ceil(self.block_size).saturating_sub(held.blocks.len());
        if n_new > self.pool.n_free() as usize {
            return false;
        }
        for _ in 0..n_new {
            let (block, evicted) = self.pool.allocate().expect("the free queue was counted");
            held.blocks.push(block);
            if let (Some(block_hash), Some(events)) = (evicted, &mut self.events) {
                events.push(KvEvent::BlockRemoved { block_hash });
            }
        }
        if self.prefix_caching {
            self.cache_full_blocks(tokens, held, n_computed);
        }
        true
    }

    /// Releases all blocks, tail first; the hash chain stays.
    pub(super) fn release(&mut self, held: &mut RequestBlocks) {
        self.pool.release(held.blocks.drain(..).rev());
        held.n_cached = 0;
    }

    pub(super) fn reset(&mut self) -> bool {
        let reset = self.pool.reset();
        if let (true, Some(events)) = (reset, &mut self.events) {
            events.push(KvEvent::AllBlocksCleared);
        }
        reset
    }

    /// Caches full blocks. They enter the cache when the tokens that fill them are scheduled, not when these have been
    /// computed.
    fn cache_full_blocks(&mut self, tokens: KnownTokens<'_>, held: &mut RequestBlocks, n_computed: usize) {
        let n_full = n_computed / self.block_size;
        let first = held.n_cached;
        if first >= n_full {
            return;
        }
        for block in first..n_full {
            let hash = self.chain_hash(tokens, held, block);
            self.pool.insert(held.blocks[block], hash);
        }
        held.n_cached = n_full;
        if let Some(events) = &mut self.events {
            let request = tokens.request;
            events.push(KvEvent::BlockStored {
                block_hashes: held.hashes[first..n_full].to_vec(),
                parent: first.checked_sub(1).map(|parent| held.hashes[parent]),
                token_ids: tokens.range(first * self.block_size, n_full * self.block_size).concat(),
                block_size: u32::try_from(self.block_size).expect("the block size comes from a u32"),
                lora: request.lora.clone(),
                cache_salt: request.cache_salt.clone().filter(|_| first == 0),
            });
        }
    }

    /// Returns the hash of a full block of known tokens, and extends the chain as far as needed.
    fn chain_hash(&mut self, tokens: KnownTokens<'_>, held: &mut RequestBlocks, block: usize) -> BlockHash {
        for next in held.hashes.len()..=block {
            let start = next * self.block_size;
            let extra = ExtraKeys {
                lora: tokens.request.lora.as_deref(),
                cache_salt: tokens.request.cache_salt.as_deref().filter(|_| next == 0),
            };
            let parent = held.hashes.last().copied();
            held.hashes.push(self.hasher.hash(parent, tokens.range(start, start + self.block_size), extra));
        }
        held.hashes[block]
    }
}
