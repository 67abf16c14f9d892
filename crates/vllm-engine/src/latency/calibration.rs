//! A latency model from a file with constants of the formula.

use super::LatencyModel;
use super::presets::{self, PresetError};
use crate::request::RequestId;
use crate::step::{Origin, ScheduledRequest, StepPlan};
use serde::Deserialize;
use std::time::Duration;

/// Shape of the file, for `--help` and errors.
pub const SCHEMA: &str = "\
YAML or JSON, every key optional:
  base: a10/qwen2.5-7b        # preset with the values that the file does not have [default: the other flags']
  gpu:                        # effective rates
    gemm_tflops: 52.0           # 16-bit matrix products
    attention_tflops: 35.0      # prefill attention
    weight_gb_per_s: 485.0      # reading weights
    kv_gb_per_s: 450.0          # reading KV
    memory_gib: 22.18           # memory that torch sees
    link_gb_per_s: 12.0         # all-reduce between the GPUs of --tensor-parallel-size
    link_us: 25.0               # time of one small all-reduce
  model:
    layer_params: 6.525e9       # parameters without embedding and head
    head_params: 0.545e9        # parameters of the head
    weights_gib: 14.25
    read_gb: 14.14              # weights that a step reads: all except the input embedding
    attention_flops: 401408     # 4 x layers x heads x head size
    kv_bytes: 57344             # KV of one token
    layers: 28
    heads: 28
    kv_heads: 4
  host:
    step_ms: 9.0                # per step
    row_ms: 0.2                 # per request in the step
    prefill_ms: 6.0             # per step with prompt tokens
    reserved_gib: 1.5           # memory beside weights and KV
    before_ms: 60.0             # from arrival to the engine
    after_ms: 9.0               # from the end of a step to the client
