//! The picker's own metrics: upstream's name if upstream has the metric, otherwise a name with `epp_`.

pub mod models;
mod process;
pub mod standing;

use std::fmt;
use std::sync::Arc;

use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use self::models::Models;
use self::standing::Standing;
use ext_proc::budget::Budget;

/// Label value for a model name that no InferenceModel has, so that clients cannot make up label values.
pub const UNLISTED_MODEL: &str = "unlisted";

/// Content type of [`Metrics::encode`].
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Content type of [`Metrics::encode_classic`].
pub const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Buckets of upstream's `inference_extension_scheduler_e2e_duration_seconds`, and smaller ones below them.
const DECISION_SECONDS: [f64; 12] =
    [0.000_01, 0.000_03, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1];
/// Every second bucket of upstream's `request_sizes`, in bytes: powers of two to 64 MiB.
const REQUEST_BYTES: [f64; 11] = [
    64.0,
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
/// Buckets of upstream's `response_sizes`, in bytes, with its 32778.
const RESPONSE_BYTES: [f64; 15] = [
    1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32778.0,
    65536.0,
];
/// Buckets of upstream's `input_tokens`, with its 32778.
const INPUT_TOKENS: [f64; 19] = [
    1.0,
    8.0,
    16.0,
    32.0,
    64.0,
    128.0,
    256.0,
    512.0,
    1024.0,
    2048.0,
    4096.0,
    8192.0,
    16384.0,
    32778.0,
    65536.0,
    131_072.0,
    262_144.0,
    524_288.0,
    1_048_576.0,
];
/// Buckets of upstream's `output_tokens`.
const OUTPUT_TOKENS: [f64; 12] =
    [1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0];
/// Buckets of upstream's `request_duration_seconds`.
const REQUEST_SECONDS: [f64; 35] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0,
    3600.0,
];
/// Buckets of upstream's `normalized_time_per_output_token_seconds`.
const SECONDS_PER_TOKEN: [f64; 13] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
/// Buckets of the cached tokens beyond the prediction, as a share of the prompt.
const ESTIMATE_ERROR: [f64; 13] = [-0.9, -0.7, -0.5, -0.3, -0.2, -0.1, -0.05, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0];
/// Buckets of the age of a peer's events when they are applied.
const STALENESS_SECONDS: [f64; 10] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0];
const RATIO: [f64; 11] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

