//! Time of a step on a GPU: a roofline over the step's tokens, with effective rates fitted to measurements. It is a
//! pure function of the plan; jitter comes from a generator that is passed in.
//!
//! ```text
//! step = gemm + attention + kv + host     gemm = (weights^p + flops^p)^(1/p): memory and compute bound, smoothly
//! ```

pub mod calibration;
pub mod parallel;
pub mod presets;

use crate::step::StepPlan;
use rand::Rng;
use rand_distr::{Distribution as _, StandardNormal};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Sharpness of the turn from memory bound to compute bound; fitted for every GPU at once.
const ROOFLINE_POWER: f64 = 1.7;
/// A jittered step is never shorter than this share of the plain one.
const MIN_JITTER: f64 = 0.5;
const BYTES_PER_GIB: f64 = 1_073_741_824.0;

/// Effective rates of a GPU: what kernels reach, not what the data sheet promises.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    /// Name for `--gpu`.
    #[serde(skip)]
    pub name: &'static str,
    /// Rate of dense 16-bit matrix products \[FLOP/s\].
    pub gemm_rate: f64,
    /// Rate of attention over the context \[FLOP/s\].
    pub attention_rate: f64,
    /// Rate of reading weights \[B/s\].
    pub weight_bandwidth: f64,
    /// Rate of reading KV blocks \[B/s\].
    pub kv_bandwidth: f64,
    /// Memory that torch sees \[GiB\].
    pub memory_gib: f64,
    /// Link between the GPUs of one server.
    pub link: Link,
}

/// Link over which the GPUs of one server exchange activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Link {
    /// Bandwidth of an all-reduce over many bytes \[B/s\].
    pub bandwidth: f64,
    /// Time of an all-reduce over few bytes.
    pub latency: Duration,
}

/// Cost of a model per token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Name in presets, in lower case.
    #[serde(skip)]
    pub name: &'static str,
    /// Parameters of the layers.
    pub layer_params: f64,
    /// Parameters of the head, used on rows that are sampled.
    pub head_params: f64,
    pub weights_gib: f64,
    /// Weights that a step reads: all except the input embedding \[B\].
    pub read_bytes: f64,
    /// Attention per pair of tokens: 4 · layers · heads · head size \[FLOP\].
    pub attention_flops: f64,
    /// KV of one token \[B\].
    pub kv_bytes: f64,
    pub layers: u32,
    /// Attention heads; `kv_heads` of them have a KV of their own.
    pub heads: u32,
    pub kv_heads: u32,
}

/// Time and memory of the server beside the model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host {
    pub per_step: Duration,
    /// Time per request in the step.
    pub per_row: Duration,
    /// Time once per step that has a prefill chunk, which runs outside of CUDA graphs.
    pub per_prefill: Duration,
    /// Memory beside weights and KV: activations and the CUDA context \[GiB\].
    pub reserved_gib: f64,
}

/// A server with one model on its GPU or GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencyModel {
    pub gpu: Gpu,
    pub model: Model,
    pub host: Host,
    /// Time before a request reaches the engine: client, gateway, API server, tokenizer.
    pub c_pre: Duration,
    /// Time from the end of a step until the client has its token.
    pub c_post: Duration,
    /// Time in which several GPUs exchange activations.
    #[serde(default)]
    pub exchange: Exchange,
    /// Constant times that replace the roofline.
    #[serde(default)]
    pub constant: Option<ConstantSteps>,
}

/// Exchange time of one step of several GPUs; zero for one GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Exchange {
    pub per_step: Duration,
    /// Time per token \[s\].
    pub per_token: f64,
}

/// Step times that do not depend on the batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConstantSteps {
    /// Time of a step that only decodes.
    pub decode: Duration,
    /// Time of a step that computes prompt tokens, without the time per prompt token.
    pub prefill: Duration,
    pub per_prompt_token: Duration,
}

/// Numbers of a step that the formula needs.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    n_tokens: f64,
    n_rows: f64,
    n_prefills: f64,
    /// Pairs of tokens that prefill chunks attend over.
    attention_pairs: f64,
    /// Tokens whose KV is read.
    context_tokens: f64,
    prompt_tokens: f64,
}

// === impl LatencyModel ===

impl LatencyModel {
    /// Returns the preset `name`: `a10-doc` (the tutorial's own server), or `<gpu>/<model>` of the tables.
    pub fn preset(name: &str) -> Option<Self> {
        if name == presets::A10_DOC_NAME {
            return Some(presets::A10_DOC);
        }
        let (gpu, model) = name.split_once('/')?;
        Some(Self { gpu: presets::gpu(gpu)?, model: presets::model(model)?, ..presets::TUNED })
    }

