//! The flags of `serve`, and the pod that they describe.

use crate::driver::clock::TimeScale;
use crate::engine::config::{EngineConfig, SchedulingPolicy};
use crate::engine::hash::{DEFAULT_SEED, HashAlgorithm};
use crate::engine::latency::LatencyModel;
use crate::http::{PodConfig, UsageConfig};
use crate::kv_events::config::KvEventsConfig;
use crate::kv_events::encoding::{Generation, HashForm, WireFormat};
use crate::server::PodSettings;
use crate::vllm_version::VllmVersion;
use clap::{Args, ValueEnum};
use sha2::{Digest, Sha256};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `max_position_embeddings` of Qwen2.5-7B-Instruct.
const QWEN_CONTEXT: u32 = 32_768;

#[derive(Debug, Args)]
#[command(after_help = DIALECT)]
pub(super) struct ServeArgs {
    /// Model name or path; what `/v1/models` shows as root, and the served name when no other is given
    #[arg(value_name = "MODEL")]
    model_tag: Option<String>,
    /// The same as MODEL
    #[arg(long, value_name = "MODEL", conflicts_with = "model_tag")]
    model: Option<String>,
    #[command(flatten)]
    api: ApiArgs,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    mock: MockArgs,
    /// Address to listen on
    #[arg(long, default_value = "0.0.0.0")]
    pub(super) host: String,
    /// Port to listen on; 0 lets the system choose, the log names it
    #[arg(long, default_value_t = 8000)]
    pub(super) port: u16,
    /// Seconds that requests in flight get after SIGTERM, at most 0.7
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0)]
    shutdown_timeout: f64,
    /// What to log on stderr: a level, or `target=level` pairs
    #[arg(long, value_name = "FILTER", env = "MOCK_VLLM_LOG", default_value = "info")]
    pub(super) log_filter: String,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "API (as vLLM)")]
struct ApiArgs {
    /// Names that requests may use; answers show the first
    #[arg(long, num_args = 1.., value_name = "NAME")]
    served_model_name: Vec<String>,
    /// Keys of which requests under /v1 must carry one as bearer token
    #[arg(long, num_args = 1.., value_name = "KEY", env = "VLLM_API_KEY", hide_env_values = true)]
    api_key: Vec<String>,
    /// Role of the answers
    #[arg(long, default_value = "assistant")]
    response_role: String,
    /// Echo X-Request-Id, or make one
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    enable_request_id_headers: bool,
    /// Count requests in flight for /load
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    enable_server_load_tracking: bool,
    #[command(flatten)]
    usage: UsageArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "API (as vLLM)")]
