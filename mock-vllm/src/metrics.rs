//! vLLM's metrics of one engine, moved once per step, and their text form.

mod exposition;
mod histogram;
pub mod process;

use crate::engine::EngineStats;
use crate::engine::request::FinishReason;
use exposition::{Exposition, Labels};
use histogram::Histogram;
use process::ProcessSample;
use std::time::Duration;

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// vLLM 0.33 `v1/metrics/loggers.py`: seconds to the first token.
const TTFT_BUCKETS: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// The same file: seconds per output token.
const ITL_BUCKETS: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// The same file: seconds of a request or of a phase of it.
const REQUEST_BUCKETS: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
const ITERATION_BUCKETS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
const N_BUCKETS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
const PREEMPTION_BUCKETS: &[f64] = &[1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0];
/// In vLLM's order of `FinishReason`; all exist from the start.
const FINISHED_REASONS: [&str; 5] = ["stop", "length", "abort", "error", "repetition"];

/// What the exposition says of the pod beside its numbers.
#[derive(Clone, Debug)]
pub struct MetricsConfig {
    pub model_name: String,
    pub max_model_len: u32,
    /// Fields of vLLM's `CacheConfig`, as label and value in Python's spelling.
    pub cache_config: Vec<(&'static str, String)>,
    /// Unix time of the start, in seconds, for the `_created` series.
    pub created: f64,
}

/// What one engine step changed.
#[derive(Clone, Debug, Default)]
pub struct StepRecord {
    pub n_generation_tokens: u64,
    /// Of each request that got its first token: prompt tokens, cached ones of them, and the time since its arrival.
    pub first_tokens: Vec<(usize, u32, Duration)>,
    pub inter_token_latencies: Vec<Duration>,
    pub finished: Vec<FinishedRequest>,
}

#[derive(Clone, Copy, Debug)]
pub struct FinishedRequest {
    pub reason: FinishReason,
    pub n_prompt_tokens: usize,
    pub cached_tokens: u32,
    pub n_generation_tokens: u32,
    pub max_tokens: Option<u32>,
    pub n_preemptions: u32,
    /// Arrival to the last token.
    pub e2e: Duration,
    /// In the waiting queue, until first scheduled.
    pub queue: Duration,
    /// First scheduled to first token.
    pub prefill: Duration,
    /// First token to last.
    pub decode: Duration,
    /// First scheduled to last token.
    pub inference: Duration,
}

#[derive(Debug)]
pub struct Metrics {
    config: MetricsConfig,
    gauges: EngineStats,
    prompt_tokens: u64,
    prompt_tokens_cached: u64,
    generation_tokens: u64,
    finished_by_reason: [u64; FINISHED_REASONS.len()],
    iteration_tokens: Histogram,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    requests: RequestHistograms,
}

#[derive(Debug)]
struct RequestHistograms {
    time_per_output_token: Histogram,
    e2e: Histogram,
    queue: Histogram,
    inference: Histogram,
    prefill: Histogram,
    decode: Histogram,
    prompt_tokens: Histogram,
    generation_tokens: Histogram,
    max_num_generation_tokens: Histogram,
    params_max_tokens: Histogram,
    params_n: Histogram,
    prefill_kv_computed_tokens: Histogram,
    num_preemptions: Histogram,
}

// === impl Metrics ===

impl Metrics {
    pub fn new(config: MetricsConfig) -> Self {
        let requests = RequestHistograms::new(config.max_model_len);
        Self {
            config,
            gauges: EngineStats::default(),
            prompt_tokens: 0,
            prompt_tokens_cached: 0,
            generation_tokens: 0,
            finished_by_reason: [0; FINISHED_REASONS.len()],
            iteration_tokens: Histogram::new(ITERATION_BUCKETS),
            time_to_first_token: Histogram::new(TTFT_BUCKETS),
            inter_token_latency: Histogram::new(ITL_BUCKETS),
            requests,
        }
    }

    pub fn record_step(&mut self, record: &StepRecord, stats: &EngineStats) {
        let StepRecord { n_generation_tokens, first_tokens, inter_token_latencies, finished } = record;
        self.set_gauges(stats);
        self.generation_tokens += n_generation_tokens;
        let mut n_prompt_tokens = 0;
        for (n_tokens, cached_tokens, time) in first_tokens {
            n_prompt_tokens += *n_tokens as u64;
            self.prompt_tokens_cached += u64::from(*cached_tokens);
            self.time_to_first_token.observe(time.as_secs_f64());
        }
        self.prompt_tokens += n_prompt_tokens;
        self.iteration_tokens.observe((n_prompt_tokens + n_generation_tokens) as f64);
        for latency in inter_token_latencies {
            self.inter_token_latency.observe(latency.as_secs_f64());
        }
        for request in finished {
            self.count_finish(request.reason);
            self.requests.observe(request);
        }
    }

    pub fn record_abort(&mut self) {
        self.count_finish(FinishReason::Abort);
    }

