//! One model server: the engine, and the time of its steps.

use std::time::Duration;

use prefix_index::blocks::{BlockEvent, EngineHash, Stored};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use vllm_engine::config::{ConfigError, EngineConfig};
use vllm_engine::engine::Engine;
use vllm_engine::event::KvEvent;
use vllm_engine::hash::BlockHash;
use vllm_engine::latency::LatencyModel;
use vllm_engine::prefix::{PromptPrefix, cached_prefix};
use vllm_engine::request::{AddError, CacheReading, EngineRequest, FinishReason, RequestId};
use vllm_engine::step::{OutputToken, StepOutput};

/// Least factor of jitter, as in the mock server.
const MIN_JITTER: f64 = 0.5;
/// The tutorial's `--gpu-memory-utilization`.
const GPU_MEMORY_UTILIZATION: f64 = 0.95;

/// Settings of a pod.
#[derive(Clone, Debug)]
pub struct PodConfig {
    pub engine: EngineConfig,
    pub latency: LatencyModel,
    /// Relative standard deviation of each step's time and of the time on the way in; 0 for none.
    pub jitter: f64,
}

/// A pod's load as a scrape reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PodLoad {
    pub waiting: u32,
    pub running: u32,
    pub kv_usage: f64,
    /// First tokens so far.
    pub first_tokens: u64,
}

/// A request as the engine receives it.
#[derive(Clone, Debug)]
pub struct Work {
    pub id: u64,
    pub prompt: Vec<u32>,
    /// Every token that will be generated, including the EOS; at least one.
    pub output: Vec<u32>,
}

#[derive(Debug)]
pub struct Pod {
    engine: Engine,
    latency: LatencyModel,
    jitter: f64,
    rng: ChaCha8Rng,
    output: StepOutput,
    /// Time when the current step ends.
    step_ends_at: Option<Duration>,
    /// Requests on their way to the engine, in the order in which they were sent.
    coming: Vec<Work>,
    /// First tokens so far.
    first_tokens: u64,
}

impl PodConfig {
    /// Makes the settings of a mock server with a preset of its latency model, such as the tutorial's `a10-doc`; `None`
    /// if there is no such preset.
    #[must_use]
    pub fn preset(name: &str, prefix_caching: bool, jitter: f64) -> Option<Self> {
        let latency = LatencyModel::preset(name)?;
        let engine = EngineConfig::default();
        let n_blocks = latency.n_kv_blocks(GPU_MEMORY_UTILIZATION, engine.block_size);
        Some(Self { engine: EngineConfig { prefix_caching, n_blocks, ..engine }, latency, jitter })
    }

    /// Sets the number of blocks of KV cache, including the null block.
    #[must_use]
    pub fn with_blocks(mut self, n_blocks: u32) -> Self {
        self.engine.n_blocks = n_blocks;
        self
    }
}

impl Pod {
    /// Makes a pod.
    ///
    /// # Errors
    /// When the engine's settings contradict each other.
    pub fn try_new(config: &PodConfig, seed: u64) -> Result<Self, ConfigError> {
        Ok(Self {
            engine: Engine::try_new(config.engine.clone())?,
            latency: config.latency,
            jitter: config.jitter,
            rng: ChaCha8Rng::seed_from_u64(seed),
            output: StepOutput::default(),
            step_ends_at: None,
            coming: Vec::new(),
            first_tokens: 0,
        })
    }

    /// Takes a request that was sent; returns the time until it reaches the engine.
    pub fn send(&mut self, work: Work) -> Duration {
        self.coming.push(work);
        let factor = if self.jitter > 0.0 {
            let normal: f64 = StandardNormal.sample(&mut self.rng);
            (1.0 + self.jitter * normal).max(MIN_JITTER)
        } else {
            1.0
        };
        self.latency.c_pre.mul_f64(factor)
    }

    /// Returns the time from the end of a step until the client has its tokens.
    #[must_use]
    pub fn way_out(&self) -> Duration {
        self.latency.c_post
    }

    /// Gives a request that was sent to the engine.
    ///
    /// # Errors
    /// When it cannot serve the request at all.
    ///
    /// # Panics
    /// When no such request was sent.
    pub fn enter(&mut self, id: u64) -> Result<(), AddError> {
        let idx = self.coming.iter().position(|work| work.id == id);
        let work = self.coming.remove(idx.expect("a request enters that was sent"));
        self.engine.add(work.into_request())
    }

    /// Begins a step, unless one is running or there is nothing to do. Returns the time when it ends.
    pub fn begin_step(&mut self, now: Duration) -> Option<Duration> {
        if self.step_ends_at.is_some() {
            return None;
        }
        let plan = self.engine.schedule()?;
        let lasts = self.latency.jittered_step_time(plan, self.jitter, &mut self.rng);
        self.step_ends_at = Some(now + lasts);
        self.step_ends_at
    }

