//! Flags of `serve` about the engine: limits, blocks, scheduling, KV events.

use super::values::{human_bytes, human_count};
use crate::driver::backlog::QueueLimits;
use crate::kv_events::config::KvEventsConfig;
use crate::kv_events::encoding::{HashForm, WireFormat};
use crate::metrics::cache_config::CacheFlags;
use clap::{Args, ValueEnum};
use std::fmt;
use std::num::NonZeroU32;
use std::path::Path;
use std::str::FromStr;
use tracing::warn;
use vllm_engine::config::{EngineConfig, SchedulingPolicy};
use vllm_engine::hash::{DEFAULT_SEED, HashAlgorithm, HashSeed};
use vllm_engine::latency::LatencyModel;
use vllm_engine::vllm_version::VllmVersion;
use vllm_text::tokens::TokenizerSource;
use vllm_text::tokens::qwen::QwenFamily;

/// `max_position_embeddings` of Qwen2.5-7B-Instruct.
const QWEN_CONTEXT: u32 = 32_768;
const DEFAULT_BLOCK_SIZE: NonZeroU32 = NonZeroU32::new(16).expect("not 0");

#[derive(Debug, Args)]
#[command(next_help_heading = "Engine (as vLLM)")]
pub(super) struct EngineArgs {
    /// Longest prompt plus answer, in tokens; 8k = 8000, 8K = 8192; `auto` or -1 is the model's, or as many as the KV
    /// blocks hold
    #[arg(long, value_name = "N", default_value_t = ModelLen::Tokens(QWEN_CONTEXT), allow_negative_numbers = true)]
    max_model_len: ModelLen,
    /// Use of the model; this server has only models that generate text
    #[arg(long, value_name = "RUNNER", value_enum, default_value = "auto")]
    runner: RunnerName,
    /// Older name of --runner
    #[arg(long, value_name = "TASK", value_enum, default_value = "auto")]
    task: TaskName,
    /// Most requests in one step
    #[arg(long, value_name = "N", value_parser = human_count, default_value_t = 256)]
    max_num_seqs: u32,
    /// Most tokens in one step
    #[arg(long, value_name = "N", value_parser = human_count, default_value_t = 2_048)]
    max_num_batched_tokens: u32,
    /// Tokens per KV block [default: 16]
    #[arg(long, value_name = "N")]
    block_size: Option<NonZeroU32>,
    /// Share of the GPU's memory for weights and KV blocks
    #[arg(long, value_name = "F", default_value_t = 0.92)]
    gpu_memory_utilization: f64,
    /// GPUs of one server: they share weights, work and KV, and wait for each other
    #[arg(long, value_name = "N", default_value = "1")]
    pub(super) tensor_parallel_size: NonZeroU32,
    /// Memory for KV blocks on each GPU, instead of what --gpu-memory-utilization leaves; 4G = 4 x 2^30
    #[arg(long, value_name = "BYTES", value_parser = human_bytes)]
    kv_cache_memory_bytes: Option<u64>,
    /// Number of KV blocks, instead of as many as the memory holds
    #[arg(long, value_name = "N")]
    num_gpu_blocks_override: Option<u32>,
    /// Reuse the blocks of equal prefixes
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = true, action = clap::ArgAction::Set)]
    enable_prefix_caching: bool,
    /// Hash algorithm that names blocks in the cache
    #[arg(long, value_name = "ALGORITHM", value_enum, default_value = "sha256")]
    prefix_caching_hash_algo: HashName,
    /// Most requests that wait for the engine; more are refused with 503
    #[arg(long, value_name = "N")]
    max_num_queued_reqs: Option<usize>,
    /// Most prompt tokens that wait for the engine; more are refused with 503
    #[arg(long, value_name = "N")]
    max_num_queued_tokens: Option<usize>,
    /// Seed of the block hashes; without it, vLLM 0.33 takes a constant and earlier versions random bytes
    #[arg(long, value_name = "TEXT", env = "PYTHONHASHSEED")]
    hash_seed: Option<String>,
    /// Share of the KV blocks that must stay free when a request is admitted
    #[arg(long, value_name = "F", default_value_t = 0.0)]
    watermark: f64,
    /// Split long prompts over several steps
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = true, action = clap::ArgAction::Set)]
    enable_chunked_prefill: bool,
    /// Longest chunk of a prompt, in tokens; 0 = no limit
    #[arg(long, value_name = "N", value_parser = human_count, default_value_t = 0)]
    long_prefill_token_threshold: u32,
    /// KV events, as JSON; --kv-events-config.KEY VALUE sets one key
    #[arg(long, value_name = "JSON", action = clap::ArgAction::Append)]
    kv_events_config: Vec<String>,
    /// Block hashes in KV events: 1 = integers of 8 bytes, 0 = all 32 bytes
    #[arg(long, value_name = "0|1", env = "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES", default_value_t = 1)]
    kv_events_use_int_block_hashes: i64,
    /// Show the metrics that were hidden since the release before the served one: 0.10 for 0.11; other values change
    /// nothing
    #[arg(long, value_name = "VERSION")]
    show_hidden_metrics_for_version: Option<String>,
    /// Order of the waiting queue
    #[arg(long, value_name = "POLICY", value_enum, default_value = "fcfs")]
    scheduling_policy: PolicyName,
    /// Seed of jitter and made-up text
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
    /// Name of a Qwen2.5 or Qwen3 model, whose tokenizers are built in, or a directory with a tokenizer.json (if built
    /// with the feature tokenizer-json); default: the model's, or Qwen2.5's for an unknown model
    #[arg(long, value_name = "DIR")]
    pub(super) tokenizer: Option<String>,
}

