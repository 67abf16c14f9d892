//! A pod's records: its request log (JSON lines) and its Prometheus counters.

use std::iter::Sum;

use serde::{Deserialize, Serialize};

use crate::evidence::access_log::complete_lines;

/// One request that ended at a pod, with any outcome.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PodEntry {
    pub pod: String,
    pub request_id: String,
    pub status: u16,
    #[serde(default)]
    pub prompt_tokens: u32,
    #[serde(default)]
    pub cached_tokens: u32,
    #[serde(default)]
    pub completion_tokens: u32,
    pub ttft_ms: Option<f64>,
}

/// Returns the entries of a pod's request log. An unreadable line is an error with its number.
pub fn parse(text: &str) -> Result<Vec<PodEntry>, String> {
    complete_lines(text)
        .enumerate()
        .map(|(idx, line)| serde_json::from_str(line).map_err(|error| format!("line {}: {error}", idx + 1)))
        .collect()
}

/// Use of a pod's prefix cache in tokens, and the used share of its KV cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct CacheCounters {
    pub queries: f64,
    pub hits: f64,
    pub kv_usage: f64,
}

impl CacheCounters {
    /// Reads vLLM's counters from a Prometheus text; `None` if one is missing, so that no check passes without data.
    pub fn parse(metrics: &str) -> Option<Self> {
        let tokens = |name: &str| sum(metrics, &format!("vllm:{name}_total"));
        // Version 0.8 counts blocks, under names that begin with the GPU.
        let blocks = |name: &str| Some(tokens(&format!("gpu_{name}"))? * block_size(metrics)?);
        let count = |name: &str| tokens(name).or_else(|| blocks(name));
        Some(Self {
            queries: count("prefix_cache_queries")?,
            hits: count("prefix_cache_hits")?,
            kv_usage: sum(metrics, "vllm:kv_cache_usage_perc")
                .or_else(|| sum(metrics, "vllm:gpu_cache_usage_perc"))?,
        })
    }

    fn plus(self, other: Self) -> Self {
        Self {
            queries: self.queries + other.queries,
            hits: self.hits + other.hits,
            kv_usage: self.kv_usage + other.kv_usage,
        }
    }

    /// Returns the increase since `earlier`, with the present `kv_usage`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            queries: self.queries - earlier.queries,
            hits: self.hits - earlier.hits,
            kv_usage: self.kv_usage,
        }
    }

    /// Returns the share of looked-up tokens that were in the cache; `None` if none were looked up.
    pub fn hit_ratio(self) -> Option<f64> {
        (self.queries > 0.0).then(|| self.hits / self.queries)
    }
}

impl Sum for CacheCounters {
    fn sum<I: Iterator<Item = Self>>(counters: I) -> Self {
        counters.fold(Self::default(), Self::plus)
    }
}

/// Returns the tokens of a block, from the label of the cache's configuration.
fn block_size(metrics: &str) -> Option<f64> {
    let line = metrics.lines().find(|line| line.starts_with("vllm:cache_config_info{"))?;
    line.split_once("block_size=\"")?.1.split('"').next()?.parse().ok()
}

/// Returns the sum over all series of a metric.
pub fn sum(metrics: &str, name: &str) -> Option<f64> {
    let mut values = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.strip_prefix('{') {
            Some(labels) => labels.rsplit_once('}')?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.split_whitespace().next()?.parse::<f64>().ok()
    });
    let first = values.next()?;
    Some(values.fold(first, |total, value| total + value))
}

#[cfg(test)]
mod tests {
    use super::{CacheCounters, parse};

    const METRICS: &str = concat!(
        "# TYPE vllm:prefix_cache_queries counter\n",
        "vllm:prefix_cache_queries_total{engine=\"0\",model_name=\"/model/qwen\"} 355.0\n",
        "vllm:prefix_cache_queries_created{engine=\"0\",model_name=\"/model/qwen\"} 1.7e9\n",
        "vllm:prefix_cache_hits_total{engine=\"0\",model_name=\"/model/qwen\"} 128.0\n",
        "vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"/model/qwen\"} 0.25\n",
    );

    #[test]
    fn counters_are_read_and_subtracted() {
        let counters = CacheCounters::parse(METRICS).unwrap();
        assert_eq!(counters, CacheCounters { queries: 355.0, hits: 128.0, kv_usage: 0.25 });
        let before = CacheCounters { queries: 99.0, hits: 0.0, kv_usage: 0.0 };
        assert_eq!(counters.since(before).hit_ratio(), Some(0.5));
        assert_eq!(counters.since(counters).hit_ratio(), None);
        let both: CacheCounters = [counters, before].into_iter().sum();
        assert_eq!((both.queries, both.hits), (454.0, 128.0));
    }

    /// Figures of version 0.8, which are blocks of 16 tokens.
    #[test]
    fn counters_of_blocks_are_read_as_tokens() {
        let metrics = METRICS.replace(":prefix_cache", ":gpu_prefix_cache").replace("kv_cache", "gpu_cache");
        assert_eq!(CacheCounters::parse(&metrics), None, "the size of a block is not known");
        let config = "vllm:cache_config_info{block_size=\"16\",cache_dtype=\"auto\"} 1.0\n";
        let counters = CacheCounters::parse(&(metrics + config)).unwrap();
        assert_eq!(counters, CacheCounters { queries: 355.0 * 16.0, hits: 128.0 * 16.0, kv_usage: 0.25 });
        let tokens = CacheCounters::parse(&(METRICS.to_owned() + config)).unwrap();
        assert_eq!(tokens.hits, 128.0, "later versions count tokens");
    }

    #[test]
    fn a_missing_counter_is_not_zero() {
        assert_eq!(CacheCounters::parse(&METRICS.replace("cache_hits", "other")), None);
    }

    #[test]
    fn request_logs_are_read() {
        let line = r#"{"time":"2026-01-01T00:00:00.000000Z","pod":"q-0","request_id":"r-1","endpoint":"/v1/chat/completions","model":"m","stream":true,"status":200,"finish_reason":"length","prompt_tokens":127,"cached_tokens":0,"completion_tokens":24,"queue_ms":0.0,"ttft_ms":125.5,"e2e_ms":1000.0}"#;
        let entries = parse(&format!("{line}\n")).unwrap();
        assert_eq!((entries[0].pod.as_str(), entries[0].prompt_tokens), ("q-0", 127));
        assert!(parse("{}\n").unwrap_err().starts_with("line 1"));
    }
}
