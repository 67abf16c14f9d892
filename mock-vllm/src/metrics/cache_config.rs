//! Labels of `vllm:cache_config_info`: every field of vLLM's `CacheConfig`, with its value in Python's spelling.

use super::exposition;
use vllm_engine::vllm_version::VllmVersion;

/// Fields of the configuration that depend on the pod; the others have vLLM's defaults for a text model on one GPU.
#[derive(Clone, Copy, Debug)]
pub struct CacheConfig {
    pub block_size: u32,
    pub flags: CacheFlags,
    pub num_gpu_blocks: u32,
    pub enable_prefix_caching: bool,
    pub prefix_caching_hash_algo: &'static str,
    pub max_model_len: u32,
}

/// Values from the command line.
#[derive(Clone, Copy, Debug)]
pub struct CacheFlags {
    /// True if `--block-size` was given.
    pub user_specified_block_size: bool,
    pub gpu_memory_utilization: f64,
    pub num_gpu_blocks_override: Option<u32>,
    pub kv_cache_memory_bytes: Option<u64>,
}

const NONE: &str = "None";

/// Fields that do not depend on the pod.
const FIXED_0_8: &[(&str, &str)] = &[
    ("cache_dtype", "auto"),
    ("calculate_kv_scales", "False"),
    ("cpu_offload_gb", "0"),
    ("is_attention_free", "False"),
    ("num_cpu_blocks", NONE),
    ("sliding_window", NONE),
    ("swap_space", "4"),
    ("swap_space_bytes", "4294967296"),
];
/// Pydantic turns whole numbers into floats here.
const FIXED_0_11: &[(&str, &str)] = &[
    ("cache_dtype", "auto"),
    ("calculate_kv_scales", "False"),
    ("cpu_kvcache_space_bytes", NONE),
    ("cpu_offload_gb", "0.0"),
    ("is_attention_free", "False"),
    ("kv_sharing_fast_prefill", "False"),
    ("mamba_cache_dtype", "auto"),
    ("mamba_page_size_padded", NONE),
    ("mamba_ssm_cache_dtype", "auto"),
    ("num_cpu_blocks", NONE),
    ("sliding_window", NONE),
    ("swap_space", "4.0"),
    ("swap_space_bytes", "4294967296.0"),
];
const FIXED_0_33: &[(&str, &str)] = &[
    ("_block_size_resolved", "True"),
    ("cache_dtype", "auto"),
    // Only the engine's process knows it, like the hash's block size and the layout.
    ("cache_hit_alignment_tokens", NONE),
    ("enable_mamba_shared_prefix_checkpoint", "False"),
    ("hash_block_size", NONE),
    ("is_attention_free", "False"),
    ("kv_cache_dtype_skip_layers", "[]"),
    ("kv_cache_layout", NONE),
    ("kv_offloading_backend", "native"),
    ("kv_offloading_size", NONE),
    ("kv_sharing_fast_prefill", "False"),
    ("mamba_block_size", NONE),
    ("mamba_cache_dtype", "auto"),
    ("mamba_cache_mode", "none"),
    ("mamba_page_size_padded", NONE),
    ("mamba_ssm_cache_dtype", "auto"),
    ("num_cpu_blocks", NONE),
    ("prefix_cache_retention_interval", "0"),
    ("prefix_match_unit", NONE),
    ("replayssm_buffer_len", "16"),
    ("simple_cpu_offload_num_blocks", NONE),
    ("skip_page_size_padded", NONE),
    ("sliding_window", NONE),
    ("swa_bounded_replay", "True"),
    ("use_kda_recoverssm", "False"),
    ("use_replayssm", "False"),
];

// === impl CacheConfig ===

impl CacheConfig {
    /// Returns the labels, in no particular order.
    pub fn labels(&self, version: VllmVersion) -> Vec<(&'static str, String)> {
        let Self {
            block_size,
            flags,
            num_gpu_blocks,
            enable_prefix_caching,
            prefix_caching_hash_algo,
            max_model_len,
        } = *self;
        let CacheFlags {
            user_specified_block_size,
            gpu_memory_utilization,
            num_gpu_blocks_override,
            kv_cache_memory_bytes,
        } = flags;
        let optional = |value: Option<u64>| value.map_or_else(|| NONE.to_owned(), |value| value.to_string());
        let mut labels = vec![
            ("block_size", block_size.to_string()),
            ("enable_prefix_caching", python_bool(enable_prefix_caching)),
            ("gpu_memory_utilization", exposition::float(gpu_memory_utilization)),
            // 0.8.5 writes its labels before the engine has counted its blocks.
            ("num_gpu_blocks", optional((version > VllmVersion::V0_8).then_some(num_gpu_blocks.into()))),
            ("num_gpu_blocks_override", optional(num_gpu_blocks_override.map(u64::from))),
            ("prefix_caching_hash_algo", prefix_caching_hash_algo.to_owned()),
        ];
        let fixed = match version {
            VllmVersion::V0_8 => FIXED_0_8,
            VllmVersion::V0_11 => FIXED_0_11,
            VllmVersion::V0_33 => FIXED_0_33,
        };
        labels.extend(fixed.iter().map(|(name, value)| (*name, (*value).to_owned())));
        if version >= VllmVersion::V0_11 {
            labels.push(("kv_cache_memory_bytes", optional(kv_cache_memory_bytes)));
        }
        if version >= VllmVersion::V0_33 {
            let concurrency = f64::from(num_gpu_blocks) / f64::from(max_model_len.div_ceil(block_size));
            let n_tokens = (concurrency * f64::from(max_model_len)).trunc();
            labels.extend([
                ("effective_attention_block_size", block_size.to_string()),
                ("kv_cache_max_concurrency", format!("{concurrency:?}")),
                ("kv_cache_size_tokens", format!("{n_tokens:.0}")),
                ("user_specified_block_size", python_bool(user_specified_block_size)),
            ]);
        }
        labels
    }
}

fn python_bool(value: bool) -> String {
    if value { "True" } else { "False" }.to_owned()
}