    pub fn set_gauges(&mut self, stats: &EngineStats) {
        self.gauges = *stats;
    }

    /// What the gauges say at the moment, for tests and for `/load`-like views.
    pub fn gauges(&self) -> EngineStats {
        self.gauges
    }

    fn count_finish(&mut self, reason: FinishReason) {
        let reason_idx = FINISHED_REASONS.iter().position(|name| *name == reason.as_str());
        self.finished_by_reason[reason_idx.expect("every reason is listed")] += 1;
    }

    /// The text form of Prometheus, as Python's client writes it. `process` is `None` where it cannot be read.
    pub fn render(&self, process: Option<&ProcessSample>) -> String {
        let labels = Labels::new(&[("engine", "0"), ("model_name", &self.config.model_name)]);
        let mut out = Exposition::new(self.config.created);
        if let Some(process) = process {
            process.render(&mut out, self.config.created);
        }
        self.render_scheduler(&mut out, &labels);
        self.render_counters(&mut out, &labels);
        out.histogram(
            "vllm:iteration_tokens_total",
            "Histogram of number of tokens per engine_step.",
            &labels,
            &self.iteration_tokens,
        );
        out.histogram(
            "vllm:time_to_first_token_seconds",
            "Histogram of time to first token in seconds.",
            &labels,
            &self.time_to_first_token,
        );
        out.histogram(
            "vllm:inter_token_latency_seconds",
            "Histogram of inter-token latency in seconds.",
            &labels,
            &self.inter_token_latency,
        );
        self.requests.render(&mut out, &labels);
        self.render_cache_config(&mut out);
        out.into_text()
    }

    fn render_scheduler(&self, out: &mut Exposition, labels: &Labels) {
        let EngineStats { running, waiting, kv_usage, .. } = self.gauges;
        let running_help = "Number of requests in model execution batches.";
        out.gauge("vllm:num_requests_running", running_help, &[(labels.clone(), running as f64)]);
        let waiting_help = "Number of requests waiting to be processed.";
        out.gauge("vllm:num_requests_waiting", waiting_help, &[(labels.clone(), waiting as f64)]);
        let by_reason = |reason: &str, n: f64| (labels.with("reason", reason), n);
        out.gauge(
            "vllm:num_requests_waiting_by_reason",
            "Number of requests waiting to be processed, by reason: capacity or deferred by a constraint.",
            &[by_reason("capacity", waiting as f64), by_reason("deferred", 0.0)],
        );
        let state = |name: &str, value: f64| (labels.with("sleep_state", name), value);
        out.gauge(
            "vllm:engine_sleep_state",
            "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake.",
            &[state("awake", 1.0), state("weights_offloaded", 0.0), state("discard_all", 0.0)],
        );
        let usage_help = "KV-cache usage. 1 means 100 percent usage.";
        out.gauge("vllm:kv_cache_usage_perc", usage_help, &[(labels.clone(), kv_usage)]);
    }

    fn render_counters(&self, out: &mut Exposition, labels: &Labels) {
        let EngineStats { prefix_cache_queries, prefix_cache_hits, preemptions, .. } = self.gauges;
        let mut counter =
            |name: &str, help: &str, value: u64| out.counter(name, help, &[(labels.clone(), value)]);
        counter(
            "vllm:prefix_cache_queries",
            "Prefix cache queries, in terms of number of queried tokens.",
            prefix_cache_queries,
        );
        counter(
            "vllm:prefix_cache_hits",
            "Prefix cache hits, in terms of number of cached tokens.",
            prefix_cache_hits,
        );
        counter("vllm:external_prefix_cache_queries", "External prefix cache queries, in tokens.", 0);
        counter("vllm:external_prefix_cache_hits", "External prefix cache hits, in tokens.", 0);
        counter("vllm:mm_cache_queries", "Multi-modal cache queries, in items.", 0);
        counter("vllm:mm_cache_hits", "Multi-modal cache hits, in items.", 0);
        counter("vllm:num_preemptions", "Cumulative number of preemption from the engine.", preemptions);
        counter("vllm:prompt_tokens", "Number of prefill tokens processed.", self.prompt_tokens);
        let n_computed = self.prompt_tokens - self.prompt_tokens_cached;
        let by = |label: &str, values: &[(&str, u64)]| -> Vec<(Labels, u64)> {
            values.iter().map(|(value, n)| (labels.with(label, value), *n)).collect()
        };
        let n_cached = self.prompt_tokens_cached;
        out.counter(
            "vllm:prompt_tokens_by_source",
            "Number of prompt tokens by source.",
            &by(
                "source",
                &[("local_compute", n_computed), ("local_cache_hit", n_cached), ("external_kv_transfer", 0)],
            ),
        );
        out.counter(
            "vllm:prompt_tokens_cached",
            "Number of cached prompt tokens.",
            &[(labels.clone(), n_cached)],
        );
        out.counter(
            "vllm:prompt_tokens_cached_by_source",
            "Number of cached prompt tokens by where they were cached.",
            &by(
                "source",
                &[("device", n_cached), ("host", 0), ("p2p", 0), ("disk", 0), ("external_unspecified", 0)],
            ),
        );
        out.counter(
            "vllm:generation_tokens",
            "Number of generation tokens processed.",
            &[(labels.clone(), self.generation_tokens)],
        );
        let finished: Vec<_> = FINISHED_REASONS.into_iter().zip(self.finished_by_reason).collect();
        out.counter(
            "vllm:request_success",
            "Count of successfully processed requests.",
            &by("finished_reason", &finished),
        );
    }