/// Longest prompt plus answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ModelLen {
    Tokens(u32),
    /// The model's, or as many tokens as the KV blocks hold.
    Auto,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RunnerName {
    Auto,
    Generate,
    Pooling,
    Draft,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TaskName {
    Auto,
    Generate,
    Embedding,
    Embed,
    Classify,
    Score,
    Reward,
    Transcription,
    Draft,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum HashName {
    Sha256,
    #[value(name = "sha256_cbor")]
    Sha256Cbor,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PolicyName {
    Fcfs,
    Priority,
}

// === impl ModelLen ===

impl FromStr for ModelLen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" | "-1" => Ok(Self::Auto),
            count => human_count(count).map(Self::Tokens),
        }
    }
}

impl fmt::Display for ModelLen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tokens(n_tokens) => write!(f, "{n_tokens}"),
            Self::Auto => write!(f, "auto"),
        }
    }
}

// === impl EngineArgs ===

impl EngineArgs {
    pub(super) fn queue_limits(&self) -> QueueLimits {
        QueueLimits { max_requests: self.max_num_queued_reqs, max_tokens: self.max_num_queued_tokens }
    }

    pub(super) fn kv_events(&self) -> Result<KvEventsConfig, String> {
        KvEventsConfig::from_args(self.kv_events_config.iter().map(String::as_str))
            .map_err(|error| format!("--kv-events-config: {error}"))
    }

    pub(super) fn kv_event_format(&self, version: VllmVersion) -> WireFormat {
        let hashes = match self.kv_events_use_int_block_hashes {
            0 => HashForm::Bytes,
            _ => HashForm::Int,
        };
        WireFormat { version, hashes }
    }

    pub(super) fn block_size(&self) -> NonZeroU32 {
        self.block_size.unwrap_or(DEFAULT_BLOCK_SIZE)
    }

    /// Flags that `cache_config_info` shows.
    pub(super) fn cache_flags(&self) -> CacheFlags {
        CacheFlags {
            user_specified_block_size: self.block_size.is_some(),
            gpu_memory_utilization: self.gpu_memory_utilization,
            num_gpu_blocks_override: self.num_gpu_blocks_override,
            kv_cache_memory_bytes: self.kv_cache_memory_bytes,
        }
    }

    pub(super) fn shows_hidden_metrics(&self, version: VllmVersion) -> bool {
        self.show_hidden_metrics_for_version.as_deref() == Some(version.previous_minor())
    }

    fn hash_seed(&self, version: VllmVersion) -> HashSeed {
        match (&self.hash_seed, version) {
            (Some(seed), _) => HashSeed::Text(seed.clone()),
            (None, VllmVersion::V0_33) => HashSeed::Text(DEFAULT_SEED.to_owned()),
            (None, VllmVersion::V0_8 | VllmVersion::V0_11) => HashSeed::Random(rand::random()),
        }
    }