struct UsageArgs {
    /// Report cached_tokens in usage
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    enable_prompt_tokens_details: bool,
    /// Send usage in every stream, asked for or not
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    enable_force_include_usage: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Engine (as vLLM)")]
struct EngineArgs {
    /// Longest prompt plus answer, in tokens; 8k = 8000, 8K = 8192
    #[arg(long, value_name = "N", value_parser = human_count, default_value_t = QWEN_CONTEXT)]
    max_model_len: u32,
    /// Most requests in one step
    #[arg(long, value_name = "N", value_parser = human_count, default_value_t = 256)]
    max_num_seqs: u32,
    /// Most tokens in one step
    #[arg(long, value_name = "N", value_parser = human_count, default_value_t = 2_048)]
    max_num_batched_tokens: u32,
    /// Tokens per KV block
    #[arg(long, value_name = "N", default_value = "16")]
    block_size: NonZeroU32,
    /// Share of the GPU's memory for weights and KV blocks
    #[arg(long, value_name = "F", default_value_t = 0.92)]
    gpu_memory_utilization: f64,
    /// KV blocks, instead of what the memory gives
    #[arg(long, value_name = "N")]
    num_gpu_blocks_override: Option<u32>,
    /// Reuse the blocks of equal prefixes
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = true, action = clap::ArgAction::Set)]
    enable_prefix_caching: bool,
    /// Names of blocks in the cache
    #[arg(long, value_name = "ALGORITHM", value_enum, default_value = "sha256")]
    prefix_caching_hash_algo: HashName,
    /// Seed of the block hashes
    #[arg(long, value_name = "TEXT", env = "PYTHONHASHSEED", default_value = DEFAULT_SEED)]
    hash_seed: String,
    /// Spread long prompts over steps
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = true, action = clap::ArgAction::Set)]
    enable_chunked_prefill: bool,
    /// Longest chunk of a prompt; 0 = no limit
    #[arg(long, value_name = "N", value_parser = human_count, default_value_t = 0)]
    long_prefill_token_threshold: u32,
    /// KV events, as JSON; --kv-events-config.KEY VALUE sets one key
    #[arg(long, value_name = "JSON", action = clap::ArgAction::Append)]
    kv_events_config: Vec<String>,
    /// Block hashes in KV events: 1 = integers of 8 bytes, 0 = all 32 bytes
    #[arg(long, value_name = "0|1", env = "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES", default_value_t = 1)]
    kv_events_use_int_block_hashes: i64,
    /// Order of the waiting queue
    #[arg(long, value_name = "POLICY", value_enum, default_value = "fcfs")]
    scheduling_policy: PolicyName,
    /// Seeds jitter and text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Directory with a tokenizer.json; a Qwen2.5 model name, like the default, is built in
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<String>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Mock")]
struct MockArgs {
    /// Virtual seconds per second of yours: 10 makes everything ten times faster
    #[arg(long, value_name = "F", default_value_t = TimeScale::default())]
    time_scale: TimeScale,
    /// GPU and model whose time is spent: `a10-doc`, or `<gpu>/<model>` like `h100/qwen2.5-7b`
    #[arg(long, value_name = "NAME", default_value = "a10-doc", value_parser = latency_preset)]
    latency_preset: LatencyModel,
    /// Relative standard deviation of each step's time; 0 = none
    #[arg(long, value_name = "F", default_value_t = 0.03, value_parser = jitter)]
    jitter: f64,
    /// Replies by prompt, YAML: a list of {last_user_text: [..], reply: ..}; default: the tutorial's
    #[arg(long, value_name = "FILE")]
    scripted_replies: Option<PathBuf>,
    /// Append one JSON line per request that ended
    #[arg(long, value_name = "FILE")]
    request_log: Option<PathBuf>,
    /// vLLM that this pod passes for: metric names, error bodies, fields of chunks, KV events
    #[arg(long, value_name = "VERSION", value_enum, default_value = "0.33")]
    vllm_version: VllmVersion,
    /// Name of the pod in the request log
    #[arg(long, value_name = "NAME", env = "POD_NAME", default_value = "mock-vllm")]
    pod_name: String,
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

const DIALECT: &str = "\
vLLM's dialect: --flag_x is --flag-x, --no-x is --x=false and --x is --x=true, the last of a repeated flag wins.
Flags of vLLM that have no meaning here (--dtype, --enforce-eager, --load-format, ...) are accepted and logged.
Any other flag is an error that names it.";

// === impl ServeArgs ===

impl ServeArgs {
    pub(super) fn grace(&self) -> Duration {
        Duration::try_from_secs_f64(self.shutdown_timeout).unwrap_or_default()
    }

