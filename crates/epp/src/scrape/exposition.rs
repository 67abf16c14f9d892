//! The few gauges that the picker needs, out of an engine's Prometheus text; each engine names them its own way.

use inference_api::pool::ModelServerRuntime;

use crate::candidates::Adapters;

/// What one answer says. Absent metrics are zero.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gauges {
    /// Requests in the queue, summed over the engines of the process.
    pub waiting: u32,
    /// Requests in the batch, summed likewise.
    pub running: u32,
    /// Share of the KV cache that is in use; the fullest engine's.
    pub kv_usage: f64,
    /// `process_start_time_seconds`.
    pub started: Option<f64>,
    /// Prompt tokens counted since the process began, summed over its engines.
    pub prompt_tokens: Option<f64>,
    /// Size of the KV cache in tokens, summed likewise.
    pub kv_tokens: Option<u64>,
    /// `vllm:lora_requests_info`, where the engine serves adapters.
    pub adapters: Option<Adapters>,
}

/// Which gauge a line holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Gauge {
    Waiting,
    Running,
    KvUsage,
    Adapters,
    PromptTokens,
    /// Its labels say how many blocks of how many tokens there are.
    CacheConfig,
}

/// A metric's name, the label that tells it from others of that name, and what it is.
type Row = (&'static str, Option<(&'static str, &'static str)>, Gauge);

/// vLLM renamed the cache's usage in 0.10.
const VLLM: [Row; 7] = [
    ("vllm:num_requests_waiting", None, Gauge::Waiting),
    ("vllm:num_requests_running", None, Gauge::Running),
    ("vllm:kv_cache_usage_perc", None, Gauge::KvUsage),
    ("vllm:gpu_cache_usage_perc", None, Gauge::KvUsage),
    ("vllm:lora_requests_info", None, Gauge::Adapters),
    ("vllm:prompt_tokens_total", None, Gauge::PromptTokens),
    ("vllm:cache_config_info", None, Gauge::CacheConfig),
];
const SGLANG: [Row; 4] = [
    ("sglang:num_queue_reqs", None, Gauge::Waiting),
    ("sglang:num_running_reqs", None, Gauge::Running),
    ("sglang:token_usage", None, Gauge::KvUsage),
    ("sglang:prompt_tokens_total", None, Gauge::PromptTokens),
];
/// Triton's batch manager.
const TRT_LLM: [Row; 3] = [
    ("nv_trt_llm_request_metrics", Some(("request_type", "waiting")), Gauge::Waiting),
    ("nv_trt_llm_request_metrics", Some(("request_type", "scheduled")), Gauge::Running),
    ("nv_trt_llm_kv_cache_block_metrics", Some(("kv_cache_block_type", "fraction")), Gauge::KvUsage),
];
const TRTLLM_SERVE: [Row; 3] = [
    ("trtllm_num_requests_waiting", None, Gauge::Waiting),
    ("trtllm_num_requests_running", None, Gauge::Running),
    ("trtllm_kv_cache_utilization", None, Gauge::KvUsage),
];
const STARTED: &[u8] = b"process_start_time_seconds";

/// The names of an engine, and what all of them begin with.
fn names(runtime: ModelServerRuntime) -> (&'static [u8], &'static [Row]) {
    match runtime {
        ModelServerRuntime::Vllm => (b"vllm:", &VLLM),
        ModelServerRuntime::Sglang => (b"sglang:", &SGLANG),
        ModelServerRuntime::TrtLlm => (b"nv_trt_llm_", &TRT_LLM),
        ModelServerRuntime::TrtllmServe => (b"trtllm_", &TRTLLM_SERVE),
    }
}

/// The query that makes `prometheus_client`'s own app leave everything else out.
#[must_use]
pub fn filter(runtime: ModelServerRuntime) -> String {
    let (_, rows) = names(runtime);
    let own = std::str::from_utf8(STARTED).unwrap_or_default();
    let names = rows.iter().map(|(name, _, _)| *name).chain([own]);
    names.map(|name| format!("name%5B%5D={name}")).collect::<Vec<_>>().join("&")
}

/// Whether the text has any metric of the engine that the picker reads.
#[must_use]
pub fn is_of(body: &[u8], runtime: ModelServerRuntime) -> bool {
    let (_, rows) = names(runtime);
    let begins_row = |line: &[u8]| rows.iter().any(|(name, _, _)| line.starts_with(name.as_bytes()));
    body.split(|&byte| byte == b'\n').any(begins_row)
}

/// Reads Prometheus or OpenMetrics text; lines that it does not know are skipped at the first letters.
#[must_use]
pub fn parse(body: &[u8], runtime: ModelServerRuntime) -> Gauges {
    let (prefix, rows) = names(runtime);
    let mut gauges = Gauges::default();
    let mut newest_adapters = f64::NEG_INFINITY;
    let mut base_models = Vec::new();
    for line in body.split(|&byte| byte == b'\n') {
        if line.starts_with(STARTED) {
            gauges.started = Sample::new(line).and_then(|sample| sample.value);
        }
        if !line.starts_with(prefix) {
            continue;
        }
        let Some(sample) = Sample::new(line) else { continue };
        let is_row = |(name, label, _): &&Row| {
            sample.name == *name && label.is_none_or(|(key, value)| sample.label(key) == Some(value))
        };
        match rows.iter().find(is_row).map(|(_, _, gauge)| gauge) {
            None => {}
            Some(Gauge::Waiting) => {
                gauges.waiting = gauges.waiting.saturating_add(sample.count());
                base_models.extend(sample.label("model_name").map(str::to_owned));
            }
            Some(Gauge::Running) => gauges.running = gauges.running.saturating_add(sample.count()),
            Some(Gauge::KvUsage) => {
                gauges.kv_usage = gauges.kv_usage.max(sample.value.unwrap_or(0.0).clamp(0.0, 1.0));
            }
            // Of several series the one with the largest value, a timestamp, is the latest.
            Some(Gauge::Adapters) if sample.value.is_some_and(|value| value > newest_adapters) => {
                newest_adapters = sample.value.unwrap_or(newest_adapters);
                gauges.adapters = adapters(&sample);
            }
            Some(Gauge::Adapters) => {}
            Some(Gauge::PromptTokens) => {
                *gauges.prompt_tokens.get_or_insert(0.0) += sample.value.unwrap_or(0.0);
            }
            Some(Gauge::CacheConfig) => {
                if let Some(kv_tokens) = kv_tokens(&sample) {
                    *gauges.kv_tokens.get_or_insert(0) += kv_tokens;
                }
            }
        }
    }
    if let Some(adapters) = &mut gauges.adapters {
        adapters.base_models = base_models;
    }
    gauges
}

/// `None` for an engine that can hold no adapter.
fn adapters(sample: &Sample<'_>) -> Option<Adapters> {
    let max = sample.label("max_lora")?.parse().ok().filter(|max| *max > 0)?;
    let names = ["running_lora_adapters", "waiting_lora_adapters"]
        .into_iter()
        .filter_map(|key| sample.label(key))
        .flat_map(|names| names.split(','))
        .map(str::trim)
        .filter(|name| !name.is_empty());
    Some(Adapters { names: names.map(str::to_owned).collect(), max, base_models: Vec::new() })
}

/// `None` where the labels do not say, as before the cache is allocated.
fn kv_tokens(sample: &Sample<'_>) -> Option<u64> {
    let number = |key| sample.label(key)?.parse::<u64>().ok();
    number("block_size")?.checked_mul(number("num_gpu_blocks")?).filter(|kv_tokens| *kv_tokens > 0)
}

/// A line, taken apart.
struct Sample<'a> {
    name: &'a str,
    /// `key="value",…` without the braces.
    labels: &'a str,
    value: Option<f64>,
}

