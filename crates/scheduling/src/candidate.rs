//! What the picker knows of an endpoint when a request arrives.

use std::time::Duration;

use prefix_index::endpoint::EndpointId;
use serde::{Deserialize, Serialize};

/// One endpoint that could serve the request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    pub endpoint: EndpointId,
    pub load: Load,
    pub adapter: AdapterState,
    /// Bytes of the request's chain that the endpoint is believed to hold, from the start.
    pub matched_bytes: u64,
}

/// How busy an endpoint is: what it last reported, and what the picker has sent to it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Requests in the engine's queue, as scraped (`vllm:num_requests_waiting`).
    pub waiting: u32,
    /// Requests in the engine's batch, as scraped (`vllm:num_requests_running`). Reported, not used to pick.
    pub running: u32,
    /// KV-cache usage in 0..=1, as scraped (`vllm:kv_cache_usage_perc`).
    pub kv_usage: f64,
    /// Requests that this picker sent to it and whose responses have not ended: the assumed load, exact at once.
    pub in_flight: u32,
    /// Bytes of their prompts that were not believed to be cached there, until their first token came back.
    pub uncached_bytes: u64,
    /// How old the scraped numbers are; `None` when there are none that may be believed.
    pub age: Option<Duration>,
    /// Whether they are recent enough to pick by.
    pub fresh: bool,
}

/// What the request's LoRA adapter would find on an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterState {
    /// The endpoint serves no adapters, or the request wants none.
    #[default]
    Irrelevant,
    /// It is loaded, or about to be.
    Loaded,
    /// There is room for one more.
    Room,
    /// Another adapter would have to go.
    Full,
}