    /// # Errors
    /// For values that contradict each other.
    pub(super) fn into_settings(self) -> Result<PodSettings, String> {
        let Self {
            model_tag,
            model,
            api,
            engine,
            mock,
            host: _,
            port: _,
            shutdown_timeout: _,
            log_filter: _,
        } = self;
        let model = model_tag.or(model).ok_or("which model? give its name: mock-vllm serve MODEL")?;
        let MockArgs {
            time_scale,
            latency_preset: latency,
            jitter,
            scripted_replies,
            request_log,
            vllm_version,
            pod_name,
        } = mock;
        let kv_events = KvEventsConfig::from_args(engine.kv_events_config.iter().map(String::as_str))
            .map_err(|error| format!("--kv-events-config: {error}"))?;
        let kv_event_format = WireFormat {
            generation: match vllm_version {
                VllmVersion::V0_8 | VllmVersion::V0_11 => Generation::V0_11,
                VllmVersion::V0_33 => Generation::V0_33,
            },
            hashes: match engine.kv_events_use_int_block_hashes {
                0 => HashForm::Bytes,
                _ => HashForm::Int,
            },
        };
        let engine_config = EngineConfig { kv_events: kv_events.is_on(), ..engine.config(&latency)? };
        let EngineArgs { gpu_memory_utilization, seed, tokenizer, block_size, .. } = engine;
        let http = api.into_config(model, (pod_name, vllm_version), &engine_config, block_size);
        let tokenizer = tokenizer.map(|name| tokenizer_path(&name)).transpose()?.flatten();
        Ok(PodSettings {
            http,
            engine: engine_config,
            latency,
            jitter,
            seed,
            time_scale,
            tokenizer,
            scripted_replies,
            request_log,
            gpu_memory_utilization,
            kv_events,
            kv_event_format,
        })
    }
}

// === impl EngineArgs ===

impl EngineArgs {
    fn config(&self, latency: &LatencyModel) -> Result<EngineConfig, String> {
        let utilization = self.gpu_memory_utilization;
        if !(utilization > 0.0 && utilization <= 1.0) {
            return Err(format!("--gpu-memory-utilization must be above 0 and at most 1, got {utilization}"));
        }
        let block_size = self.block_size.get();
        let n_fitting = || latency.n_kv_blocks(utilization, block_size);
        Ok(EngineConfig {
            n_blocks: self.num_gpu_blocks_override.unwrap_or_else(n_fitting),
            block_size,
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_model_len: self.max_model_len,
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
            hash_seed: self.hash_seed.clone(),
            kv_events: false,
        })
    }
}

// === impl ApiArgs ===

impl ApiArgs {
    fn into_config(
        self,
        model: String,
        (pod_name, version): (String, VllmVersion),
        engine: &EngineConfig,
        block_size: NonZeroU32,
    ) -> PodConfig {
        let Self {
            served_model_name,
            api_key,
            response_role,
            enable_request_id_headers,
            enable_server_load_tracking,
            usage,
        } = self;
        let UsageArgs { enable_prompt_tokens_details, enable_force_include_usage } = usage;
        PodConfig {
            served_model_names: if served_model_name.is_empty() {
                vec![model.clone()]
            } else {
                served_model_name
            },
            fingerprint: fingerprint(&model, version, engine),
            model_root: model,
            max_model_len: engine.max_model_len,
            block_size,
            prefix_caching: engine.prefix_caching,
            pod_name,
            version,
            api_keys: api_key.into_iter().filter(|key| !key.is_empty()).collect(),
            response_role,
            usage: UsageConfig {
                prompt_tokens_details: enable_prompt_tokens_details,
                forced: enable_force_include_usage,
            },
            request_id_headers: enable_request_id_headers,
            server_load_tracking: enable_server_load_tracking,
        }
    }
}

/// `vllm-<version>-<8 hex digits of the configuration>`: the same for pods that are configured alike.
fn fingerprint(model: &str, version: VllmVersion, engine: &EngineConfig) -> String {
    let digest = Sha256::digest(format!("{model} {engine:?}"));
    let hex: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("vllm-{}-{hex}", version.release())
}

/// `None` for names whose tokenizer is built in.
fn tokenizer_path(name: &str) -> Result<Option<PathBuf>, String> {
    let path = Path::new(name);
    if path.exists() {
        return Ok(Some(path.to_owned()));
    }
    if name.to_lowercase().contains("qwen2.5") {
        return Ok(None);
    }
    Err(format!("--tokenizer {name}: no such directory, and only Qwen2.5's tokenizer is built in"))
}

fn latency_preset(name: &str) -> Result<LatencyModel, String> {
    LatencyModel::preset(name).ok_or_else(|| format!("no such preset: {name}"))
}

fn jitter(text: &str) -> Result<f64, String> {
    let jitter: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.0..=1.0).contains(&jitter) { Ok(jitter) } else { Err("must be between 0 and 1".to_owned()) }
}

/// vLLM's counts for people: `k`, `m`, `g` are powers of 1000, `K`, `M`, `G` of 1024.
fn human_count(text: &str) -> Result<u32, String> {
    let units =
        [('k', 1e3), ('m', 1e6), ('g', 1e9), ('K', 1_024.0), ('M', 1_048_576.0), ('G', 1_073_741_824.0)];
    let unit = units.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(*suffix)?, *factor)));
    let (digits, factor) = unit.unwrap_or((text, 1.0));
    let count = digits.parse::<f64>().map_err(|_| format!("{text} is not a count"))? * factor;
    if count.fract() != 0.0 || !(0.0..=f64::from(u32::MAX)).contains(&count) {
        return Err(format!("{text} is not a whole count below 2^32"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just above")]
    Ok(count as u32)
}

#[cfg(test)]
mod tests {
    use super::human_count;

    #[test]
    fn counts_for_people() {
        assert_eq!(human_count("8192"), Ok(8192));
        assert_eq!(human_count("8k"), Ok(8_000));
        assert_eq!(human_count("8K"), Ok(8_192));
        assert_eq!(human_count("1.5k"), Ok(1_500));
        assert!(human_count("-1").is_err());
        assert!(human_count("x").is_err());
        assert!(human_count("5G").is_err());
    }
}
