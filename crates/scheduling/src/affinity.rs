//! What an endpoint would have to do for a request: the price of a cached prefix against that of load.
//!
//! ```text
//! work = uncached bytes in flight + own uncached bytes × (1 + stall × queue) + queue_bytes × queue + kv_bytes × fullness
//! ```
//! Work is counted in bytes of prompt that an engine has to compute. The first two terms are what the request waits for;
//! the stall is what those wait for that are being answered there meanwhile, and it is what keeps the cache from being
//! thrown over for small gains; the queue's term spreads requests that are cached everywhere.

/// More, relative to the sum, than two ways of adding up work can differ: they make seven roundings together.
const ROUNDING: f64 = 16.0 * f64::EPSILON;

/// How `PREFIX_CACHE` weighs. The defaults are the middle of a wide plateau, found by simulating four A10s under loads that
/// favour affinity, load and neither (the crate's tests keep those loads).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Affinity {
    /// A prefix counts if more than this share of the request is held.
    pub threshold: f64,
    /// Bytes that each request ahead counts as.
    pub queue_bytes: f64,
    /// Share of the own uncached bytes that each request ahead adds.
    pub stall: f64,
    /// Bytes that a full KV cache counts as; one that is [`Self::kv_threshold`] full counts nothing.
    pub kv_bytes: f64,
    /// 0 to 1.
    pub kv_threshold: f64,
    /// The endpoint that holds the most keeps the request until another has less work by more than this.
    pub spill_bytes: f64,
}

/// What makes work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Burden {
    /// Bytes of other requests that are still to be computed.
    pub(crate) uncached_in_flight: u64,
    /// Bytes of this request that are to be computed.
    pub(crate) own_uncached: u64,
    /// Requests ahead.
    pub(crate) queue: u32,
    /// 0 to 1; `None` if unknown.
    pub(crate) kv_usage: Option<f64>,
}

impl Affinity {
    /// Bytes of an English prompt for each token of Qwen's and Llama's vocabularies, to which the defaults are scaled.
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

    /// The part of work that is the same for every request.
    #[expect(clippy::cast_precision_loss, reason = "prompts are far below 2^53 bytes")]
    pub(crate) fn burden(&self, uncached_in_flight: u64, kv_usage: f64) -> f64 {
        uncached_in_flight as f64 + self.kv_bytes * self.fullness(kv_usage)
    }

    /// At most what [`Self::work`] is with a [`Self::burden`], whichever way it was rounded.
    #[expect(clippy::cast_precision_loss, reason = "prompts are far below 2^53 bytes")]
    pub(crate) fn floor(&self, burden: f64, own_uncached: u64, queue: u32) -> f64 {
        let queue = f64::from(queue);
        let sum = burden + (own_uncached as f64 * (1.0 + self.stall * queue) + self.queue_bytes * queue);
        sum * (1.0 - ROUNDING)
    }

    /// 0 up to the threshold, 1 when full.
    fn fullness(&self, kv_usage: f64) -> f64 {
        let above = (kv_usage - self.kv_threshold).max(0.0);
        if above > 0.0 { (above / (1.0 - self.kv_threshold)).min(1.0) } else { 0.0 }
    }
}