# `cargo e2e calibrate` writes such a file from measured steps.";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Calibration {
    /// Preset to start from; `None` for the caller's.
    base: Option<String>,
    gpu: GpuValues,
    model: ModelValues,
    host: HostValues,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct GpuValues {
    gemm_tflops: Option<f64>,
    attention_tflops: Option<f64>,
    weight_gb_per_s: Option<f64>,
    kv_gb_per_s: Option<f64>,
    memory_gib: Option<f64>,
    link_gb_per_s: Option<f64>,
    link_us: Option<f64>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ModelValues {
    layer_params: Option<f64>,
    head_params: Option<f64>,
    weights_gib: Option<f64>,
    read_gb: Option<f64>,
    attention_flops: Option<f64>,
    kv_bytes: Option<f64>,
    layers: Option<u32>,
    heads: Option<u32>,
    kv_heads: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HostValues {
    step_ms: Option<f64>,
    row_ms: Option<f64>,
    prefill_ms: Option<f64>,
    reserved_gib: Option<f64>,
    before_ms: Option<f64>,
    after_ms: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CalibrationError {
    #[error("base: {0}")]
    Base(PresetError),
    #[error("{name} must be a number above 0, got {value}")]
    Value { name: &'static str, value: f64 },
    #[error("{name} must not be negative, got {value}")]
    Negative { name: &'static str, value: f64 },
}

// === impl Calibration ===

impl Calibration {
    /// Puts the file's values into its base, or else into `fallback`.
    ///
    /// # Errors
    /// Names the value that is out of range.
    pub fn apply(&self, fallback: LatencyModel) -> Result<LatencyModel, CalibrationError> {
        let mut latency = match &self.base {
            Some(name) => presets::named(name).map_err(CalibrationError::Base)?,
            None => fallback,
        };
        self.gpu.apply(&mut latency)?;
        self.model.apply(&mut latency)?;
        self.host.apply(&mut latency)?;
        Ok(latency)
    }
}

// === impl GpuValues ===

impl GpuValues {
    fn apply(&self, latency: &mut LatencyModel) -> Result<(), CalibrationError> {
        let gpu = &mut latency.gpu;
        set(&mut gpu.gemm_rate, "gpu.gemm_tflops", self.gemm_tflops, 1e12)?;
        set(&mut gpu.attention_rate, "gpu.attention_tflops", self.attention_tflops, 1e12)?;
        set(&mut gpu.weight_bandwidth, "gpu.weight_gb_per_s", self.weight_gb_per_s, 1e9)?;
        set(&mut gpu.kv_bandwidth, "gpu.kv_gb_per_s", self.kv_gb_per_s, 1e9)?;
        set(&mut gpu.memory_gib, "gpu.memory_gib", self.memory_gib, 1.0)?;
        set(&mut gpu.link.bandwidth, "gpu.link_gb_per_s", self.link_gb_per_s, 1e9)?;
        set_time(&mut gpu.link.latency, "gpu.link_us", self.link_us, 1e-6)
    }
}

// === impl ModelValues ===

impl ModelValues {
    fn apply(&self, latency: &mut LatencyModel) -> Result<(), CalibrationError> {
        let model = &mut latency.model;
        set(&mut model.layer_params, "model.layer_params", self.layer_params, 1.0)?;
        set(&mut model.head_params, "model.head_params", self.head_params, 1.0)?;
        set(&mut model.weights_gib, "model.weights_gib", self.weights_gib, 1.0)?;
        set(&mut model.read_bytes, "model.read_gb", self.read_gb, 1e9)?;
        set(&mut model.attention_flops, "model.attention_flops", self.attention_flops, 1.0)?;
        set(&mut model.kv_bytes, "model.kv_bytes", self.kv_bytes, 1.0)?;
        set_count(&mut model.layers, "model.layers", self.layers)?;
        set_count(&mut model.heads, "model.heads", self.heads)?;
        set_count(&mut model.kv_heads, "model.kv_heads", self.kv_heads)
    }
}

// === impl HostValues ===

impl HostValues {
    fn apply(&self, latency: &mut LatencyModel) -> Result<(), CalibrationError> {
        set_time(&mut latency.host.per_step, "host.step_ms", self.step_ms, 1e-3)?;
        set_time(&mut latency.host.per_row, "host.row_ms", self.row_ms, 1e-3)?;
        set_time(&mut latency.host.per_prefill, "host.prefill_ms", self.prefill_ms, 1e-3)?;
        set_time(&mut latency.c_pre, "host.before_ms", self.before_ms, 1e-3)?;
        set_time(&mut latency.c_post, "host.after_ms", self.after_ms, 1e-3)?;
        match self.reserved_gib {
            Some(value) if !(value >= 0.0 && value.is_finite()) => {
                Err(CalibrationError::Negative { name: "host.reserved_gib", value })
            }
            Some(value) => {
                latency.host.reserved_gib = value;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn set(field: &mut f64, name: &'static str, value: Option<f64>, unit: f64) -> Result<(), CalibrationError> {
    let Some(value) = value else { return Ok(()) };
    if !(value > 0.0 && (value * unit).is_finite()) {
        return Err(CalibrationError::Value { name, value });
    }
    *field = value * unit;
    Ok(())
}

fn set_count(field: &mut u32, name: &'static str, value: Option<u32>) -> Result<(), CalibrationError> {
    match value {
        Some(0) => Err(CalibrationError::Value { name, value: 0.0 }),
        Some(value) => {
            *field = value;
            Ok(())
        }
        None => Ok(()),
    }
}

fn set_time(
    field: &mut Duration,
    name: &'static str,
    value: Option<f64>,
    unit: f64,
) -> Result<(), CalibrationError> {
    let Some(value) = value else { return Ok(()) };
    *field =
        Duration::try_from_secs_f64(value * unit).map_err(|_| CalibrationError::Negative { name, value })?;
    Ok(())
}

/// Makes a step of requests, each given as computed tokens, new tokens, and whether the new tokens are of the prompt.
pub fn step(entries: impl IntoIterator<Item = (u32, u32, bool)>) -> StepPlan {
    let scheduled =
        (0..).zip(entries).map(|(id, (n_computed_before, n_new_tokens, is_prefill))| ScheduledRequest {
            id: RequestId(id),
            n_new_tokens,
            n_computed_before,
            is_prefill,
            origin: Origin::Running,
        });
    StepPlan { scheduled: scheduled.collect(), preempted: Vec::new() }
}
