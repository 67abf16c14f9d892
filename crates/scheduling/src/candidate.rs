//! The picker's knowledge about an endpoint when a request arrives.

use std::time::Duration;

use prefix_index::endpoint::EndpointId;
use serde::{Deserialize, Serialize};

/// An endpoint that could serve the request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub endpoint: EndpointId,
    pub load: Load,
    pub adapter: AdapterState,
    /// Bytes of the request's chain, from the start, that the endpoint is assumed to hold.
    pub matched_bytes: u64,
}

/// Load of an endpoint: what it last reported, and what this picker has sent to it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Requests in the engine's queue, as scraped (`vllm:num_requests_waiting`).
    pub waiting: u32,
    /// Requests in the engine's batch, as scraped (`vllm:num_requests_running`). Only reported, not used to pick.
    pub running: u32,
    /// KV-cache usage in 0..=1, as scraped (`vllm:kv_cache_usage_perc`).
    pub kv_usage: f64,
    /// Requests that this picker sent to it and whose responses have not ended. Up to date at once, unlike the scraped
    /// numbers.
    pub in_flight: u32,
    /// Bytes of their prompts that were not assumed to be cached there; a request's bytes count until its first token.
    pub uncached_bytes: u64,
    /// Age of the scraped numbers; `None` if there are none that can be trusted.
    pub age: Option<Duration>,
    /// True if they are recent enough to be used for a pick.
    pub fresh: bool,
}

/// State of the request's LoRA adapter on an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterState {
    /// The endpoint serves no adapters, or the request does not use one.
    #[default]
    Irrelevant,
    /// The adapter is loaded, or about to be.
    Loaded,
    /// There is room for one more adapter.
    Room,
    /// Another adapter would have to be unloaded.
    Full,
}
