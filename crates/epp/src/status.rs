//! What the picker knows of its pools, their endpoints and their models, for people: `/debug/pools`.

use std::sync::Arc;

use inference_api::condition::Condition;
use inference_api::pool::FailureMode;
use serde::Serialize;

/// What `GET /debug/pools` answers.
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
    /// Annotations that were not understood.
    pub problems: Vec<String>,
    pub endpoints: Vec<EndpointStatus>,
    /// Those that are served: by the name that clients ask for.
    pub models: Vec<ServedModel>,
}

#[derive(Debug, Serialize)]
pub struct EndpointStatus {
    /// `ip:port`.
    pub endpoint: Arc<str>,
    pub pod: Arc<str>,
    /// False when nothing listens there.
    pub reachable: bool,
    /// Whether its metrics are recent enough to pick by.
    pub fresh: bool,
    pub metrics_age_ms: Option<u64>,
    pub waiting: u32,
    pub running: u32,
    /// 0 to 1.
    pub kv_usage: f64,
    pub in_flight: u32,
    /// Bytes of the prompts in flight to it that it has still to compute.
    pub uncached_bytes: u64,
    /// Bytes of text that it is believed to hold.
    pub believed_bytes: u64,
    /// What its cache has room for; absent until its metrics tell the cache's size.
    pub max_believed_bytes: Option<u64>,
    /// Size of its KV cache in tokens, as its metrics say.
    pub kv_tokens: Option<u64>,
    /// Mean length of its tokens, as its answers say.
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
