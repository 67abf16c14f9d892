//! How long a step takes on a GPU: a roofline over the step's tokens with effective rates fitted to measurements.
//! A pure function of the plan; jitter comes from a generator that is passed in.
//!
//! ```text
//! step = gemm + attention + kv + host     gemm = (weights^p + flops^p)^(1/p): memory and compute bound, smoothly
//! ```

pub mod calibration;
pub mod fit;
pub mod parallel;
pub mod presets;

use crate::step::StepPlan;
use rand::Rng;
use rand_distr::{Distribution as _, StandardNormal};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How sharply a step turns from memory bound to compute bound; fitted for every GPU at once.
const ROOFLINE_POWER: f64 = 1.7;
/// A jittered step is never shorter than this share of the plain one.
const MIN_JITTER: f64 = 0.5;
const BYTES_PER_GIB: f64 = 1_073_741_824.0;

/// Effective rates of a GPU: what kernels reach, not what the data sheet says.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gpu {
    /// As `--gpu` names it.
    #[serde(skip)]
    pub name: &'static str,
    /// Dense 16-bit matrix products \[FLOP/s\].
    pub gemm_rate: f64,
    /// Attention over the context \[FLOP/s\].
    pub attention_rate: f64,
    /// Reading weights \[B/s\].
    pub weight_bandwidth: f64,
    /// Reading KV blocks \[B/s\].
    pub kv_bandwidth: f64,
    /// As torch sees it \[GiB\].
    pub memory_gib: f64,
    /// Between the GPUs of one server.
    pub link: Link,
}

/// How GPUs of one server exchange activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Link {
    /// Of an all-reduce over many bytes \[B/s\].
    pub bandwidth: f64,
    /// Of an all-reduce over few.
    pub latency: Duration,
}

/// What a model costs per token.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// As presets name it, in lower case.
    #[serde(skip)]
    pub name: &'static str,
    /// Parameters of the layers.
    pub layer_params: f64,
    /// Parameters of the head, used on rows that are sampled.
    pub head_params: f64,
    pub weights_gib: f64,
    /// Weights that a step reads: all but the input embedding \[B\].
    pub read_bytes: f64,
    /// 4 · layers · heads · head size: attention per pair of tokens \[FLOP\].
    pub attention_flops: f64,
    /// KV of one token \[B\].
    pub kv_bytes: f64,
    pub layers: u32,
    /// Attention heads, and those that have a KV of their own.
    pub heads: u32,
    pub kv_heads: u32,
}

/// What the CPU side of a server adds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Host {
    pub per_step: Duration,
    /// Per request in the step.
    pub per_row: Duration,
    /// Once per step that has a prefill chunk: it runs outside of CUDA graphs.
    pub per_prefill: Duration,
    /// Memory beside weights and KV: activations and the CUDA context \[GiB\].
    pub reserved_gib: f64,
}

/// One GPU with one model behind one server.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LatencyModel {
    pub gpu: Gpu,
    pub model: Model,
    pub host: Host,
    /// Before a request reaches the engine: client, gateway, API server, tokenizer.
    pub c_pre: Duration,
    /// From the end of a step until the client has its token.
    pub c_post: Duration,
    /// What several GPUs spend on each other.
    #[serde(default)]
    pub exchange: Exchange,
    /// Instead of the roofline.
    #[serde(default)]
    pub constant: Option<ConstantSteps>,
}

/// Of one step of several GPUs; nothing for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Exchange {
    pub per_step: Duration,
    /// \[s\]
    pub per_token: f64,
}

/// Times that do not depend on the batch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConstantSteps {
    /// Of a step that only decodes.
    pub decode: Duration,
    /// Of a step that computes prompt tokens, beside what each of them costs.
    pub prefill: Duration,
    pub per_prompt_token: Duration,
}

/// What the formula needs to know of a step.
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
    /// The preset `name`: `a10-doc` (the tutorial's own server), or `<gpu>/<model>` of the tables.
    pub fn preset(name: &str) -> Option<Self> {
        if name == presets::A10_DOC_NAME {
            return Some(presets::A10_DOC);
        }
        let (gpu, model) = name.split_once('/')?;
        Some(Self { gpu: presets::gpu(gpu)?, model: presets::model(model)?, ..presets::TUNED })
    }

    /// `ttft`: an idle server's, for a prompt of one token. A step always lasts `itl`, longer by what prompt tokens cost; the
    /// rest of `ttft` passes before the engine, where nobody waits for anybody.
    pub fn with_constants(self, ttft: Duration, itl: Duration, per_prompt_token: Duration) -> Self {
        let prefill = itl.min(ttft);
        let constant = ConstantSteps { decode: itl, prefill, per_prompt_token };
        Self { c_pre: ttft - prefill, c_post: Duration::ZERO, constant: Some(constant), ..self }
    }

    /// Time from the start of the step to its tokens, without jitter; zero for a plan that schedules nothing.
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

    /// `step_time` times `max(0.5, 1 + sigma * N(0, 1))`; draws nothing when `sigma` is 0.
    pub fn jittered_step_time(&self, plan: &StepPlan, sigma: f64, rng: &mut impl Rng) -> Duration {
        let step_time = self.step_time(plan);
        if sigma == 0.0 {
            return step_time;
        }
        let normal: f64 = StandardNormal.sample(rng);
        step_time.mul_f64((1.0 + sigma * normal).max(MIN_JITTER))
    }

    /// vLLM's `num_gpu_blocks`, the null block included, that fit beside the weights; 0 when nothing does.
    pub fn n_kv_blocks(&self, gpu_memory_utilization: f64, block_size: u32) -> u32 {
        let Self { gpu, model, host, .. } = self;
        let gib = gpu.memory_gib * gpu_memory_utilization - model.weights_gib - host.reserved_gib;
        self.n_kv_blocks_in(gib * BYTES_PER_GIB, block_size)
    }

    /// The same for `n_bytes` of memory on each GPU.
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

/// Near the larger of the two, above it where they are alike.
fn p_norm(a: f64, b: f64) -> f64 {
    (a.powf(ROOFLINE_POWER) + b.powf(ROOFLINE_POWER)).powf(ROOFLINE_POWER.recip())
}
