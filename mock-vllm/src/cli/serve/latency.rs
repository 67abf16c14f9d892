//! Flags of `serve` and of `latency` about how long steps take: a preset, a GPU, a file, or constants.

use super::values::{jitter, time};
use clap::Args;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vllm_engine::latency::calibration::Calibration;
use vllm_engine::latency::{LatencyModel, calibration, presets};

#[derive(Debug, Args)]
#[command(next_help_heading = "Latency")]
pub(in crate::cli) struct LatencyArgs {
    /// GPU, model and server to imitate: `a10-doc` (the tutorial's), or `<gpu>/<model>` like `h100/qwen2.5-7b`;
    /// `mock-vllm latency --list` shows all
    #[arg(long, value_name = "NAME", default_value = presets::A10_DOC_NAME, value_parser = preset_name)]
    latency_preset: String,
    /// GPU of the presets, with the figures of the served MODEL
    #[arg(long, value_name = "NAME", conflicts_with = "latency_preset", value_parser = gpu_name)]
    gpu: Option<String>,
    /// Constants that replace the preset's; `mock-vllm latency --schema` describes the file
    #[arg(long, value_name = "FILE")]
    latency_calibration: Option<PathBuf>,
    /// Constant time to the first token of an idle server, like 50ms, instead of the model's; the KV cache stays the
    /// preset's
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "latency_calibration")]
    constant_ttft: Option<Duration>,
    /// Constant time between tokens, like 10ms, whatever the batch
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "latency_calibration")]
    constant_itl: Option<Duration>,
    /// Time that each prompt token that is not cached adds to the step that computes it, like 200us
    #[arg(long, value_name = "TIME", value_parser = time, conflicts_with = "latency_calibration")]
    constant_prefill_per_token: Option<Duration>,
    /// Relative standard deviation of each step's time, drawn by --seed; 0 = none
    #[arg(long, value_name = "F", default_value_t = 0.03, value_parser = jitter)]
    pub(in crate::cli) jitter: f64,
}

// === impl LatencyArgs ===

impl LatencyArgs {
    /// Chooses the latency model for the model called `model` on `n_gpus` GPUs.
    ///
    /// # Errors
    /// Names the flag or the file's key that is wrong.
    pub(in crate::cli) fn choose(&self, model: &str, n_gpus: NonZeroU32) -> Result<LatencyModel, String> {
        let base = match &self.gpu {
            Some(gpu) => on_gpu(gpu, model)?,
            None => preset(&self.latency_preset)?,
        };
        let mut latency = match &self.latency_calibration {
            Some(path) => calibrate(path, base)?,
            None => base,
        };
        // The figures of another model stand in for one that is not known. Any usual number of GPUs divides its heads.
        if presets::model_of(model).is_none() && n_gpus.is_power_of_two() {
            latency.model.heads = latency.model.heads.next_multiple_of(n_gpus.get());
        }
        let latency = latency
            .tensor_parallel(n_gpus)
            .map_err(|error| format!("--tensor-parallel-size {n_gpus}: {error}"))?;
        let constants = (self.constant_ttft, self.constant_itl, self.constant_prefill_per_token);
        Ok(match constants {
            (None, None, None) => latency,
            (ttft, itl, per_token) => {
                let itl = itl.unwrap_or_default();
                latency.with_constants(ttft.unwrap_or(itl), itl, per_token.unwrap_or_default())
            }
        })
    }
}

fn calibrate(path: &Path, base: LatencyModel) -> Result<LatencyModel, String> {
    let fail = |reason: String| {
        format!("--latency-calibration {}: {reason}\n{}", path.display(), calibration::SCHEMA)
    };
    let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    let file: Calibration = serde_saphyr::from_str(&text).map_err(|error| fail(error.to_string()))?;
    file.apply(base).map_err(|error| fail(error.to_string()))
}

fn on_gpu(gpu: &str, model: &str) -> Result<LatencyModel, String> {
    let name = presets::name_on_gpu(gpu, model).map_err(|error| {
        format!(
            "--gpu {gpu}: {error}; name one that is like it with --latency-preset {gpu}/NAME, or give its own with \
             --latency-calibration"
        )
    })?;
    preset(&name)
}

fn preset(name: &str) -> Result<LatencyModel, String> {
    presets::named(name).map_err(|error| error.to_string())
}

fn preset_name(name: &str) -> Result<String, String> {
    preset(name).map(|_| name.to_owned())
}

fn gpu_name(name: &str) -> Result<String, String> {
    match presets::gpu(name) {
        Some(_) => Ok(name.to_owned()),
        None => Err(format!("no such GPU; there are {}", presets::gpu_names())),
    }
}
