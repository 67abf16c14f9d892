//! One model server: the engine, and the time that its steps take.

use std::time::Duration;

use mock_vllm::engine::Engine;
use mock_vllm::engine::config::{ConfigError, EngineConfig};
use mock_vllm::engine::latency::LatencyModel;
use mock_vllm::engine::request::{EngineRequest, FinishReason, RequestId};
use mock_vllm::engine::step::{OutputToken, StepOutput};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// As the mock server bounds its jitter.
const MIN_JITTER: f64 = 0.5;

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
    is_stepping: bool,
}

impl PodConfig {
    /// A mock server's, with a preset of its latency model: `a10-doc` is the tutorial's. `None` when there is none of that
    /// name.
    #[must_use]
    pub fn preset(name: &str, prefix_caching: bool, jitter: f64) -> Option<Self> {
        let engine = EngineConfig { prefix_caching, ..EngineConfig::default() };
        Some(Self { engine, latency: LatencyModel::preset(name)?, jitter })
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
            is_stepping: false,
        })
    }

    /// From sending a request until the engine has it.
    pub fn way_in(&mut self) -> Duration {
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

    /// Takes a request; returns false when the engine cannot serve it at all.
    pub fn add(&mut self, work: Work) -> bool {
        let Work { id, prompt, output } = work;
        let request = EngineRequest {
            id: RequestId(id),
            prompt: prompt.into(),
            output: output.into(),
            finish: FinishReason::Length,
            cache_salt: None,
            cache_reading: mock_vllm::engine::request::CacheReading::Read,
            lora: None,
            priority: 0,
        };
        self.engine.add(request).is_ok()
    }

    /// Begins a step, unless one is under way or there is nothing to do; returns how long it lasts.
    pub fn begin_step(&mut self) -> Option<Duration> {
        if self.is_stepping {
            return None;
        }
        let plan = self.engine.schedule()?;
        let lasts = self.latency.jittered_step_time(plan, self.jitter, &mut self.rng);
        self.is_stepping = true;
        Some(lasts)
    }

    /// The step is over: the tokens that came of it.
    pub fn end_step(&mut self) -> &[OutputToken] {
        self.is_stepping = false;
        self.engine.complete(&mut self.output);
        &self.output.tokens
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
