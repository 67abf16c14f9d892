//! vLLM's metrics of one engine and its API server, updated once per step. `render` decides what a version shows of
//! them.

pub mod cache_config;
pub mod lateness;
pub mod lora;
pub mod render;
pub mod http;
pub mod process;
pub mod exposition;
pub mod requests;
mod buckets;
mod histogram;

use histogram::Histogram;
use lateness::TokenLateness;
use lora::{LoraRequests, LoraStage};
use requests::{FinishedRequest, RequestHistograms};
use std::sync::Arc;
use std::time::Duration;
use vllm_engine::engine::EngineStats;
use vllm_engine::request::FinishReason;
use vllm_engine::vllm_version::VllmVersion;

/// vLLM's order of `FinishReason`; versions before 0.33 know the first three.
const FINISHED_REASONS: [&str; 5] = ["stop", "length", "abort", "error", "repetition"];

/// The engine whose names the metrics have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Runtime {
    #[default]
    Vllm,
    Sglang,
}

/// Facts about the pod that the exposition shows beside its numbers.
#[derive(Clone, Debug)]
pub struct MetricsConfig {
    /// Data-parallel rank: the label `engine`.
    pub engine: u16,
    pub runtime: Runtime,
    pub version: VllmVersion,
    /// True if `--show-hidden-metrics-for-version` names the version before `version`.
    pub show_hidden: bool,
    pub model_name: String,
    pub max_model_len: u32,
    /// Fields of vLLM's `CacheConfig`, as label and value in Python's spelling.
    pub cache_config: Vec<(&'static str, String)>,
    /// The mock's own metrics, if they are shown.
    pub lateness: Option<Arc<TokenLateness>>,
    /// `--max-loras`, if LoRA is on.
    pub max_loras: Option<u32>,
    /// Unix time of the start, in seconds, for the `_created` series.
    pub created: f64,
}

/// Results of one engine step.
#[derive(Clone, Debug, Default)]
pub struct StepRecord {
    pub n_generation_tokens: u64,
    pub first_tokens: Vec<FirstToken>,
    pub inter_token_latencies: Vec<Duration>,
    /// Preemptions of the requests that got a token: vLLM counts them with the next token.
    pub n_preemptions: u64,
    pub finished: Vec<FinishedRequest>,
    /// Changes of requests with an adapter.
    pub lora_shifts: Vec<LoraShift>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstToken {
    pub n_prompt_tokens: usize,
    pub cached_tokens: u32,
    /// Time since the request's arrival.
    pub time: Duration,
}

/// A change of a request with an adapter: it arrives (`from` is `None`), advances, or ends (`to` is `None`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraShift {
    pub adapter: String,
    pub from: Option<LoraStage>,
    pub to: Option<LoraStage>,
}

/// vLLM's sleep levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SleepState {
    #[default]
    Awake,
    /// Level 0: the scheduler is paused, the weights stay.
    Paused,
    /// Level 1.
    WeightsOffloaded,
    /// Level 2.
    DiscardAll,
}

/// Limit that made the server refuse a request before it reached the engine: the name of its flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdmissionLimit {
    MaxNumQueuedReqs,
    MaxNumQueuedTokens,
}

#[derive(Debug)]
pub struct Metrics {
    config: MetricsConfig,
    gauges: EngineStats,
    sleep: SleepState,
    counters: Counters,
    iteration_tokens: Histogram,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    requests: RequestHistograms,
    lora: LoraRequests,
}

#[derive(Debug, Default)]
struct Counters {
    preemptions: u64,
    prompt_tokens: u64,
    prompt_tokens_cached: u64,
    generation_tokens: u64,
    finished_by_reason: [u64; FINISHED_REASONS.len()],
    rejected_by_limit: [u64; 2],
}

// === impl Metrics ===

impl Metrics {
    pub fn new(config: MetricsConfig) -> Self {
        Self {
            gauges: EngineStats::default(),
            sleep: SleepState::default(),
            counters: Counters::default(),
            iteration_tokens: Histogram::new(buckets::ITERATION_TOKENS),
            time_to_first_token: Histogram::new(buckets::TIME_TO_FIRST_TOKEN),
            inter_token_latency: Histogram::new(buckets::INTER_TOKEN_LATENCY),
            requests: RequestHistograms::new(config.max_model_len),
            lora: LoraRequests::new(config.version),
            config,
        }
    }

    /// Counts a step that has ended: always the scheduler's state, the rest only if the step has output. `unix_now` is
    /// in seconds, for the metric whose value is a time.
    pub fn record_step(&mut self, record: &StepRecord, stats: &EngineStats, unix_now: f64) {
        let StepRecord {
            n_generation_tokens,
            first_tokens,
            inter_token_latencies,
            n_preemptions,
            finished,
            lora_shifts,
        } = record;
        self.set_gauges(stats);
        lora_shifts.iter().for_each(|shift| self.shift_lora(shift));
        let has_output = *n_generation_tokens > 0;
        if self.config.max_loras.is_some() && (has_output || self.config.version >= VllmVersion::V0_33) {
            self.lora.note(unix_now);
        }
        if !has_output {
            return;
        }
        let (mut n_prompt, mut n_cached) = (0, 0);
        for FirstToken { n_prompt_tokens, cached_tokens, time } in first_tokens {
            n_prompt += *n_prompt_tokens as u64;
            n_cached += u64::from(*cached_tokens);
            self.time_to_first_token.observe(time.as_secs_f64());
        }
        self.counters.preemptions += n_preemptions;
        self.counters.prompt_tokens += n_prompt;
        self.counters.prompt_tokens_cached += n_cached;
        self.counters.generation_tokens += n_generation_tokens;
        let n_prefilled = match self.config.version {
            VllmVersion::V0_8 | VllmVersion::V0_11 => n_prompt,
            VllmVersion::V0_33 => n_prompt - n_cached,
        };
        self.iteration_tokens.observe((n_prefilled + n_generation_tokens) as f64);
        for latency in inter_token_latencies {
            self.inter_token_latency.observe(latency.as_secs_f64());
        }
        for request in finished {
            self.count_finish(request.reason);
            self.requests.observe(request);
        }
    }

    pub fn set_gauges(&mut self, stats: &EngineStats) {
        self.gauges = *stats;
    }

    /// Returns the current gauges, for tests and for views like `/load`.
    pub fn gauges(&self) -> EngineStats {
        self.gauges
    }

    pub fn shift_lora(&mut self, shift: &LoraShift) {
        let LoraShift { adapter, from, to } = shift;
        self.lora.shift(adapter, *from, *to);
    }

    pub fn record_sleep_state(&mut self, state: SleepState) {
        self.sleep = state;
    }

    pub fn record_admission_rejection(&mut self, limit: AdmissionLimit) {
        self.counters.rejected_by_limit[limit as usize] += 1;
    }

    fn count_finish(&mut self, reason: FinishReason) {
        let reason_idx = FINISHED_REASONS.iter().position(|name| *name == reason.as_str());
        self.counters.finished_by_reason[reason_idx.expect("every reason is listed")] += 1;
    }
}
