//! The work that a request makes on an endpoint: weighs a cached prefix against load.
//!
//! ```text
//! work = uncached bytes in flight + own uncached bytes × (1 + stall × queue) + queue_bytes × queue + kv_bytes × fullness
//! ```
//! Work is counted in bytes of prompt that an engine has to compute. The first two terms are the bytes that the request
//! waits for. The stall is the delay of the requests that are being answered there meanwhile; it prevents the cache
//! from being given up for small gains. The queue's term spreads requests that are cached everywhere.

/// Upper bound of the relative difference between two ways of adding up work: they round seven times together.
const ROUNDING: f64 = 16.0 * f64::EPSILON;

/// Weights of `PREFIX_CACHE`. The defaults are the middle of a wide plateau, found by simulating four A10s under loads
/// that favour affinity, load and neither (the crate's tests keep those loads).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affinity {
    /// Share of the request that an endpoint must exceed for its prefix to count.
    pub threshold: f64,
    /// Bytes that each request ahead adds to the work.
    pub queue_bytes: f64,
    /// Share of the request's own uncached bytes that each request ahead adds to the work.
    pub stall: f64,
    /// Bytes that a full KV cache adds to the work; one that is at most [`Self::kv_threshold`] full adds none.
    pub kv_bytes: f64,
    /// KV-cache usage in 0..=1 above which `kv_bytes` apply.
    pub kv_threshold: f64,
    /// The endpoint with the longest match keeps the request until another has less work by more than this.
    pub spill_bytes: f64,
}

/// The inputs of the work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Burden {
    /// Bytes of other requests that the endpoint still has to compute.
    pub(crate) uncached_in_flight: u64,
    /// Bytes of this request that the endpoint would have to compute.
    pub(crate) own_uncached: u64,
    /// Requests ahead.
    pub(crate) queue: u32,
    /// KV-cache usage in 0..=1; `None` if unknown.
    pub(crate) kv_usage: Option<f64>,
}

impl Default for Affinity {
    /// The tutorial's threshold: more than half of a prompt must match.
    fn default() -> Self {
        Self::new(0.5)
    }
}

impl Affinity {
    /// Bytes of an English prompt per token of Qwen's and Llama's vocabularies, to which the defaults are scaled.
    pub const BYTES_PER_TOKEN: f64 = 4.0;

    /// The defaults with another threshold.
    #[must_use]
    pub const fn new(threshold: f64) -> Self {
        Self {
            threshold,
            queue_bytes: 64.0 * Self::BYTES_PER_TOKEN,
            stall: 0.1,
            kv_bytes: 1024.0 * Self::BYTES_PER_TOKEN,
            kv_threshold: 0.9,
            spill_bytes: 256.0 * Self::BYTES_PER_TOKEN,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "prompts are far below 2^53 bytes")]
    pub(crate) fn work(&self, burden: Burden) -> f64 {
        let Burden { uncached_in_flight, own_uncached, queue, kv_usage } = burden;
        let queue = f64::from(queue);
        uncached_in_flight as f64
            + own_uncached as f64 * (1.0 + self.stall * queue)
            + self.queue_bytes * queue
            + self.kv_bytes * self.fullness(kv_usage.unwrap_or(0.0))
    }

    /// The part of the work that is the same for every request.
    #[expect(clippy::cast_precision_loss, reason = "prompts are far below 2^53 bytes")]
    pub(crate) fn burden(&self, uncached_in_flight: u64, kv_usage: f64) -> f64 {
        uncached_in_flight as f64 + self.kv_bytes * self.fullness(kv_usage)
    }

    /// A lower bound of [`Self::work`] for a [`Self::burden`], however the sum is rounded.
    #[expect(clippy::cast_precision_loss, reason = "prompts are far below 2^53 bytes")]
    pub(crate) fn floor(&self, burden: f64, own_uncached: u64, queue: u32) -> f64 {
        let queue = f64::from(queue);
        let sum = burden + (own_uncached as f64 * (1.0 + self.stall * queue) + self.queue_bytes * queue);
        sum * (1.0 - ROUNDING)
    }

    /// Usage above the threshold: 0 up to the threshold, 1 for a full cache.
    fn fullness(&self, kv_usage: f64) -> f64 {
        let above = (kv_usage - self.kv_threshold).max(0.0);
        if above > 0.0 { (above / (1.0 - self.kv_threshold)).min(1.0) } else { 0.0 }
    }
}
