//! Reads the few numbers that the picker needs from an engine's Prometheus text; each engine has its own names for them.

use inference_api::pool::ModelServerRuntime;
use picking::endpoint::{Adapters, Sample};

/// The text does not contain the load. Lists the metrics that are missing or whose value is not a count or a share.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no value of {}", .0.join(", "))]
pub struct NoLoad(pub Vec<&'static str>);

/// The gauge in a line.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Gauge {
    Waiting,
    Running,
    KvUsage,
    Adapters,
    PromptTokens,
    /// Number of first tokens: of the times that were observed until one.
    FirstTokens,
    /// Number and size of blocks, in the labels.
    CacheConfig,
}

/// Name of a metric, the label that distinguishes it from others of that name, and the gauge.
type Row = (&'static str, Option<(&'static str, &'static str)>, Gauge);

/// vLLM's names; 0.10 renamed the cache usage.
const VLLM: [Row; 8] = [
    ("vllm:num_requests_waiting", None, Gauge::Waiting),
    ("vllm:num_requests_running", None, Gauge::Running),
    ("vllm:kv_cache_usage_perc", None, Gauge::KvUsage),
    ("vllm:gpu_cache_usage_perc", None, Gauge::KvUsage),
    ("vllm:lora_requests_info", None, Gauge::Adapters),
    ("vllm:prompt_tokens_total", None, Gauge::PromptTokens),
    ("vllm:time_to_first_token_seconds_count", None, Gauge::FirstTokens),
    ("vllm:cache_config_info", None, Gauge::CacheConfig),
];
const SGLANG: [Row; 5] = [
    ("sglang:num_queue_reqs", None, Gauge::Waiting),
    ("sglang:num_running_reqs", None, Gauge::Running),
    ("sglang:token_usage", None, Gauge::KvUsage),
    ("sglang:prompt_tokens_total", None, Gauge::PromptTokens),
    ("sglang:time_to_first_token_seconds_count", None, Gauge::FirstTokens),
];
/// Names of Triton's batch manager.
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
const STARTED: &str = "process_start_time_seconds";

/// The names of an engine's metrics, and their common prefix.
fn names(runtime: ModelServerRuntime) -> (&'static [u8], &'static [Row]) {
    match runtime {
        ModelServerRuntime::Vllm => (b"vllm:", &VLLM),
        ModelServerRuntime::Sglang => (b"sglang:", &SGLANG),
        ModelServerRuntime::TrtLlm => (b"nv_trt_llm_", &TRT_LLM),
        ModelServerRuntime::TrtllmServe => (b"trtllm_", &TRTLLM_SERVE),
    }
}

/// Query that makes `prometheus_client`'s own app leave out everything else.
#[must_use]
pub fn filter(runtime: ModelServerRuntime) -> String {
    let (_, rows) = names(runtime);
    let names = rows.iter().map(|(name, _, _)| *name).chain([STARTED]);
    names.map(|name| format!("name%5B%5D={name}")).collect::<Vec<_>>().join("&")
}

/// Parses Prometheus or OpenMetrics text; unknown lines are skipped after their first letters.
///
/// # Errors
/// If the text does not contain the load.
pub fn parse(body: &[u8], runtime: ModelServerRuntime) -> Result<Sample, NoLoad> {
    let (prefix, rows) = names(runtime);
    let mut seen = Seen::default();
    for line in lines(body) {
        if line.starts_with(STARTED.as_bytes())
            && let Some(line) = PageLine::new(line, STARTED)
        {
            seen.started = line.value;
        }
        if !line.starts_with(prefix) {
            continue;
        }
        let row = rows.iter().find_map(|(name, label, gauge)| {
            let line = PageLine::new(line, name)?;
            let is_row = label.is_none_or(|(key, value)| line.label(key) == Some(value));
            is_row.then_some((gauge, line))
        });
        if let Some((gauge, line)) = row {
            seen.note(*gauge, &line);
        }
    }
    seen.sample().map_err(|absent| {
        let name = |gauge| rows.iter().find(|(_, _, of)| *of == gauge).map(|(name, _, _)| *name);
        NoLoad(absent.into_iter().filter_map(name).collect())
    })
}

/// The lines without their ends.
fn lines(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ends = memchr::memchr_iter(b'\n', body).chain([body.len()]);
    ends.scan(0, |start, end| {
        let line = &body[*start..end];
        *start = end + 1;
        Some(line)
    })
}

/// Values in the lines so far.
#[derive(Debug, Default)]
struct Seen {
    waiting: Total<f64>,
    running: Total<f64>,
    kv_usage: Total<f64>,
    prompt_tokens: Total<f64>,
    first_tokens: Total<f64>,
    kv_tokens: Total<u64>,
    started: Option<f64>,
    adapters: Option<Adapters>,
    /// Time at which the adapters were reported.
    adapters_at: Option<f64>,
    base_models: Vec<String>,
}

/// A sum over the engines of one process. It is unknown if the part of one engine cannot be read: the rest of a queue
/// is not the queue.
#[derive(Clone, Copy, Debug, Default)]
enum Total<T> {
    #[default]
    Absent,
    Known(T),
    Unknown,
}

// === impl Total ===

impl<T: Copy> Total<T> {
    fn add(&mut self, part: Option<T>, sum: impl Fn(T, T) -> Option<T>) {
        let known = |total: Option<T>| total.map_or(Self::Unknown, Self::Known);
        *self = match (*self, part) {
            (Self::Unknown, _) | (_, None) => Self::Unknown,
            (Self::Absent, Some(part)) => Self::Known(part),
            (Self::Known(total), Some(part)) => known(sum(total, part)),
        };
    }

    fn value(self) -> Option<T> {
        match self {
            Self::Known(total) => Some(total),
            Self::Absent | Self::Unknown => None,
        }
    }
}

// === impl Seen ===

impl Seen {
    fn note(&mut self, gauge: Gauge, line: &PageLine<'_>) {
        let sum = |total: f64, part: f64| Some(total + part);
        match gauge {
            Gauge::Waiting => {
                self.waiting.add(line.value, sum);
                self.base_models.extend(line.label("model_name").map(str::to_owned));
            }
            Gauge::Running => self.running.add(line.value, sum),
            Gauge::KvUsage => self.kv_usage.add(line.value, |total, part| Some(total.max(part))),
            Gauge::PromptTokens => self.prompt_tokens.add(line.value, sum),
            Gauge::FirstTokens => self.first_tokens.add(line.value, sum),
            Gauge::CacheConfig => self.kv_tokens.add(kv_tokens(line), u64::checked_add),
            // The latest series has the largest value, which is a timestamp.
            Gauge::Adapters => {
                let is_newer = |at: &f64| self.adapters_at.is_none_or(|newest| *at > newest);
                if let Some(at) = line.value.filter(is_newer) {
                    self.adapters_at = Some(at);
                    self.adapters = adapters(line);
                }
            }
        }
    }

    /// The gauges, or the gauges of the load that are unknown.
    fn sample(self) -> Result<Sample, Vec<Gauge>> {
        let Self { prompt_tokens, first_tokens, kv_tokens, started, base_models, .. } = self;
        let load = [
            (Gauge::Waiting, self.waiting.value()),
            (Gauge::Running, self.running.value()),
            (Gauge::KvUsage, self.kv_usage.value()),
        ];
        let [(_, Some(waiting)), (_, Some(running)), (_, Some(kv_usage))] = load else {
            return Err(load.into_iter().filter(|(_, value)| value.is_none()).map(|(of, _)| of).collect());
        };
        Ok(Sample {
            waiting: count(waiting),
            running: count(running),
            kv_usage: kv_usage.min(1.0),
            started,
            prompt_tokens: prompt_tokens.value(),
            first_tokens: first_tokens.value().map(whole),
            kv_tokens: kv_tokens.value(),
            adapters: self.adapters.map(|adapters| Adapters { base_models, ..adapters }),
        })
    }
}

/// The adapters in a line; `None` for an engine that cannot hold any.
fn adapters(line: &PageLine<'_>) -> Option<Adapters> {
    let max = line.label("max_lora")?.parse().ok().filter(|max| *max > 0)?;
    let names = ["running_lora_adapters", "waiting_lora_adapters"]
        .into_iter()
        .filter_map(|key| line.label(key))
        .flat_map(|names| names.split(','))
        .map(str::trim)
        .filter(|name| !name.is_empty());
    Some(Adapters { names: names.map(str::to_owned).collect(), max, base_models: Vec::new() })
}

/// Size of the cache; `None` if the labels do not contain it, as before the cache is allocated.
fn kv_tokens(line: &PageLine<'_>) -> Option<u64> {
    let number = |key| line.label(key)?.parse::<u64>().ok();
    number("block_size")?.checked_mul(number("num_gpu_blocks")?).filter(|kv_tokens| *kv_tokens > 0)
}

/// A line, split into its parts.
struct PageLine<'a> {
    /// `key="value",…` without the braces.
    labels: &'a str,
    /// `None` unless it is a finite number from 0 on: no metric that is read here can be anything else.
    value: Option<f64>,
}

