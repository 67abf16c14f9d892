//! Log of a pod's prefix cache, from which the cache of every moment can be rebuilt: what entered and left it in which
//! step, and the hash chain of each request that arrived. `mock-vllm oracle` reads it.

use crate::json_lines::JsonLines;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;
use std::path::Path;
use std::time::Duration;
use vllm_engine::config::EngineConfig;
use vllm_engine::event::KvEvent;
use vllm_engine::hash::BlockHash;
use vllm_engine::latency::LatencyModel;
use vllm_engine::prefix::PromptPrefix;
use vllm_engine::request::EngineRequest;

/// One line of the log. Hashes are in the form of KV events, `BlockHash::event_int`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheLine {
    pub pod: String,
    /// Number of the line in one run of a pod, from 0.
    pub seq: u64,
    /// Unix time in nanoseconds, which never decreases within a run.
    pub time_ns: u64,
    #[serde(flatten)]
    pub event: CacheEvent,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum CacheEvent {
    /// First line of a run; the cache is empty.
    Start(Box<CacheStart>),
    /// A request whose prompt is tokenized and that waits for the engine.
    Arrival(CacheArrival),
    /// Changes of the cache by a step when it was composed.
    Step {
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        admitted: Vec<CacheAdmission>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        stored: Vec<u64>,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        removed: Vec<u64>,
    },
    /// All blocks were forgotten.
    Cleared,
    /// The pod ended normally.
    Stop,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheStart {
    pub block_size: NonZeroU32,
    /// Parent of every first block: pods with the same one name their blocks alike.
    pub none_hash: u64,
    /// Most tokens of one prompt in one step.
    pub max_chunk_tokens: NonZeroU32,
    pub latency: LatencyModel,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CacheArrival {
    /// Number that is unique in the run.
    pub request: u64,
    /// Id in the request log.
    pub request_id: String,
    pub prompt_tokens: u32,
    /// Hash chain of the blocks that a look-up may find; empty without a look-up.
    pub hashes: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheAdmission {
    pub request: u64,
    pub cached_tokens: u32,
}

/// Writer of the lines of one run.
#[derive(Debug)]
pub struct CacheLog {
    lines: JsonLines,
    config: EngineConfig,
    pod: String,
    next_seq: u64,
    last: Duration,
}

// === impl CacheLog ===

impl CacheLog {
    /// Opens the file for appending and writes the start of a run. `now` is Unix time, here and below.
    ///
    /// # Errors
    /// Fails if the file cannot be opened.
    pub fn start(
        path: &Path,
        pod: String,
        config: EngineConfig,
        latency: LatencyModel,
        now: Duration,
    ) -> std::io::Result<Self> {
        let lines = JsonLines::open(path)?;
        let counts_from_one = |n: u32| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        let start = CacheStart {
            block_size: counts_from_one(config.block_size),
            none_hash: config.block_hasher().none_hash().event_int(),
            max_chunk_tokens: counts_from_one(max_chunk_tokens(&config)),
            latency,
        };
        let mut log = Self { lines, config, pod, next_seq: 0, last: now };
        log.append(CacheEvent::Start(Box::new(start)), now);
        Ok(log)
    }

    pub fn arrival(&mut self, request: &EngineRequest, request_id: &str, now: Duration) {
        let prefix = PromptPrefix {
            tokens: &request.prompt,
            lora: request.lora.as_deref(),
            cache_salt: request.cache_salt.as_deref(),
            cache_reading: request.cache_reading,
        };
        let arrival = CacheArrival {
            request: request.id.0,
            request_id: request_id.to_owned(),
            prompt_tokens: u32::try_from(request.prompt.len()).unwrap_or(u32::MAX),
            hashes: prefix.hashes(&self.config).iter().map(BlockHash::event_int).collect(),
        };
        self.append(CacheEvent::Arrival(arrival), now);
    }

    /// Writes what the engine admitted and changed in its cache since the last call; no line if that is nothing.
    pub fn step(&mut self, admitted: Vec<CacheAdmission>, events: &[KvEvent], now: Duration) {
        let mut events = events.split(|event| *event == KvEvent::AllBlocksCleared);
        self.changes(admitted, events.next().unwrap_or_default(), now);
        for after_clearing in events {
            self.append(CacheEvent::Cleared, now);
            self.changes(Vec::new(), after_clearing, now);
        }
    }

    pub fn stop(&mut self, now: Duration) {
        self.append(CacheEvent::Stop, now);
    }

    fn changes(&mut self, admitted: Vec<CacheAdmission>, events: &[KvEvent], now: Duration) {
        let (mut stored, mut removed) = (Vec::new(), Vec::new());
        for event in events {
            match event {
                KvEvent::BlockStored { block_hashes, .. } => {
                    stored.extend(block_hashes.iter().map(BlockHash::event_int));
                }
                KvEvent::BlockRemoved { block_hash } => removed.push(block_hash.event_int()),
                KvEvent::AllBlocksCleared => unreachable!("events were split at these"),
            }
        }
        if !(admitted.is_empty() && stored.is_empty() && removed.is_empty()) {
            self.append(CacheEvent::Step { admitted, stored, removed }, now);
        }
    }

    fn append(&mut self, event: CacheEvent, now: Duration) {
        self.last = self.last.max(now);
        let time_ns = u64::try_from(self.last.as_nanos()).unwrap_or(u64::MAX);
        let line = CacheLine { pod: self.pod.clone(), seq: self.next_seq, time_ns, event };
        self.lines.append(&line);
        self.next_seq += 1;
    }
}

fn max_chunk_tokens(config: &EngineConfig) -> u32 {
    match (config.chunked_prefill, config.long_prefill_token_threshold) {
        (false, _) => config.max_model_len,
        (true, 0) => config.max_num_batched_tokens,
        (true, threshold) => threshold.min(config.max_num_batched_tokens),
    }
}
