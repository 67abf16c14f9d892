//! GPUs, models and servers as data. Rates are effective ones. For A10, A10G, A100, H100 and L40S they are fitted to
//! published measurements of the card (within 15 % on step times); for L4, L20 and H20, which have none, they are
//! scaled by ratio (within 25 %).

use super::{Exchange, Gpu, Host, LatencyModel, Link, Model};
use std::time::Duration;

pub const A10_DOC_NAME: &str = "a10-doc";

/// The tutorial's server: Qwen2.5-7B-Instruct on an A10, `--enforce-eager`. The rates, 9 ms per step and 69 ms around
/// the engine reproduce the tutorial's printed results. The memory gives 6,226 blocks at a utilization of 0.95 and
/// 4,926 at 0.90 (the card alone has 22.18 GiB, within 0.2 %).
pub const A10_DOC: LatencyModel = LatencyModel {
    gpu: Gpu { memory_gib: 22.21, ..A10 },
    model: QWEN2_5_7B,
    host: Host {
        per_step: Duration::from_millis(9),
        per_row: Duration::from_micros(200),
        per_prefill: Duration::from_millis(6),
        reserved_gib: 1.529,
    },
    c_pre: Duration::from_millis(60),
    c_post: Duration::from_millis(9),
    exchange: NO_EXCHANGE,
    constant: None,
};

/// A tuned V1 server with CUDA graphs, whose GPU and model are placeholders. Around the engine 35 to 60 ms were
/// measured; the memory beside weights and KV is 1.4 GiB of activations and 0.1 GiB of CUDA context.
pub const TUNED: LatencyModel = LatencyModel {
    gpu: A10,
    model: QWEN2_5_7B,
    host: Host {
        per_step: Duration::from_micros(2_500),
        per_row: Duration::from_micros(100),
        per_prefill: Duration::from_millis(4),
        reserved_gib: 1.5,
    },
    c_pre: Duration::from_millis(40),
    c_post: Duration::from_millis(7),
    exchange: NO_EXCHANGE,
    constant: None,
};

const NO_EXCHANGE: Exchange = Exchange { per_step: Duration::ZERO, per_token: 0.0 };

/// PCIe 4.0 x16, for cards without NVLink; assumed from NCCL's usual all-reduce figures, within a factor of two.
const PCIE: Link = Link { bandwidth: 12e9, latency: Duration::from_micros(25) };
/// Third generation of NVLink: 600 GB/s per GPU on paper; assumed as above.
const NVLINK3: Link = Link { bandwidth: 230e9, latency: Duration::from_micros(15) };
/// Fourth generation of NVLink: 900 GB/s on paper; assumed as above.
const NVLINK4: Link = Link { bandwidth: 360e9, latency: Duration::from_micros(15) };

const A10: Gpu = Gpu {
    name: "a10",
    gemm_rate: 52e12,
    attention_rate: 35e12,
    weight_bandwidth: 485e9,
    kv_bandwidth: 450e9,
    memory_gib: 22.18,
    link: PCIE,
};

pub const GPUS: [Gpu; 8] = [
    A10,
    Gpu { name: "a10g", gemm_rate: 47e12, attention_rate: 33e12, memory_gib: 22.0, ..A10 },
    Gpu {
        name: "l4",
        gemm_rate: 42e12,
        attention_rate: 28e12,
        weight_bandwidth: 245e9,
        kv_bandwidth: 235e9,
        memory_gib: 22.0,
        link: PCIE,
    },
    Gpu {
        name: "l20",
        gemm_rate: 90e12,
        attention_rate: 60e12,
        weight_bandwidth: 700e9,
        kv_bandwidth: 660e9,
        memory_gib: 44.4,
        link: PCIE,
    },
    Gpu {
        name: "l40s",
        gemm_rate: 230e12,
        attention_rate: 150e12,
        weight_bandwidth: 705e9,
        kv_bandwidth: 690e9,
        memory_gib: 44.4,
        link: PCIE,
    },
    Gpu {
        name: "a100-80",
        gemm_rate: 215e12,
        attention_rate: 125e12,
        weight_bandwidth: 1_560e9,
        kv_bandwidth: 1_350e9,
        memory_gib: 79.2,
        link: NVLINK3,
    },
    Gpu {
        name: "h100",
        gemm_rate: 680e12,
        attention_rate: 300e12,
        weight_bandwidth: 2_700e9,
        kv_bandwidth: 2_700e9,
        memory_gib: 79.2,
        link: NVLINK4,
    },
    Gpu {
        name: "h20",
        gemm_rate: 126e12,
        attention_rate: 110e12,
        weight_bandwidth: 3_270e9,
        kv_bandwidth: 2_600e9,
        memory_gib: 95.0,
        link: NVLINK4,
    },
];