    /// Refuses the uses of a model that need other answers than text.
    fn check_use(&self) -> Result<(), String> {
        let Self { runner, task, .. } = self;
        let generates = "this server has only models that generate text: leave the flag out";
        match runner {
            RunnerName::Auto | RunnerName::Generate => {}
            RunnerName::Pooling | RunnerName::Draft => {
                return Err(format!("--runner {}: {generates}", value_name(*runner)));
            }
        }
        match task {
            TaskName::Auto | TaskName::Generate => Ok(()),
            TaskName::Embedding
            | TaskName::Embed
            | TaskName::Classify
            | TaskName::Score
            | TaskName::Reward
            | TaskName::Transcription
            | TaskName::Draft => Err(format!("--task {}: {generates}", value_name(*task))),
        }
    }

    pub(super) fn config(
        &self,
        latency: &LatencyModel,
        grows: bool,
        version: VllmVersion,
        max_loras: Option<NonZeroU32>,
    ) -> Result<EngineConfig, String> {
        let utilization = self.gpu_memory_utilization;
        if !(utilization > 0.0 && utilization <= 1.0) {
            return Err(format!("--gpu-memory-utilization must be above 0 and at most 1, got {utilization}"));
        }
        self.check_use()?;
        let block_size = self.block_size().get();
        let asked = match self.max_model_len {
            ModelLen::Tokens(n_tokens) => n_tokens,
            ModelLen::Auto => QWEN_CONTEXT,
        };
        // One block is the pool's own.
        let n_needed = asked.div_ceil(block_size).saturating_add(1);
        let n_fitting = || match self.kv_cache_memory_bytes {
            Some(n_bytes) => latency.n_kv_blocks_in(n_bytes as f64, block_size),
            None => {
                let n_fitting = latency.n_kv_blocks(utilization, block_size);
                if !grows || n_fitting >= n_needed {
                    return n_fitting;
                }
                warn!(
                    n_fitting,
                    n_needed,
                    "The GPU's memory does not hold --max-model-len: the KV cache grows, where vLLM would not start"
                );
                n_needed
            }
        };
        let n_blocks = self.num_gpu_blocks_override.unwrap_or_else(n_fitting);
        let max_model_len = match self.max_model_len {
            ModelLen::Tokens(n_tokens) => n_tokens,
            ModelLen::Auto => QWEN_CONTEXT.min(n_blocks.saturating_sub(1).saturating_mul(block_size)),
        };
        Ok(EngineConfig {
            n_blocks,
            block_size,
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_model_len,
            policy: match self.scheduling_policy {
                PolicyName::Fcfs => SchedulingPolicy::Fcfs,
                PolicyName::Priority => SchedulingPolicy::Priority,
            },
            prefix_caching: self.enable_prefix_caching,
            chunked_prefill: self.enable_chunked_prefill,
            long_prefill_token_threshold: self.long_prefill_token_threshold,
            hash: match self.prefix_caching_hash_algo {
                HashName::Sha256 => HashAlgorithm::Sha256,
                HashName::Sha256Cbor => HashAlgorithm::Sha256Cbor,
            },
            hash_seed: self.hash_seed(version),
            version,
            max_loras,
            watermark: self.watermark,
            kv_events: false,
        })
    }
}

fn value_name(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Finds the tokenizer that `--tokenizer` names, or else the one that fits the model.
pub(super) fn tokenizer_source(tokenizer: Option<&str>, model: &str) -> Result<TokenizerSource, String> {
    let name = tokenizer.unwrap_or(model);
    let path = Path::new(name);
    let is_there = if tokenizer.is_some() { path.exists() } else { path.join("tokenizer.json").is_file() };
    if is_there {
        return Ok(TokenizerSource::Files(path.to_owned()));
    }
    match (QwenFamily::of_model(name), tokenizer) {
        (Some(family), _) => Ok(TokenizerSource::BuiltIn(family)),
        (None, None) => Ok(TokenizerSource::BuiltIn(QwenFamily::Qwen25)),
        (None, Some(name)) => Err(format!(
            "--tokenizer {name}: no such directory, and only the tokenizers of Qwen2.5 and Qwen3 are built in"
        )),
    }
}
