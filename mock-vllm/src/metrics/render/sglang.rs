//! SGLang's names for what the mock counts (`python/sglang/srt/metrics/collector.py` of 0.5).

use super::Page;
use crate::metrics::requests::RequestHistograms;
use crate::metrics::{Counters, Metrics};
use vllm_engine::engine::EngineStats;

impl Page<'_, '_, '_> {
    pub(super) fn sglang(&mut self) {
        let EngineStats { running, waiting, kv_usage, prefix_cache_queries, prefix_cache_hits, .. } =
            self.metrics.gauges;
        self.gauge("sglang:num_running_reqs", "The number of running requests.", running as f64);
        self.gauge("sglang:num_queue_reqs", "The number of requests in the waiting queue.", waiting as f64);
        self.gauge("sglang:token_usage", "The token usage.", kv_usage);
        let hit_rate = match prefix_cache_queries {
            0 => 0.0,
            n_queries => prefix_cache_hits as f64 / n_queries as f64,
        };
        self.gauge("sglang:cache_hit_rate", "The prefix cache hit rate.", hit_rate);
        let Counters { prompt_tokens, prompt_tokens_cached, generation_tokens, finished_by_reason, .. } =
            self.metrics.counters;
        self.counter("sglang:prompt_tokens", "Number of prefill tokens processed.", prompt_tokens);
        self.counter("sglang:generation_tokens", "Number of generation tokens processed.", generation_tokens);
        self.counter("sglang:cached_tokens", "Number of cached prompt tokens.", prompt_tokens_cached);
        let n_finished = finished_by_reason.iter().sum();
        self.counter("sglang:num_requests", "Number of requests processed.", n_finished);
        let Metrics { time_to_first_token, inter_token_latency, requests, .. } = self.metrics;
        let RequestHistograms { e2e, .. } = requests;
        self.histogram(
            "sglang:time_to_first_token_seconds",
            "Histogram of time to first token in seconds.",
            time_to_first_token,
        );
        self.histogram(
            "sglang:inter_token_latency_seconds",
            "Histogram of inter-token latency in seconds.",
            inter_token_latency,
        );
        self.histogram(
            "sglang:e2e_request_latency_seconds",
            "Histogram of End-to-end request latency in seconds",
            e2e,
        );
    }
}