const QWEN2_5_7B: Model = Model {
    name: "qwen2.5-7b",
    layer_params: 6.525e9,
    head_params: 0.545e9,
    weights_gib: 14.25,
    read_bytes: 14.14e9,
    attention_flops: 401_408.0,
    kv_bytes: 57_344.0,
    layers: 28,
    heads: 28,
    kv_heads: 4,
};

pub const MODELS: [Model; 6] = [
    Model {
        name: "qwen2.5-0.5b",
        layer_params: 0.358e9,
        head_params: 0.136e9,
        weights_gib: 0.92,
        read_bytes: 0.99e9,
        attention_flops: 86_016.0,
        kv_bytes: 12_288.0,
        layers: 24,
        heads: 14,
        kv_heads: 2,
    },
    Model {
        name: "qwen2.5-1.5b",
        layer_params: 1.310e9,
        head_params: 0.233e9,
        weights_gib: 2.88,
        read_bytes: 3.09e9,
        attention_flops: 172_032.0,
        kv_bytes: 28_672.0,
        layers: 28,
        heads: 12,
        kv_heads: 2,
    },
    QWEN2_5_7B,
    Model {
        name: "qwen2.5-14b",
        layer_params: 13.212e9,
        head_params: 0.779e9,
        weights_gib: 27.5,
        read_bytes: 27.98e9,
        attention_flops: 983_040.0,
        kv_bytes: 196_608.0,
        layers: 48,
        heads: 40,
        kv_heads: 8,
    },
    Model {
        name: "qwen3-8b",
        layer_params: 6.946e9,
        head_params: 0.622e9,
        weights_gib: 15.3,
        read_bytes: 15.14e9,
        attention_flops: 589_824.0,
        kv_bytes: 147_456.0,
        layers: 36,
        heads: 32,
        kv_heads: 8,
    },
    Model {
        name: "llama-3.1-8b",
        layer_params: 6.979e9,
        head_params: 0.525e9,
        weights_gib: 15.0,
        read_bytes: 15.01e9,
        attention_flops: 524_288.0,
        kv_bytes: 131_072.0,
        layers: 32,
        heads: 32,
        kv_heads: 8,
    },
];

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PresetError {
    #[error("no such preset: {0}; there are {A10_DOC_NAME}, and GPU/MODEL of {gpus} and {models}", gpus = gpu_names(), models = model_names())]
    Unknown(String),
    #[error("there are no figures for the model {0}, only for {models}", models = model_names())]
    UnknownModel(String),
}

/// Finds the preset `name`, see [`LatencyModel::preset`].
///
/// # Errors
/// Names the presets that there are.
pub fn named(name: &str) -> Result<LatencyModel, PresetError> {
    LatencyModel::preset(name).ok_or_else(|| PresetError::Unknown(name.to_owned()))
}

/// Returns the name of the preset with the figures of a served model, like `Qwen/Qwen2.5-7B-Instruct`, on a GPU.
///
/// # Errors
/// Fails for a model without figures.
pub fn name_on_gpu(gpu: &str, served: &str) -> Result<String, PresetError> {
    let known = model_of(served).ok_or_else(|| PresetError::UnknownModel(served.to_owned()))?;
    Ok(format!("{gpu}/{}", known.name))
}

pub fn gpu_names() -> String {
    GPUS.map(|gpu| gpu.name).join(", ")
}

fn model_names() -> String {
    MODELS.map(|model| model.name).join(", ")
}

pub fn gpu(name: &str) -> Option<Gpu> {
    GPUS.into_iter().find(|gpu| gpu.name == name)
}

pub fn model(name: &str) -> Option<Model> {
    MODELS.into_iter().find(|model| model.name == name)
}

/// Finds the model whose name is part of the served one, like `Qwen/Qwen2.5-7B-Instruct`.
pub fn model_of(served: &str) -> Option<Model> {
    let served = served.to_lowercase();
    MODELS.into_iter().find(|model| served.contains(model.name))
}
