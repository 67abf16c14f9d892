//! Flags of `serve` about the wire: names, keys, headers, usage.

use super::values::HeaderList;
use crate::http::cors::CorsConfig;
use crate::http::{OptionalEndpoints, OtherNames, OutputConfig, PodConfig, UsageConfig};
use clap::Args;
use sha2::{Digest, Sha256};
use std::num::NonZeroU32;
use vllm_engine::config::EngineConfig;
use vllm_engine::vllm_version::VllmVersion;

#[derive(Debug, Args)]
#[command(next_help_heading = "API (as vLLM)")]
pub(super) struct ApiArgs {
    /// Names that requests may use; answers show the first
    #[arg(long, num_args = 1.., value_name = "NAME")]
    served_model_name: Vec<String>,
    /// Keys, one of which every request under /v1 must carry as a bearer token
    #[arg(long, num_args = 1.., value_name = "KEY", env = "VLLM_API_KEY", hide_env_values = true)]
    api_key: Vec<String>,
    /// Path under which a proxy in front reaches the server; the server answers there too
    #[arg(long, value_name = "PATH", default_value = "", value_parser = root_path)]
    root_path: String,
    /// Role of the answers
    #[arg(long, default_value = "assistant")]
    response_role: String,
    /// Send the X-Request-Id of each request back, or a new one
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    enable_request_id_headers: bool,
    /// Count requests in flight for /load
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    enable_server_load_tracking: bool,
    /// Serve /v1/.../render, which answers with a request's token ids (vLLM 0.33)
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    enable_scale_out: bool,
    #[command(flatten)]
    cors: CorsArgs,
    #[command(flatten)]
    usage: UsageArgs,
    #[command(flatten)]
    dev: DevArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "API (as vLLM)")]
struct CorsArgs {
    /// Origins whose pages may call from a browser, as a JSON list; the default allows any, as vLLM did up to 0.11
    #[arg(long, value_name = "LIST", default_value = r#"["*"]"#, value_parser = super::values::header_list)]
    allowed_origins: HeaderList,
    /// Methods that these pages may use, as a JSON list
    #[arg(long, value_name = "LIST", default_value = r#"["*"]"#, value_parser = super::values::header_list)]
    allowed_methods: HeaderList,
    /// Headers that these pages may send, as a JSON list
    #[arg(long, value_name = "LIST", default_value = r#"["*"]"#, value_parser = super::values::header_list)]
    allowed_headers: HeaderList,
    /// Let these pages send cookies and credentials
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    allow_credentials: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "API (as vLLM)")]
struct DevArgs {
    /// Serve the endpoints for development: /reset_prefix_cache, /pause, /sleep, /server_info, ...
    #[arg(long, value_name = "BOOL", require_equals = true, env = "VLLM_SERVER_DEV_MODE", default_value = "0", value_parser = super::values::flag, action = clap::ArgAction::Set)]
    server_dev_mode: bool,
    /// Serve /sleep, /wake_up and /is_sleeping too, together with the development endpoints
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    enable_sleep_mode: bool,
    /// Serve GET /tokenizer_info
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    enable_tokenizer_info_endpoint: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "API (as vLLM)")]
struct UsageArgs {
    /// Report cached_tokens in usage
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    enable_prompt_tokens_details: bool,
    /// Send usage in every stream, whether the request asks for it or not
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    enable_force_include_usage: bool,
}

// === impl ApiArgs ===

impl ApiArgs {
    pub(super) fn endpoints(&self, lora_updates: bool) -> OptionalEndpoints {
        let DevArgs { server_dev_mode, enable_sleep_mode, enable_tokenizer_info_endpoint } = self.dev;
        OptionalEndpoints {
            dev: server_dev_mode,
            sleep: enable_sleep_mode,
            lora_updates,
            tokenizer_info: enable_tokenizer_info_endpoint,
            scale_out: self.enable_scale_out,
            mock: false,
        }
    }

    pub(super) fn into_config(
        self,
        model: String,
        (pod_name, version): (String, VllmVersion),
        engine: &EngineConfig,
        block_size: NonZeroU32,
    ) -> PodConfig {
        let Self {
            served_model_name,
            api_key,
            root_path,
            response_role,
            enable_request_id_headers,
            enable_server_load_tracking,
            cors,
            enable_scale_out: _,
            usage,
            dev: _,
        } = self;
        let UsageArgs { enable_prompt_tokens_details, enable_force_include_usage } = usage;
        let CorsArgs { allowed_origins, allowed_methods, allowed_headers, allow_credentials } = cors;
        PodConfig {
            served_model_names: if served_model_name.is_empty() {
                vec![model.clone()]
            } else {
                served_model_name
            },
            other_names: OtherNames::NotFound,
            fingerprint: fingerprint(&model, version, engine),
            model_root: model,
            max_model_len: engine.max_model_len,
            block_size,
            prefix_caching: engine.prefix_caching,
            pod_name,
            version,
            api_keys: api_key.into_iter().filter(|key| !key.is_empty()).collect(),
            cors: CorsConfig {
                origins: allowed_origins.0,
                methods: allowed_methods.0,
                headers: allowed_headers.0,
                credentials: allow_credentials,
            },
            root_path,
            response_role,
            usage: UsageConfig {
                prompt_tokens_details: enable_prompt_tokens_details,
                forced: enable_force_include_usage,
            },
            request_id_headers: enable_request_id_headers,
            server_load_tracking: enable_server_load_tracking,
            output: OutputConfig::default(),
            endpoints: OptionalEndpoints::default(),
        }
    }
}

/// Checks a path that starts with a slash, and drops the slash at its end; empty for no path.
fn root_path(text: &str) -> Result<String, String> {
    let path = text.trim_end_matches('/');
    if path.is_empty() || path.starts_with('/') && !path.contains(['{', '}', '*']) {
        Ok(path.to_owned())
    } else {
        Err(format!("must start with a slash, got {text}"))
    }
}

/// Makes `vllm-<version>-<8 hex digits of the configuration>`, which is equal for pods that are configured alike.
fn fingerprint(model: &str, version: VllmVersion, engine: &EngineConfig) -> String {
    let digest = Sha256::digest(format!("{model} {engine:?}"));
    let hex: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("vllm-{}-{hex}", version.release())
}