    /// Replaces the roofline by constants. `ttft` is an idle server's, for a prompt of one token. A step lasts `itl`
    /// plus the time of its prompt tokens; the rest of `ttft` passes before the engine, where requests do not wait for
    /// each other.
    pub fn with_constants(self, ttft: Duration, itl: Duration, per_prompt_token: Duration) -> Self {
        let prefill = itl.min(ttft);
        let constant = ConstantSteps { decode: itl, prefill, per_prompt_token };
        Self { c_pre: ttft - prefill, c_post: Duration::ZERO, constant: Some(constant), ..self }
    }

    /// Returns the time from the start of the step to its tokens, without jitter; zero for a plan that schedules
    /// nothing.
    pub fn step_time(&self, plan: &StepPlan) -> Duration {
        if plan.scheduled.is_empty() {
            return Duration::ZERO;
        }
        let Self { gpu, model, host, exchange, constant, c_pre: _, c_post: _ } = self;
        let load = Load::of(plan);
        if let Some(constant) = constant {
            return constant.step_time(&load);
        }
        let weights = model.read_bytes / gpu.weight_bandwidth;
        let flops = 2.0 * (model.layer_params * load.n_tokens + model.head_params * load.n_rows);
        let gemm = p_norm(weights, flops / gpu.gemm_rate);
        let attention = model.attention_flops * load.attention_pairs / gpu.attention_rate;
        let kv = load.context_tokens * model.kv_bytes / gpu.kv_bandwidth;
        let host_rows = host.per_row.as_secs_f64() * load.n_rows;
        let prefill = if load.n_prefills > 0.0 { host.per_prefill } else { Duration::ZERO };
        let exchanged = exchange.per_token * load.n_tokens;
        Duration::from_secs_f64(gemm + attention + kv + host_rows + exchanged)
            + host.per_step
            + prefill
            + exchange.per_step
    }

    /// Returns `step_time` times `max(0.5, 1 + sigma * N(0, 1))`; draws nothing if `sigma` is 0.
    pub fn jittered_step_time(&self, plan: &StepPlan, sigma: f64, rng: &mut impl Rng) -> Duration {
        let step_time = self.step_time(plan);
        if sigma == 0.0 {
            return step_time;
        }
        let normal: f64 = StandardNormal.sample(rng);
        step_time.mul_f64((1.0 + sigma * normal).max(MIN_JITTER))
    }

    /// Returns vLLM's `num_gpu_blocks`, the null block included, that fit beside the weights; 0 if none fits.
    pub fn n_kv_blocks(&self, gpu_memory_utilization: f64, block_size: u32) -> u32 {
        let Self { gpu, model, host, .. } = self;
        let gib = gpu.memory_gib * gpu_memory_utilization - model.weights_gib - host.reserved_gib;
        self.n_kv_blocks_in(gib * BYTES_PER_GIB, block_size)
    }

    /// Returns the blocks that fit in `n_bytes` of memory on each GPU.
    pub fn n_kv_blocks_in(&self, n_bytes: f64, block_size: u32) -> u32 {
        let n_blocks = n_bytes / (self.model.kv_bytes * f64::from(block_size));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "rounds down, and saturates at both ends"
        )]
        let n_blocks = n_blocks as u32;
        n_blocks
    }
}

// === impl ConstantSteps ===

impl ConstantSteps {
    fn step_time(&self, load: &Load) -> Duration {
        if load.n_prefills > 0.0 {
            self.prefill + self.per_prompt_token.mul_f64(load.prompt_tokens)
        } else {
            self.decode
        }
    }
}

// === impl Load ===

impl Load {
    fn of(plan: &StepPlan) -> Self {
        let mut load = Self::default();
        for scheduled in &plan.scheduled {
            let n_new = f64::from(scheduled.n_new_tokens);
            let n_before = f64::from(scheduled.n_computed_before);
            load.n_tokens += n_new;
            load.n_rows += 1.0;
            load.context_tokens += n_before + n_new;
            if scheduled.is_prefill {
                load.n_prefills += 1.0;
                load.prompt_tokens += n_new;
                load.attention_pairs += n_new * n_before + n_new * n_new / 2.0;
            }
        }
        load
    }
}

/// Returns a value near the larger of the two, and above it if they are similar.
fn p_norm(a: f64, b: f64) -> f64 {
    (a.powf(ROOFLINE_POWER) + b.powf(ROOFLINE_POWER)).powf(ROOFLINE_POWER.recip())
}
