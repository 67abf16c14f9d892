//! One model on several GPUs: each has its share of the weights, the work and the KV, and all wait for each other.

use super::{Exchange, LatencyModel, Model};
use std::num::NonZeroU32;
use std::time::Duration;

/// All-reduces of activations per layer: after attention and after the feed-forward part.
const EXCHANGES_PER_LAYER: f64 = 2.0;

/// Error of vLLM's check in `config/model.py`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Total number of attention heads ({heads}) must be divisible by tensor parallel size ({size}).")]
pub struct UnevenHeads {
    pub heads: u32,
    pub size: u32,
}

impl LatencyModel {
    /// Divides weights, work and KV by `size`, and adds two ring all-reduces per layer. If there are fewer KV heads
    /// than GPUs, the heads are copied.
    ///
    /// # Errors
    /// Fails if the heads cannot be divided evenly.
    pub fn tensor_parallel(self, size: NonZeroU32) -> Result<Self, UnevenHeads> {
        let Self { gpu, model, .. } = self;
        let size = size.get();
        if !model.heads.is_multiple_of(size) {
            return Err(UnevenHeads { heads: model.heads, size });
        }
        if size == 1 {
            return Ok(self);
        }
        let share = f64::from(size).recip();
        let kv_share = share.max(f64::from(model.kv_heads).recip());
        let n_exchanges = EXCHANGES_PER_LAYER * f64::from(model.layers);
        // A value has two bytes: for models whose heads span the hidden size, `attention_flops` equals the bytes of
        // both exchanges of all layers.
        let ring = 2.0 * (1.0 - share);
        let exchange = Exchange {
            per_step: Duration::from_secs_f64(n_exchanges * gpu.link.latency.as_secs_f64()),
            per_token: ring * model.attention_flops / gpu.link.bandwidth,
        };
        let model = Model {
            layer_params: model.layer_params * share,
            head_params: model.head_params * share,
            weights_gib: model.weights_gib * share,
            read_bytes: model.read_bytes * share,
            attention_flops: model.attention_flops * share,
            kv_bytes: model.kv_bytes * kv_share,
            ..model
        };
        Ok(Self { model, exchange, ..self })
    }
}
