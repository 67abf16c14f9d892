//! Pages of `/metrics` of each version of vLLM, in its order and with its texts (`v1/metrics/loggers.py` of
//! 0.8.5.post1, 0.11.0 and 0.33.0), after the collectors of `prometheus_client` and before those of the web server.

mod sglang;

use super::exposition::{Exposition, Format, Labels, MetricHead, Series};
use super::histogram::Histogram;
use super::http::HttpMetrics;
use super::process::{self, ProcessSample};
use super::requests::RequestHistograms;
use super::{Counters, FINISHED_REASONS, Metrics, MetricsConfig, Runtime, SleepState};
use vllm_engine::engine::EngineStats;
use vllm_engine::vllm_version::VllmVersion;

/// One answer of `/metrics`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scrape<'a> {
    pub format: Format,
    /// Full names of the samples to show, from `name[]`; empty for all.
    pub only: &'a [String],
    /// Sample of the process; `None` if it cannot be read.
    pub process: Option<&'a ProcessSample>,
}

/// Writer of the families of one engine.
struct Page<'m, 'o, 'f> {
    metrics: &'m Metrics,
    labels: Labels,
    out: &'o mut Exposition<'f>,
}

// === impl Scrape ===

impl Scrape<'_> {
    pub fn render(&self, metrics: &Metrics, http: &HttpMetrics) -> String {
        let Self { format, only, process } = *self;
        let mut out = Exposition::new(format, only);
        process::render_python(&mut out);
        if let Some(process) = process {
            process.render(&mut out, metrics.config.created);
        }
        let labels = [
            ("engine", metrics.config.engine.to_string()),
            ("model_name", metrics.config.model_name.clone()),
        ];
        let mut page = Page { metrics, labels: Labels::new(labels), out: &mut out };
        match metrics.config.runtime {
            Runtime::Vllm => page.vllm(),
            Runtime::Sglang => page.sglang(),
        }
        page.lateness();
        http.render(&mut out);
        out.into_text()
    }
}

// === impl Page ===

