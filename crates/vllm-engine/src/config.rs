//! Configuration of an engine, with vLLM's names and defaults.

use crate::hash::{BlockHasher, DEFAULT_SEED, HashAlgorithm, HashSeed};
use crate::vllm_version::VllmVersion;
use std::num::NonZeroU32;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SchedulingPolicy {
    #[default]
    Fcfs,
    /// Lower values first; equal ones in order of arrival.
    Priority,
}

#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Blocks in the pool, the null block included, which is never handed out.
    pub n_blocks: u32,
    /// Tokens per block.
    pub block_size: u32,
    pub max_num_seqs: u32,
    pub max_num_batched_tokens: u32,
    pub max_model_len: u32,
    pub policy: SchedulingPolicy,
    pub prefix_caching: bool,
    pub chunked_prefill: bool,
    /// Most tokens of one prefill chunk; 0 = no limit but the budget.
    pub long_prefill_token_threshold: u32,
    pub hash: HashAlgorithm,
    pub hash_seed: HashSeed,
    /// Version that the pool, the queue and the counters behave like.
    pub version: VllmVersion,
    /// Most adapters in one step; `None` for no limit.
    pub max_loras: Option<NonZeroU32>,
    /// Share of the blocks that must stay free when a request is admitted, 0..1.
    pub watermark: f64,
    /// Record KV events for `Engine::take_events`.
    pub kv_events: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{0} must be greater than 0")]
    Zero(&'static str),
    #[error("max_model_len {max_model_len} needs {needed} KV blocks, the pool has {usable}")]
    PoolTooSmall { max_model_len: u32, needed: u32, usable: u32 },
    #[error("watermark must be at least 0 and below 1, got {0}")]
    Watermark(String),
    #[error(
        "max_num_batched_tokens {max_num_batched_tokens} is smaller than max_model_len {max_model_len} and chunked prefill is off"
    )]
    BudgetTooSmall { max_num_batched_tokens: u32, max_model_len: u32 },
}

// === impl EngineConfig ===

impl Default for EngineConfig {
    /// Returns the defaults of vLLM 0.33 on a GPU of less than 70 GiB, with as many blocks as an A10 with Qwen2.5-7B
    /// has at 0.95.
    fn default() -> Self {
        Self {
            n_blocks: 6_226,
            block_size: 16,
            max_num_seqs: 256,
            max_num_batched_tokens: 2_048,
            max_model_len: 8_192,
            policy: SchedulingPolicy::Fcfs,
            prefix_caching: true,
            chunked_prefill: true,
            long_prefill_token_threshold: 0,
            hash: HashAlgorithm::Sha256,
            hash_seed: HashSeed::Text(DEFAULT_SEED.to_owned()),
            version: VllmVersion::default(),
            max_loras: None,
            watermark: 0.0,
            kv_events: false,
        }
    }
}

impl EngineConfig {
    /// Makes the hasher of an engine with these settings.
    pub fn block_hasher(&self) -> BlockHasher {
        BlockHasher::of(self.version, self.hash, &self.hash_seed)
    }

    /// Returns vLLM's `KVCacheManager.watermark_blocks`: rounded down.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "validated: a share of a u32"
    )]
    pub(super) fn n_watermark_blocks(&self) -> u32 {
        (self.watermark * f64::from(self.n_blocks)) as u32
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// Fails if a request of `max_model_len` tokens could never be served, which vLLM checks at its start.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let counts = [
            ("block_size", self.block_size),
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("max_model_len", self.max_model_len),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(ConfigError::Zero(name));
        }
        if !(0.0..1.0).contains(&self.watermark) {
            return Err(ConfigError::Watermark(self.watermark.to_string()));
        }
        let &Self { max_model_len, max_num_batched_tokens, .. } = self;
        let needed = max_model_len.div_ceil(self.block_size);
        let usable = self.n_blocks.saturating_sub(1 + self.n_watermark_blocks());
        if needed > usable {
            return Err(ConfigError::PoolTooSmall { max_model_len, needed, usable });
        }
        if !self.chunked_prefill && max_num_batched_tokens < max_model_len {
            return Err(ConfigError::BudgetTooSmall { max_num_batched_tokens, max_model_len });
        }
        Ok(())
    }
}