    /// Ends the step and returns its tokens.
    pub fn end_step(&mut self) -> &[OutputToken] {
        self.step_ends_at = None;
        self.engine.complete(&mut self.output);
        self.first_tokens += self.output.tokens.iter().filter(|token| token.output_idx == 0).count() as u64;
        &self.output.tokens
    }

    /// Returns the hashes of a prompt's blocks, for [`Self::cached_tokens`] of this pod and of pods with the same
    /// settings.
    #[must_use]
    pub fn hashes(&self, prompt: &[u32]) -> Vec<BlockHash> {
        let cache_reading = CacheReading::Read;
        PromptPrefix { tokens: prompt, lora: None, cache_salt: None, cache_reading }
            .hashes(self.engine.config())
    }

    /// Returns the engine's KV events since the last call, in order, as a picker reads them; none without
    /// [`EngineConfig::kv_events`].
    pub fn take_kv_events(&mut self) -> Vec<BlockEvent> {
        self.engine.take_events().into_iter().map(block_event).collect()
    }

    /// Returns the number of a prompt's tokens that the engine would find in its cache now.
    #[must_use]
    pub fn cached_tokens(&self, hashes: &[BlockHash]) -> u32 {
        let n_blocks = cached_prefix(self.engine.block_pool(), hashes).len();
        u32::try_from(n_blocks).unwrap_or(u32::MAX).saturating_mul(self.engine.config().block_size)
    }

    /// Returns how long `work` would wait for its first token if it were sent now and nothing came after it; `None` if
    /// the token would never come. It runs a copy of the engine without jitter, with all requests that are on their
    /// way.
    #[must_use]
    pub fn time_to_first_token(&self, now: Duration, work: &Work) -> Option<Duration> {
        let mut engine = self.engine.clone();
        let mut output = StepOutput::default();
        let mut elapsed = Duration::ZERO;
        if let Some(ends_at) = self.step_ends_at {
            elapsed = ends_at.saturating_sub(now);
            engine.complete(&mut output);
        }
        for coming in &self.coming {
            // A request that the engine refuses takes no time.
            let _ = engine.add(coming.clone().into_request());
        }
        while elapsed < self.latency.c_pre {
            match engine.schedule() {
                Some(plan) => elapsed += self.latency.step_time(plan),
                None => break,
            }
            engine.complete(&mut output);
        }
        elapsed = elapsed.max(self.latency.c_pre);
        engine.add(work.clone().into_request()).ok()?;
        let is_first = |token: &OutputToken| token.id == RequestId(work.id);
        while !output.tokens.iter().any(is_first) {
            elapsed += self.latency.step_time(engine.schedule()?);
            engine.complete(&mut output);
        }
        Some(elapsed + self.latency.c_post)
    }

    #[must_use]
    pub fn gauges(&self) -> PodLoad {
        let stats = self.engine.stats();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        PodLoad {
            waiting: count(stats.waiting),
            running: count(stats.running),
            kv_usage: stats.kv_usage,
            first_tokens: self.first_tokens,
        }
    }

    /// Returns the number of prompt tokens that were looked up in the cache so far, and of those that were found.
    #[must_use]
    pub fn cache_counters(&self) -> (u64, u64) {
        let stats = self.engine.stats();
        (stats.prefix_cache_queries, stats.prefix_cache_hits)
    }
}

impl Work {
    fn into_request(self) -> EngineRequest {
        EngineRequest {
            id: RequestId(self.id),
            prompt: self.prompt.into(),
            output: self.output.into(),
            finish: FinishReason::Length,
            cache_salt: None,
            cache_reading: CacheReading::Read,
            lora: None,
            priority: 0,
        }
    }
}

/// Returns the event in the form in which a picker reads it from the wire.
fn block_event(event: KvEvent) -> BlockEvent {
    let name = |hash: &BlockHash| EngineHash::of_integer(hash.event_int());
    match event {
        // Simulated requests have neither adapter nor salt.
        KvEvent::BlockStored { block_hashes, parent, token_ids, block_size, lora: _, cache_salt: _ } => {
            BlockEvent::Stored(Stored {
                hashes: block_hashes.iter().map(name).collect(),
                parent: parent.as_ref().map(name),
                tokens: token_ids,
                block_size,
                ..Stored::default()
            })
        }
        KvEvent::BlockRemoved { block_hash } => BlockEvent::Removed(vec![name(&block_hash)]),
        KvEvent::AllBlocksCleared => BlockEvent::Cleared,
    }
}