impl<'a> PageLine<'a> {
    /// `None` if the line is not a sample of this metric, or is broken.
    fn new(line: &'a [u8], name: &str) -> Option<Self> {
        let rest = line.strip_prefix(name.as_bytes())?;
        let (labels, rest) = match rest.first() {
            Some(b'{') => {
                let inside = &rest[1..];
                let end = labels_end(inside)?;
                (&inside[..end], &inside[end + 1..])
            }
            None | Some(b' ' | b'\t') => (&rest[..0], rest),
            Some(_) => return None,
        };
        let (labels, rest) = (std::str::from_utf8(labels).ok()?, std::str::from_utf8(rest).ok()?);
        // A timestamp may follow the value, and an exemplar with its own labels and value.
        let value = rest.split_ascii_whitespace().next().and_then(|value| value.parse().ok());
        Some(Self { labels, value: value.filter(|value: &f64| value.is_finite() && *value >= 0.0) })
    }

    /// A label's value as written: names of models and adapters need no escapes.
    fn label(&self, key: &str) -> Option<&'a str> {
        let mut rest = self.labels;
        loop {
            let (name, tail) = rest.split_once('"')?;
            let end = quote_end(tail.as_bytes())?;
            if name.trim_start_matches([',', ' ']).strip_suffix('=') == Some(key) {
                return Some(&tail[..end]);
            }
            rest = &tail[end + 1..];
        }
    }
}

/// End of the labels after an opening brace; a quoted value may contain a brace.
fn labels_end(inside: &[u8]) -> Option<usize> {
    let mut start = 0;
    loop {
        let found = start + memchr::memchr2(b'"', b'}', &inside[start..])?;
        if inside[found] == b'}' {
            return Some(found);
        }
        start = found + 1;
        start += quote_end(&inside[start..])? + 1;
    }
}

/// End of the value after an opening quote; a backslash escapes the byte after it.
fn quote_end(value: &[u8]) -> Option<usize> {
    let mut start = 0;
    loop {
        let found = start + memchr::memchr2(b'"', b'\\', value.get(start..)?)?;
        if value[found] == b'"' {
            return Some(found);
        }
        start = found + 2;
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the range of u32 before"
)]
fn count(value: f64) -> u32 {
    value.clamp(0.0, f64::from(u32::MAX)) as u32
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "values are from 0 on, and a cast saturates"
)]
fn whole(value: f64) -> u64 {
    value as u64
}
