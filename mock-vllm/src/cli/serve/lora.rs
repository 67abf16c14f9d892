//! Flags of `serve` about LoRA adapters.

use crate::http::lora::LoraModule;
use clap::Args;
use serde::Deserialize;
use std::num::NonZeroU32;

#[derive(Debug, Args)]
#[command(next_help_heading = "LoRA (as vLLM)")]
pub(super) struct LoraArgs {
    /// Serve LoRA adapters beside the model
    #[arg(long, value_name = "BOOL", require_equals = true, default_value_t = false, action = clap::ArgAction::Set)]
    pub(super) enable_lora: bool,
    /// Adapters to load at the start: NAME=PATH, or JSON with name, path and base_model_name
    #[arg(long, num_args = 1.., value_name = "MODULE")]
    lora_modules: Vec<String>,
    /// Most adapters in one step; requests for further adapters wait and let others pass
    #[arg(long, value_name = "N", default_value = "1")]
    max_loras: NonZeroU32,
    /// Most adapters in the CPU's memory, at least --max-loras; loading takes no time here
    #[arg(long, value_name = "N")]
    max_cpu_loras: Option<NonZeroU32>,
    /// Largest rank of an adapter: one of 1, 8, 16, 32, 64, 128, 256, 320, 512
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = rank)]
    max_lora_rank: u32,
    /// Let clients load and unload adapters at /v1/load_lora_adapter and /v1/unload_lora_adapter
    #[arg(long, value_name = "BOOL", require_equals = true, env = "VLLM_ALLOW_RUNTIME_LORA_UPDATING", default_value = "0", value_parser = super::values::flag, action = clap::ArgAction::Set)]
    allow_runtime_lora_updating: bool,
}

/// An entry of `--lora-modules` in its JSON form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsonModule {
    name: String,
    path: String,
    #[serde(default)]
    base_model_name: Option<String>,
}

/// Settings of the flags, checked together.
#[derive(Debug, Default)]
pub(super) struct LoraSettings {
    /// Most adapters in one step; `None` without adapters.
    pub(super) max_loras: Option<NonZeroU32>,
    pub(super) modules: Vec<LoraModule>,
    pub(super) updates: bool,
}

// === impl LoraArgs ===

impl LoraArgs {
    /// Checks the flags together.
    ///
    /// # Errors
    /// Fails for modules without `--enable-lora`, and for modules that cannot be parsed.
    pub(super) fn settings(self) -> Result<LoraSettings, String> {
        let Self {
            enable_lora,
            lora_modules,
            max_loras,
            max_cpu_loras,
            max_lora_rank: _,
            allow_runtime_lora_updating,
        } = self;
        if !enable_lora {
            return match lora_modules.first() {
                None => Ok(LoraSettings::default()),
                Some(module) => Err(format!("--lora-modules {module} needs --enable-lora")),
            };
        }
        if let Some(max_cpu_loras) = max_cpu_loras.filter(|max_cpu_loras| *max_cpu_loras < max_loras) {
            return Err(format!(
                "--max-cpu-loras ({max_cpu_loras}) must be at least --max-loras ({max_loras})"
            ));
        }
        let modules = lora_modules.iter().map(|text| module(text)).collect::<Result<Vec<_>, _>>()?;
        for (idx, module) in modules.iter().enumerate() {
            if modules[..idx].iter().any(|earlier| earlier.name == module.name) {
                return Err(format!("--lora-modules: two adapters are called {}", module.name));
            }
        }
        Ok(LoraSettings { max_loras: Some(max_loras), modules, updates: allow_runtime_lora_updating })
    }
}

fn module(text: &str) -> Result<LoraModule, String> {
    if text.starts_with('{') {
        let JsonModule { name, path, base_model_name } =
            serde_json::from_str(text).map_err(|error| format!("--lora-modules {text}: {error}"))?;
        return Ok(LoraModule { name, path, base_model_name });
    }
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => {
            Ok(LoraModule { name: name.to_owned(), path: path.to_owned(), base_model_name: None })
        }
        _ => Err(format!("--lora-modules {text}: not NAME=PATH, and no JSON object")),
    }
}

/// Parses a rank that vLLM 0.33 has kernels for.
fn rank(text: &str) -> Result<u32, String> {
    const RANKS: [u32; 9] = [1, 8, 16, 32, 64, 128, 256, 320, 512];
    let rank = text.parse().map_err(|_| format!("{text} is not a number"))?;
    if RANKS.contains(&rank) { Ok(rank) } else { Err(format!("must be one of {RANKS:?}")) }
}
