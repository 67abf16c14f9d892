//! One model server: the engine, and the time that its steps take.

use std::time::Duration;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use vllm_engine::config::{ConfigError, EngineConfig};
use vllm_engine::engine::Engine;
use vllm_engine::hash::BlockHash;
use vllm_engine::latency::LatencyModel;
use vllm_engine::prefix::{PromptPrefix, cached_prefix};
use vllm_engine::request::{AddError, CacheReading, EngineRequest, FinishReason, RequestId};
use vllm_engine::step::{OutputToken, StepOutput};

/// As the mock server bounds its jitter.
const MIN_JITTER: f64 = 0.5;
/// The tutorial's `--gpu-memory-utilization`.
const GPU_MEMORY_UTILIZATION: f64 = 0.95;

/// What a pod is made of.
#[derive(Clone, Debug)]
pub struct PodConfig {
    pub engine: EngineConfig,
    pub latency: LatencyModel,
    /// Relative standard deviation of each step and of the way in; 0: none.
    pub jitter: f64,
}

/// What a pod reports of itself, as a scrape reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gauges {
    pub waiting: u32,
    pub running: u32,
    pub kv_usage: f64,
}

/// A request as the engine gets it.
#[derive(Clone, Debug)]
pub struct Work {
    pub id: u64,
    pub prompt: Vec<u32>,
    /// Every token that will be generated, the EOS included; at least one.
    pub output: Vec<u32>,
}

#[derive(Debug)]
pub struct Pod {
    engine: Engine,
    latency: LatencyModel,
    jitter: f64,
    rng: ChaCha8Rng,
    output: StepOutput,
    /// Of the step at hand.
    step_ends_at: Option<Duration>,
    /// On their way to the engine, in the order in which they were sent.
    coming: Vec<Work>,
}

impl PodConfig {
    /// A mock server's, with a preset of its latency model: `a10-doc` is the tutorial's. `None` when there is none of that
    /// name.
    #[must_use]
    pub fn preset(name: &str, prefix_caching: bool, jitter: f64) -> Option<Self> {
        let latency = LatencyModel::preset(name)?;
        let engine = EngineConfig::default();
        let n_blocks = latency.n_kv_blocks(GPU_MEMORY_UTILIZATION, engine.block_size);
        Some(Self { engine: EngineConfig { prefix_caching, n_blocks, ..engine }, latency, jitter })
    }

    /// The same with so many blocks of KV cache, the null block included.
    #[must_use]
    pub fn with_blocks(mut self, n_blocks: u32) -> Self {
        self.engine.n_blocks = n_blocks;
        self
    }
}

impl Pod {
    /// # Errors
    /// When the engine's settings do not go together.
    pub fn try_new(config: &PodConfig, seed: u64) -> Result<Self, ConfigError> {
        Ok(Self {
            engine: Engine::try_new(config.engine.clone())?,
            latency: config.latency,
            jitter: config.jitter,
            rng: ChaCha8Rng::seed_from_u64(seed),
            output: StepOutput::default(),
            step_ends_at: None,
            coming: Vec::new(),
        })
    }

    /// A request is sent; returns how long it takes until the engine has it.
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

    /// From a step's end until the client has its tokens.
    #[must_use]
    pub fn way_out(&self) -> Duration {
        self.latency.c_post
    }

    /// The engine takes a request that was sent.
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

    /// Begins a step, unless one is under way or there is nothing to do; returns when it ends.
    pub fn begin_step(&mut self, now: Duration) -> Option<Duration> {
        if self.step_ends_at.is_some() {
            return None;
        }
        let plan = self.engine.schedule()?;
        let lasts = self.latency.jittered_step_time(plan, self.jitter, &mut self.rng);
        self.step_ends_at = Some(now + lasts);
        self.step_ends_at
    }

    /// The step is over: the tokens that came of it.
    pub fn end_step(&mut self) -> &[OutputToken] {
        self.step_ends_at = None;
        self.engine.complete(&mut self.output);
        &self.output.tokens
    }

    /// The hash chain of a prompt's blocks, for [`Self::cached_tokens`] of this pod and of those that are set up alike.
    #[must_use]
    pub fn hashes(&self, prompt: &[u32]) -> Vec<BlockHash> {
        let cache_reading = CacheReading::Read;
        PromptPrefix { tokens: prompt, lora: None, cache_salt: None, cache_reading }
            .hashes(self.engine.config())
    }

    /// Tokens in a block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.engine.config().block_size as usize
    }

    /// How many tokens of a prompt the engine would find in its cache now.
    #[must_use]
    pub fn cached_tokens(&self, hashes: &[BlockHash]) -> u32 {
        let n_blocks = cached_prefix(self.engine.block_pool(), hashes).len();
        u32::try_from(n_blocks).unwrap_or(u32::MAX).saturating_mul(self.engine.config().block_size)
    }

    /// How long `work` would wait for its first token if it were sent now and nothing came after it: the engine itself is
    /// copied and asked, with all that is on its way. Without jitter. `None` when it would never come.
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
            // What the engine refuses takes none of its time.
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
    pub fn gauges(&self) -> Gauges {
        let stats = self.engine.stats();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Gauges { waiting: count(stats.waiting), running: count(stats.running), kv_usage: stats.kv_usage }
    }

    /// Prompt tokens that were looked up in the cache so far, and those that were found.
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
