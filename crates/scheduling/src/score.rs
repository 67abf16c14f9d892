//! The figures of one candidate, which a decision compares and keeps.

use prefix_index::endpoint::EndpointId;

use crate::candidate::AdapterState;

/// The figures by which a candidate is judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    pub endpoint: EndpointId,
    /// Matched bytes divided by total bytes, in 0..=1; 0 if the request has no full block.
    pub ratio: f64,
    /// Requests ahead of this one: in flight plus waiting, or only in flight if the metrics are stale.
    pub queue: u32,
    /// KV-cache usage; `None` if the metrics are stale.
    pub kv_usage: Option<f64>,
    /// Bytes of the request that the endpoint would have to compute.
    pub uncached_bytes: u64,
    /// Bytes of earlier requests that it still has to compute.
    pub uncached_in_flight: u64,
    /// Work in bytes, as `Affinity` weighs it; `None` under `Policy::Default`, and for candidates left out as
    /// stale.
    pub work: Option<f64>,
    pub adapter: AdapterState,
}