    fn render_cache_config(&self, out: &mut Exposition) {
        let mut labels = vec![("engine", "0")];
        labels.extend(self.config.cache_config.iter().map(|(name, value)| (*name, value.as_str())));
        let help = "Information of the LLMEngine CacheConfig";
        out.gauge("vllm:cache_config_info", help, &[(Labels::new(&labels), 1.0)]);
    }
}

// === impl RequestHistograms ===

impl RequestHistograms {
    fn new(max_model_len: u32) -> Self {
        let token_buckets = histogram::one_two_five(max_model_len);
        let tokens = || Histogram::new(&token_buckets);
        let seconds = || Histogram::new(REQUEST_BUCKETS);
        Self {
            time_per_output_token: Histogram::new(ITL_BUCKETS),
            e2e: seconds(),
            queue: seconds(),
            inference: seconds(),
            prefill: seconds(),
            decode: seconds(),
            prompt_tokens: tokens(),
            generation_tokens: tokens(),
            max_num_generation_tokens: tokens(),
            params_max_tokens: tokens(),
            params_n: Histogram::new(N_BUCKETS),
            prefill_kv_computed_tokens: tokens(),
            num_preemptions: Histogram::new(PREEMPTION_BUCKETS),
        }
    }

    fn observe(&mut self, request: &FinishedRequest) {
        let FinishedRequest {
            reason: _,
            n_prompt_tokens,
            cached_tokens,
            n_generation_tokens,
            max_tokens,
            n_preemptions,
            e2e,
            queue,
            prefill,
            decode,
            inference,
        } = *request;
        let n_intervals = f64::from(n_generation_tokens.saturating_sub(1).max(1));
        self.time_per_output_token.observe(decode.as_secs_f64() / n_intervals);
        self.e2e.observe(e2e.as_secs_f64());
        self.queue.observe(queue.as_secs_f64());
        self.inference.observe(inference.as_secs_f64());
        self.prefill.observe(prefill.as_secs_f64());
        self.decode.observe(decode.as_secs_f64());
        self.prompt_tokens.observe(n_prompt_tokens as f64);
        self.generation_tokens.observe(f64::from(n_generation_tokens));
        self.max_num_generation_tokens.observe(f64::from(n_generation_tokens));
        if let Some(max_tokens) = max_tokens {
            self.params_max_tokens.observe(f64::from(max_tokens));
        }
        self.params_n.observe(1.0);
        self.prefill_kv_computed_tokens.observe(n_prompt_tokens as f64 - f64::from(cached_tokens));
        self.num_preemptions.observe(f64::from(n_preemptions));
    }

    fn render(&self, out: &mut Exposition, labels: &Labels) {
        let series: [(&str, &str, &Histogram); 13] = [
            (
                "time_per_output_token_seconds",
                "time per output token per request",
                &self.time_per_output_token,
            ),
            ("prompt_tokens", "number of prefill tokens processed", &self.prompt_tokens),
            ("generation_tokens", "number of generation tokens processed", &self.generation_tokens),
            (
                "max_num_generation_tokens",
                "maximum number of requested generation tokens",
                &self.max_num_generation_tokens,
            ),
            ("params_n", "the n request parameter", &self.params_n),
            ("params_max_tokens", "the max_tokens request parameter", &self.params_max_tokens),
            ("queue_time_seconds", "time spent in WAITING phase for request", &self.queue),
            ("inference_time_seconds", "time spent in RUNNING phase for request", &self.inference),
            ("prefill_time_seconds", "time spent in PREFILL phase for request", &self.prefill),
            ("decode_time_seconds", "time spent in DECODE phase for request", &self.decode),
            (
                "prefill_kv_computed_tokens",
                "new KV tokens computed during prefill (excluding cached tokens)",
                &self.prefill_kv_computed_tokens,
            ),
            ("num_preemptions", "preemptions per request", &self.num_preemptions),
            ("e2e", "e2e request latency in seconds", &self.e2e),
        ];
        for (name, what, histogram) in series {
            let name = match name {
                "e2e" => "vllm:e2e_request_latency_seconds".to_owned(),
                _ => format!("vllm:request_{name}"),
            };
            out.histogram(&name, &format!("Histogram of {what}."), labels, histogram);
        }
    }
}
