//! The picker's view of its pools, endpoints and models, for people: `/debug/pools`.

use std::sync::Arc;

use inference_api::condition::Condition;
use inference_api::pool::FailureMode;
use serde::Serialize;

/// Answer of `GET /debug/pools`.
#[derive(Debug, Serialize)]
pub struct StatusList {
    pub pools: Vec<PoolStatus>,
    /// Every InferenceModel, served or not.
    pub models: Vec<ModelStatus>,
}

#[derive(Debug, Serialize)]
pub struct PoolStatus {
    /// `namespace/name`.
    pub pool: String,
    pub strategy: &'static str,
    pub runtime: &'static str,
    pub prefix_source: &'static str,
    pub failure_mode: FailureMode,
    /// Annotations that were not understood, and the value that is used instead.
    pub problems: Vec<String>,
    pub endpoints: Vec<EndpointStatus>,
    /// Served models, by the name that clients ask for.
    pub models: Vec<ServedModel>,
}

#[derive(Debug, Serialize)]
pub struct EndpointStatus {
    /// `ip:port`.
    pub endpoint: Arc<str>,
    pub pod: Arc<str>,
    /// False if nothing listens at the endpoint.
    pub reachable: bool,
    /// True if its metrics are recent enough to be used for a pick.
    pub fresh: bool,
    pub metrics_age_ms: Option<u64>,
    pub waiting: u32,
    pub running: u32,
    /// KV-cache usage in 0..=1.
    pub kv_usage: f64,
    pub in_flight: u32,
    /// Bytes of the prompts in flight to it that it still has to compute.
    pub uncached_bytes: u64,
    /// Bytes of text that its cache is assumed to hold.
    pub believed_bytes: u64,
    /// Bytes of text that its cache has room for; absent until its metrics contain the cache's size.
    pub max_believed_bytes: Option<u64>,
    /// Size of its KV cache in tokens, from its metrics.
    pub kv_tokens: Option<u64>,
    /// Mean bytes of its tokens, from its answers.
    pub bytes_per_token: Option<f64>,
}

#[derive(Debug, Serialize)]
pub struct ServedModel {
    pub model_name: String,
    /// The InferenceModel that has the name.
    pub object: String,
    pub criticality: &'static str,
    pub targets: Vec<Target>,
}

#[derive(Debug, Serialize)]
pub struct Target {
    pub name: String,
    pub weight: Option<u32>,
}

#[derive(Debug, Serialize)]
pub struct ModelStatus {
    /// `namespace/name` of the InferenceModel.
    pub object: String,
    pub model_name: String,
    pub pool: String,
    pub conditions: Vec<Condition>,
}