type HistogramFamily<L> = Family<L, Histogram, fn() -> Histogram>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ModelLabels {
    pub model_name: String,
    pub target_model_name: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ModelErrorLabels {
    pub model_name: String,
    pub target_model_name: String,
    pub error_code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RunningLabels {
    pub model_name: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PickLabels {
    /// `namespace/name`.
    pub pool: Arc<str>,
    pub strategy: &'static str,
    pub reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct OutcomeLabels {
    pub outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReasonLabels {
    pub reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PeerLabels {
    /// Address of the peer, `ip:port`.
    pub peer: String,
}

/// Counts one thing in a gauge, until it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Counted(Gauge);

/// A gauge of the bytes that a budget counts as held.
#[derive(Debug)]
struct BufferedBytes(Arc<Budget>);

/// Metrics that the process counts. Those that are computed when they are read are in a [`Standing`].
pub struct Metrics {
    registry: Registry,
    pub models: Models,
    pub request_errors: Family<ModelErrorLabels, Counter>,
    pub decision_seconds: Histogram,
    pub prefix_hit_ratio: Histogram,
    pub prefix_hit_bytes: Histogram,
    pub prefix_estimate_error: Histogram,
    pub prefix_corrections: Counter,
    pub prefix_corrected_blocks: Counter,
    pub picks: Family<PickLabels, Counter>,
    pub refusals: Family<OutcomeLabels, Counter>,
    pub scrapes: Family<OutcomeLabels, Counter>,
    pub scrape_failures: Family<ReasonLabels, Counter>,
    pub endpoint_task_panics: Counter,
    pub streams: Gauge,
    pub served_elsewhere: Counter,
    pub unreported_responses: Counter,
    pub peer_connected: Family<PeerLabels, Gauge>,
    pub peer_insertions: Family<PeerLabels, Counter>,
    pub peer_missed: Family<PeerLabels, Counter>,
    pub peer_staleness: Histogram,
    pub kv_events: Counter,
    pub kv_event_streams: Gauge,
    pub kv_event_gaps: Counter,
    pub kv_event_losses: Counter,
    pub tokenize_seconds: Histogram,
    pub tokenize_failures: Counter,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            models: Models::default(),
            request_errors: Family::default(),
            decision_seconds: Histogram::new(DECISION_SECONDS),
            prefix_hit_ratio: Histogram::new(RATIO),
            prefix_hit_bytes: Histogram::new(REQUEST_BYTES),
            prefix_estimate_error: Histogram::new(ESTIMATE_ERROR),
            prefix_corrections: Counter::default(),
            prefix_corrected_blocks: Counter::default(),
            picks: Family::default(),
            refusals: Family::default(),
            scrapes: Family::default(),
            scrape_failures: Family::default(),
            endpoint_task_panics: Counter::default(),
            streams: Gauge::default(),
            served_elsewhere: Counter::default(),
            unreported_responses: Counter::default(),
            peer_connected: Family::default(),
            peer_insertions: Family::default(),
            peer_missed: Family::default(),
            peer_staleness: Histogram::new(STALENESS_SECONDS),
            kv_events: Counter::default(),
            kv_event_streams: Gauge::default(),
            kv_event_gaps: Counter::default(),
            kv_event_losses: Counter::default(),
            tokenize_seconds: Histogram::new(DECISION_SECONDS),
            tokenize_failures: Counter::default(),
        };
        metrics.register_upstream();
        metrics.register_own();
        metrics.register_events();
        metrics.registry.register_collector(Box::new(process::ProcessCollector));
        metrics
    }
}

impl Counted {
    pub fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl EncodeMetric for BufferedBytes {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&u64::try_from(self.0.held_bytes()).unwrap_or(u64::MAX))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

impl Metrics {
    /// Registers the log's counter, which exists before these metrics.
    pub fn register_dropped_lines(&mut self, n_lines: Counter) {
        let help = "Lines of the log that were dropped because nobody read them";
        self.registry.register("epp_log_dropped_lines", help, n_lines);
    }

    /// Registers what bodies hold, as the budget counts it.
    pub fn register_budget(&mut self, budget: Arc<Budget>) {
        let help = "Bytes of bodies that are held, bounded by --max-buffered-bytes";
        self.registry.register("epp_buffered_bytes", help, BufferedBytes(budget));
    }

    /// Shows the state of the connection to an API server.
    #[cfg(feature = "kubernetes")]
    pub fn register_cluster(
        &mut self,
        watch_state: tokio::sync::watch::Receiver<pool_watch::watches::WatchState>,
    ) {
        self.registry
            .register_collector(Box::new(pool_watch::metrics::WatchStateCollector::new("epp", watch_state)));
    }

    /// All metrics in the OpenMetrics text format.
    #[must_use]
    pub fn encode(&self, standing: &Standing) -> String {
        let mut body = String::new();
        let encoded = [&self.registry, &standing.registry()]
            .into_iter()
            .try_for_each(|registry| text::encode_registry(&mut body, registry));
        encoded.and_then(|()| text::encode_eof(&mut body)).expect("a string takes everything");
        body
    }

    /// All metrics in the older text format, in which a counter's comments have its full name, and bounds have no `.0`.
    #[must_use]
    pub fn encode_classic(&self, standing: &Standing) -> String {
        let text = self.encode(standing);
        let mut out = String::with_capacity(text.len());
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            match line.split_once(' ').map(|(hash, rest)| (hash, rest.split_once(' '))) {
                Some(("#", Some(("HELP", help)))) => {
                    let (name, help) = help.split_once(' ').unwrap_or((help, ""));
                    let is_counter = lines.peek().is_some_and(|next| next.ends_with(" counter"));
                    let suffix = if is_counter { "_total" } else { "" };
                    out += &format!("# HELP {name}{suffix} {help}\n");
                }
                Some(("#", Some(("TYPE", kind)))) => match kind.strip_suffix(" counter") {
                    Some(name) => out += &format!("# TYPE {name}_total counter\n"),
                    None => out += &format!("{line}\n"),
                },
                // The format does not know the end mark and units.
                Some(("#", _)) => {}
                _ => out += &format!("{}\n", without_fraction(line)),
            }
        }
        out
    }

    /// Registers the names of Gateway API Inference Extension v0.3 and v0.4; the library adds `_total` and a full stop.
    fn register_upstream(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "inference_model_request",
            "[ALPHA] Counter of inference model requests broken out for each model and target model",
            self.models.families.requests.clone(),
        );
        registry.register(
            "inference_model_request_error",
            "[ALPHA] Counter of inference model requests errors broken out for each model and target model",
            self.request_errors.clone(),
        );
        registry.register(
            "inference_model_running_requests",
            "[ALPHA] Inference model number of running requests in each model",
            self.models.families.running_requests.clone(),
        );
        registry.register(
            "inference_model_request_sizes",
            "[ALPHA] Inference model requests size distribution in bytes for each model and target model",
            self.models.families.request_bytes.clone(),
        );
        registry.register(
            "inference_model_response_sizes",
            "[ALPHA] Inference model responses size distribution in bytes for each model and target model",
            self.models.families.response_bytes.clone(),
        );
        registry.register(
            "inference_model_request_duration_seconds",
            "[ALPHA] Inference model response latency distribution in seconds for each model and target model",
            self.models.families.request_seconds.clone(),
        );
        registry.register(
            "inference_model_input_tokens",
            "[ALPHA] Inference model input token count distribution for requests in each model",
            self.models.families.input_tokens.clone(),
        );
        registry.register(
            "inference_model_output_tokens",
            "[ALPHA] Inference model output token count distribution for requests in each model",
            self.models.families.output_tokens.clone(),
        );
        registry.register(
            "inference_model_normalized_time_per_output_token_seconds",
            "[ALPHA] Inference model latency divided by number of output tokens in seconds for each model and target model",
            self.models.families.seconds_per_output_token.clone(),
        );
        self.register_upstream_scheduler();
    }

    fn register_upstream_scheduler(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "inference_extension_scheduler_e2e_duration_seconds",
            "[ALPHA] End-to-end scheduling latency distribution in seconds",
            self.decision_seconds.clone(),
        );
        registry.register(
            "inference_extension_prefix_indexer_hit_ratio",
            "[ALPHA] Ratio of prefix length matched to total prefix length in the cache lookup",
            self.prefix_hit_ratio.clone(),
        );
        registry.register(
            "inference_extension_prefix_indexer_hit_bytes",
            "[ALPHA] Length of the prefix match in number of bytes in the cache lookup",
            self.prefix_hit_bytes.clone(),
        );
    }

    fn register_own(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "epp_prompt_cached_tokens",
            "Prompt tokens that the engine found in its cache, as its responses say",
            self.models.families.prompt_cached_tokens.clone(),
        );
        registry.register(
            "epp_prefix_estimate_error_ratio",
            "Cached prompt tokens that the response reports less those that were predicted, by the prompt's tokens",
            self.prefix_estimate_error.clone(),
        );
        registry.register(
            "epp_prefix_corrections",
            "Responses that showed that the endpoint had lost what it was believed to hold",
            self.prefix_corrections.clone(),
        );
        registry.register(
            "epp_prefix_corrected_blocks",
            "Blocks that the index forgot for that",
            self.prefix_corrected_blocks.clone(),
        );
        registry.register("epp_picks", "Requests that got an endpoint, by the rule", self.picks.clone());
        registry.register(
            "epp_refusals",
            "Requests that got an ImmediateResponse, by the reason",
            self.refusals.clone(),
        );
        registry.register("epp_scrapes", "Scrapes of endpoints, by their outcome", self.scrapes.clone());
        registry.register(
            "epp_scrape_failures",
            "Scrapes of endpoints that told no load, by the reason",
            self.scrape_failures.clone(),
        );
        registry.register(
            "epp_endpoint_task_panics",
            "Tasks that scrape an endpoint and follow its KV events that have panicked, and were started again",
            self.endpoint_task_panics.clone(),
        );
        registry.register("epp_streams", "Open ext_proc streams", self.streams.clone());
        registry.register(
            "epp_served_elsewhere",
            "Requests that the proxy reports as served by another endpoint than the picked one",
            self.served_elsewhere.clone(),
        );
        registry.register(
            "epp_unreported_responses",
            "Requests whose response goes past the picker, and of whose end the proxy has told nothing",
            self.unreported_responses.clone(),
        );
        self.register_peers();
    }
}

impl Metrics {
    fn register_peers(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "epp_peer_connected",
            "1 while the peer's journal is being followed",
            self.peer_connected.clone(),
        );
        registry.register(
            "epp_peer_insertions",
            "Prompts that the peer told that it sent",
            self.peer_insertions.clone(),
        );
        registry.register(
            "epp_peer_missed",
            "Prompts that the peer's journal had forgotten before they were read",
            self.peer_missed.clone(),
        );
        registry.register(
            "epp_peer_staleness_seconds",
            "From the peer's pick until this picker believes it, by both wall clocks",
            self.peer_staleness.clone(),
        );
    }

    /// Registers the metrics of the precise mode.
    fn register_events(&mut self) {
        let registry = &mut self.registry;
        registry.register("epp_kv_events", "KV events of engines that were applied", self.kv_events.clone());
        registry.register(
            "epp_kv_event_streams",
            "Engines whose KV events are followed",
            self.kv_event_streams.clone(),
        );
        registry.register(
            "epp_kv_event_gaps",
            "Times that messages with KV events were missing and asked for again",
            self.kv_event_gaps.clone(),
        );
        registry.register(
            "epp_kv_event_losses",
            "Times that they could not be had any more, so that an engine's cache counted as empty",
            self.kv_event_losses.clone(),
        );
        registry.register(
            "epp_tokenize_seconds",
            "Time that a request waited for its token ids",
            self.tokenize_seconds.clone(),
        );
        registry.register(
            "epp_tokenize_failures",
            "Requests placed by the estimate because their token ids could not be had",
            self.tokenize_failures.clone(),
        );
    }
}

/// Writes a whole bound as Go does: `le="64"` for `le="64.0"`.
fn without_fraction(line: &str) -> String {
    let bound = line.find("le=\"").and_then(|at| {
        let (before, bound) = line.split_at(at + 4);
        let (bound, behind) = bound.split_once('"')?;
        Some(format!("{before}{}\"{behind}", bound.strip_suffix(".0")?))
    });
    bound.unwrap_or_else(|| line.to_owned())
}