impl Page<'_, '_, '_> {
    fn vllm(&mut self) {
        self.scheduler();
        self.counters();
        self.token_histograms();
        self.latency_histograms();
        self.phase_histograms();
        self.lora();
        self.cache_config();
    }

    fn version(&self) -> VllmVersion {
        self.metrics.config.version
    }

    fn is_0_33(&self) -> bool {
        self.version() >= VllmVersion::V0_33
    }

    fn scheduler(&mut self) {
        let EngineStats { running, waiting, kv_usage, .. } = self.metrics.gauges;
        self.gauge(
            "vllm:num_requests_running",
            "Number of requests in model execution batches.",
            running as f64,
        );
        self.gauge(
            "vllm:num_requests_waiting",
            "Number of requests waiting to be processed.",
            waiting as f64,
        );
        if self.is_0_33() {
            self.waiting_by_reason();
            self.sleep_state();
        }
        match self.version() {
            VllmVersion::V0_8 => {
                let help = "GPU KV-cache usage. 1 means 100 percent usage.";
                self.gauge("vllm:gpu_cache_usage_perc", help, kv_usage);
                self.gpu_prefix_cache(
                    "GPU prefix cache queries, in terms of number of queried blocks.",
                    "GPU prefix cache hits, in terms of number of cached blocks.",
                );
                return;
            }
            VllmVersion::V0_11 if self.metrics.config.show_hidden => {
                let help = "GPU KV-cache usage. 1 means 100 percent usage.DEPRECATED: Use vllm:kv_cache_usage_perc instead.";
                self.gauge("vllm:gpu_cache_usage_perc", help, kv_usage);
                self.gpu_prefix_cache(
                    "GPU prefix cache queries, in terms of number of queriedtokens. DEPRECATED: Use \
                     vllm:prefix_cache_queries instead.",
                    "GPU prefix cache hits, in terms of number of cached tokens. DEPRECATED: Use \
                     vllm:prefix_cache_hits instead.",
                );
            }
            VllmVersion::V0_11 | VllmVersion::V0_33 => {}
        }
        self.gauge("vllm:kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", kv_usage);
    }

    fn waiting_by_reason(&mut self) {
        let EngineStats { waiting, deferred, .. } = self.metrics.gauges;
        let series = [("capacity", waiting - deferred), ("deferred", deferred)]
            .map(|(reason, n)| self.child("reason", reason, n as f64));
        let help = "Number of waiting requests by reason. Reason labels: 'capacity' = waiting for scheduling \
            capacity; 'deferred' = deferred by transient constraints (LoRA budget, KV transfer, blocked status). Sum \
            of all reasons equals vllm:num_requests_waiting.";
        self.out.gauge(MetricHead { name: "vllm:num_requests_waiting_by_reason", help }, &series);
    }

    fn sleep_state(&mut self) {
        let [awake, offloaded, discarded] = match self.metrics.sleep {
            SleepState::Awake => [1.0, 0.0, 0.0],
            SleepState::Paused => [0.0; 3],
            SleepState::WeightsOffloaded => [0.0, 1.0, 0.0],
            SleepState::DiscardAll => [0.0, 0.0, 1.0],
        };
        let series = [("awake", awake), ("weights_offloaded", offloaded), ("discard_all", discarded)]
            .map(|(state, value)| self.child("sleep_state", state, value));
        let help = "Engine sleep state; awake = 0 means engine is sleeping; awake = 1 means engine is awake; \
            weights_offloaded = 1 means sleep level 1; discard_all = 1 means sleep level 2.";
        self.out.gauge(MetricHead { name: "vllm:engine_sleep_state", help }, &series);
    }

    fn gpu_prefix_cache(&mut self, queries_help: &str, hits_help: &str) {
        let EngineStats { prefix_cache_queries, prefix_cache_hits, .. } = self.metrics.gauges;
        self.counter("vllm:gpu_prefix_cache_queries", queries_help, prefix_cache_queries);
        self.counter("vllm:gpu_prefix_cache_hits", hits_help, prefix_cache_hits);
    }

    fn counters(&mut self) {
        let EngineStats { prefix_cache_queries, prefix_cache_hits, .. } = self.metrics.gauges;
        let Counters { preemptions, prompt_tokens, prompt_tokens_cached, generation_tokens, .. } =
            self.metrics.counters;
        if self.version() >= VllmVersion::V0_11 {
            let help = "Prefix cache queries, in terms of number of queried tokens.";
            self.counter("vllm:prefix_cache_queries", help, prefix_cache_queries);
            let help = "Prefix cache hits, in terms of number of cached tokens.";
            self.counter("vllm:prefix_cache_hits", help, prefix_cache_hits);
        }
        if self.is_0_33() {
            self.unused_caches();
        }
        let help = "Cumulative number of preemption from the engine.";
        self.counter("vllm:num_preemptions", help, preemptions);
        self.counter("vllm:prompt_tokens", "Number of prefill tokens processed.", prompt_tokens);
        if self.is_0_33() {
            self.prompt_tokens_by_source(prompt_tokens, prompt_tokens_cached, prefix_cache_hits);
        }
        self.counter("vllm:generation_tokens", "Number of generation tokens processed.", generation_tokens);
        let n_reasons = if self.is_0_33() { FINISHED_REASONS.len() } else { 3 };
        let finished = FINISHED_REASONS.into_iter().zip(self.metrics.counters.finished_by_reason);
        let series: Vec<_> = finished
            .take(n_reasons)
            .map(|(reason, n)| self.child("finished_reason", reason, n as f64))
            .collect();
        let help = "Count of successfully processed requests.";
        self.out.counter(MetricHead { name: "vllm:request_success", help }, &series);
        if self.is_0_33() {
            self.admission_rejections();
        }
    }

    /// Writes the metrics of caches that do not exist here: of a KV connector and of images.
    fn unused_caches(&mut self) {
        let unused = [
            (
                "vllm:external_prefix_cache_queries",
                "External prefix cache queries from KV connector cross-instance cache sharing, in terms of number of \
                 queried tokens.",
            ),
            (
                "vllm:external_prefix_cache_hits",
                "External prefix cache hits from KV connector cross-instance cache sharing, in terms of number of \
                 cached tokens.",
            ),
            ("vllm:mm_cache_queries", "Multi-modal cache queries, in terms of number of queried items."),
            ("vllm:mm_cache_hits", "Multi-modal cache hits, in terms of number of cached items."),
        ];
        for (name, help) in unused {
            self.counter(name, help, 0);
        }
    }

    /// Writes prompt tokens by source. `n_hits` counts when a request is admitted, the other two at its first token.
    fn prompt_tokens_by_source(&mut self, n_prompt: u64, n_cached: u64, n_hits: u64) {
        let by_source = |sources: &[(&'static str, u64)]| -> Vec<_> {
            sources.iter().map(|(source, n)| self.child("source", source, *n as f64)).collect()
        };
        let series = by_source(&[
            ("local_compute", n_prompt - n_cached),
            ("local_cache_hit", n_cached),
            ("external_kv_transfer", 0),
        ]);
        let cached_series = by_source(&[
            ("device", n_hits),
            ("host", 0),
            ("p2p", 0),
            ("disk", 0),
            ("external_unspecified", 0),
        ]);
        let help = "Number of prompt tokens by source.";
        self.out.counter(MetricHead { name: "vllm:prompt_tokens_by_source", help }, &series);
        let help = "Number of cached prompt tokens (local + external).";
        self.counter("vllm:prompt_tokens_cached", help, n_cached);
        let help = "Prefix-cache hit tokens by the cache tier that supplied them: device (local HBM), host (offloaded \
            to DRAM), disk, p2p (transferred from another vLLM instance) or external_unspecified. Counted at \
            admission; sums to vllm:prefix_cache_hits + vllm:external_prefix_cache_hits.";
        self.out.counter(MetricHead { name: "vllm:prompt_tokens_cached_by_source", help }, &cached_series);
    }

    fn admission_rejections(&mut self) {
        let limits = ["max_num_queued_reqs", "max_num_queued_tokens"];
        let created = Some(self.metrics.config.created);
        let model = self.metrics.config.model_name.clone();
        let labels = Labels::new([("model_name", model)]);
        let series: Vec<_> = limits
            .into_iter()
            .zip(self.metrics.counters.rejected_by_limit)
            .map(|(limit, n)| Series { labels: labels.with("reason", limit), value: n as f64, created })
            .collect();
        let help = "Number of admission attempts rejected by a queue limit, by reason.";
        self.out.counter(MetricHead { name: "vllm:admission_rejections", help }, &series);
    }

    fn token_histograms(&mut self) {
        let Metrics { iteration_tokens, requests, .. } = self.metrics;
        let RequestHistograms {
            prompt_tokens,
            generation_tokens,
            max_num_generation_tokens,
            params_n,
            params_max_tokens,
            ..
        } = requests;
        self.histogram("vllm:request_prompt_tokens", "Number of prefill tokens processed.", prompt_tokens);
        let help = "Number of generation tokens processed.";
        self.histogram("vllm:request_generation_tokens", help, generation_tokens);
        let help = "Histogram of number of tokens per engine_step.";
        self.histogram("vllm:iteration_tokens_total", help, iteration_tokens);
        let help = "Histogram of maximum number of requested generation tokens.";
        self.histogram("vllm:request_max_num_generation_tokens", help, max_num_generation_tokens);
        self.histogram("vllm:request_params_n", "Histogram of the n request parameter.", params_n);
        let help = "Histogram of the max_tokens request parameter.";
        self.histogram("vllm:request_params_max_tokens", help, params_max_tokens);
    }

    fn latency_histograms(&mut self) {
        let Metrics { time_to_first_token, inter_token_latency, requests, .. } = self.metrics;
        let help = "Histogram of time to first token in seconds.";
        self.histogram("vllm:time_to_first_token_seconds", help, time_to_first_token);
        let deprecated = match self.version() {
            VllmVersion::V0_8 => Some("Histogram of time per output token in seconds."),
            VllmVersion::V0_11 => Some(
                "Histogram of time per output token in seconds.DEPRECATED: Use vllm:inter_token_latency_seconds \
                 instead.",
            ),
            VllmVersion::V0_33 => None,
        };
        if let Some(help) = deprecated {
            self.histogram("vllm:time_per_output_token_seconds", help, inter_token_latency);
        }
        if self.version() >= VllmVersion::V0_11 {
            let help = "Histogram of inter-token latency in seconds.";
            self.histogram("vllm:inter_token_latency_seconds", help, inter_token_latency);
            let help = "Histogram of time_per_output_token_seconds per request.";
            let name = "vllm:request_time_per_output_token_seconds";
            self.histogram(name, help, &requests.time_per_output_token);
        }
    }

    fn phase_histograms(&mut self) {
        let RequestHistograms {
            e2e,
            queue,
            inference,
            prefill,
            decode,
            num_preemptions,
            prefill_kv_computed_tokens,
            ..
        } = &self.metrics.requests;
        let help = "Histogram of e2e request latency in seconds.";
        self.histogram("vllm:e2e_request_latency_seconds", help, e2e);
        let help = "Histogram of time spent in WAITING phase for request.";
        self.histogram("vllm:request_queue_time_seconds", help, queue);
        let help = "Histogram of time spent in RUNNING phase for request.";
        self.histogram("vllm:request_inference_time_seconds", help, inference);
        let help = "Histogram of time spent in PREFILL phase for request.";
        self.histogram("vllm:request_prefill_time_seconds", help, prefill);
        let help = "Histogram of time spent in DECODE phase for request.";
        self.histogram("vllm:request_decode_time_seconds", help, decode);
        if self.is_0_33() {
            let help = "Histogram of the number of times a request was preempted.";
            self.histogram("vllm:request_num_preemptions", help, num_preemptions);
            let help = "Histogram of new KV tokens computed during prefill (excluding cached tokens).";
            self.histogram("vllm:request_prefill_kv_computed_tokens", help, prefill_kv_computed_tokens);
        }
    }

    fn lora(&mut self) {
        let Some(max_loras) = self.metrics.config.max_loras else { return };
        let series: Vec<_> = self
            .metrics
            .lora
            .series
            .iter()
            .map(|(combination, at)| Series {
                labels: Labels::new([
                    ("max_lora", max_loras.to_string()),
                    ("running_lora_adapters", combination.running.clone()),
                    ("waiting_lora_adapters", combination.waiting.clone()),
                ]),
                value: *at,
                created: None,
            })
            .collect();
        let help = "Running stats on lora requests.";
        self.out.gauge(MetricHead { name: "vllm:lora_requests_info", help }, &series);
    }

    fn cache_config(&mut self) {
        let labels = Labels::new(self.metrics.config.cache_config.iter().cloned());
        let labels = if self.version() >= VllmVersion::V0_11 {
            labels.with("engine", self.metrics.config.engine.to_string())
        } else {
            labels
        };
        let help = "Information of the LLMEngine CacheConfig";
        let series = [Series { labels, value: 1.0, created: None }];
        self.out.gauge(MetricHead { name: "vllm:cache_config_info", help }, &series);
    }

    fn lateness(&mut self) {
        let MetricsConfig { lateness, created, .. } = &self.metrics.config;
        if let Some(lateness) = lateness {
            lateness.render(self.out, &self.labels, *created);
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        let series = [Series { labels: self.labels.clone(), value, created: None }];
        self.out.gauge(MetricHead { name, help }, &series);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        let created = Some(self.metrics.config.created);
        let series = [Series { labels: self.labels.clone(), value: value as f64, created }];
        self.out.counter(MetricHead { name, help }, &series);
    }

    fn histogram(&mut self, name: &str, help: &str, value: &Histogram) {
        let created = Some(self.metrics.config.created);
        let series = [Series { labels: self.labels.clone(), value, created }];
        self.out.histogram(MetricHead { name, help }, &series);
    }

    fn child(&self, label: &'static str, value_of_label: &'static str, value: f64) -> Series<f64> {
        let labels = self.labels.with(label, value_of_label);
        Series { labels, value, created: Some(self.metrics.config.created) }
    }
}