impl<'a> Sample<'a> {
    fn new(line: &'a [u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let name_end = line.find(['{', ' ']).unwrap_or(line.len());
        let (name, rest) = line.split_at(name_end);
        let (labels, rest) = match (rest.strip_prefix('{'), rest.rfind('}')) {
            (Some(inner), Some(end)) => (inner.get(..end - 1)?, &rest[end + 1..]),
            _ => ("", rest),
        };
        // A timestamp may follow the value.
        let value = rest.split_ascii_whitespace().next().and_then(|value| value.parse().ok());
        Some(Self { name, labels, value: value.filter(|value: &f64| !value.is_nan()) })
    }

    /// The label's value as it is written; names of models and adapters have nothing to escape.
    fn label(&self, key: &str) -> Option<&'a str> {
        let mut rest = self.labels;
        loop {
            let (name, tail) = rest.split_once("=\"")?;
            let end = tail.char_indices().scan(false, |escaped, (idx, char)| {
                let ends = char == '"' && !*escaped;
                *escaped = char == '\\' && !*escaped;
                Some((idx, ends))
            });
            let (end, _) = end.into_iter().find(|(_, ends)| *ends)?;
            if name.trim_start_matches([',', ' ']) == key {
                return Some(&tail[..end]);
            }
            rest = &tail[end + 1..];
        }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "clamped to the range of u32 before"
    )]
    fn count(&self) -> u32 {
        self.value.unwrap_or(0.0).clamp(0.0, f64::from(u32::MAX)) as u32
    }
}
