//! The metrics of requests by model. A request looks up those of its model once.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::{
    HistogramFamily, INPUT_TOKENS, ModelLabels, OUTPUT_TOKENS, REQUEST_BYTES, REQUEST_SECONDS,
    RESPONSE_BYTES, RunningLabels, SECONDS_PER_TOKEN, UNLISTED_MODEL,
};

/// A metric that does not exist until it is first used.
type Lazy<M> = LazyLock<M, Box<dyn FnOnce() -> M + Send + Sync>>;

/// The metrics of one model.
#[derive(Debug)]
pub struct ModelMetrics {
    pub labels: ModelLabels,
    pub requests: Lazy<Counter>,
    pub running_requests: Lazy<Gauge>,
    pub request_bytes: Lazy<Histogram>,
    pub response_bytes: Lazy<Histogram>,
    pub request_seconds: Lazy<Histogram>,
    pub input_tokens: Lazy<Histogram>,
    pub output_tokens: Lazy<Histogram>,
    pub prompt_cached_tokens: Lazy<Histogram>,
    pub seconds_per_output_token: Lazy<Histogram>,
}

/// The metrics of all models.
pub(super) struct Families {
    pub(super) requests: Family<ModelLabels, Counter>,
    pub(super) running_requests: Family<RunningLabels, Gauge>,
    pub(super) request_bytes: HistogramFamily<ModelLabels>,
    pub(super) response_bytes: HistogramFamily<ModelLabels>,
    pub(super) request_seconds: HistogramFamily<ModelLabels>,
    pub(super) input_tokens: HistogramFamily<ModelLabels>,
    pub(super) output_tokens: HistogramFamily<ModelLabels>,
    pub(super) prompt_cached_tokens: HistogramFamily<ModelLabels>,
    pub(super) seconds_per_output_token: HistogramFamily<ModelLabels>,
}

/// The metrics of every model, and of requests without one.
pub struct Models {
    pub(super) families: Families,
    /// Metrics of requests whose model is not known.
    pub unnamed: Arc<ModelMetrics>,
    /// Metrics of requests for models that no InferenceModel has.
    pub unlisted: Arc<ModelMetrics>,
    listed: Mutex<HashMap<ModelLabels, Arc<ModelMetrics>>>,
}

// === impl Families ===

impl Default for Families {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            running_requests: Family::default(),
            request_bytes: Family::new_with_constructor(|| Histogram::new(REQUEST_BYTES)),
            response_bytes: Family::new_with_constructor(|| Histogram::new(RESPONSE_BYTES)),
            request_seconds: Family::new_with_constructor(|| Histogram::new(REQUEST_SECONDS)),
            input_tokens: Family::new_with_constructor(|| Histogram::new(INPUT_TOKENS)),
            output_tokens: Family::new_with_constructor(|| Histogram::new(OUTPUT_TOKENS)),
            prompt_cached_tokens: Family::new_with_constructor(|| Histogram::new(INPUT_TOKENS)),
            seconds_per_output_token: Family::new_with_constructor(|| Histogram::new(SECONDS_PER_TOKEN)),
        }
    }
}

impl Families {
    fn of_model(&self, model_name: &str, target_model_name: &str) -> Arc<ModelMetrics> {
        let running = RunningLabels { model_name: model_name.to_owned() };
        let labels = ModelLabels {
            model_name: model_name.to_owned(),
            target_model_name: target_model_name.to_owned(),
        };
        Arc::new(ModelMetrics {
            requests: lazy(&self.requests, &labels),
            running_requests: lazy(&self.running_requests, &running),
            request_bytes: lazy(&self.request_bytes, &labels),
            response_bytes: lazy(&self.response_bytes, &labels),
            request_seconds: lazy(&self.request_seconds, &labels),
            input_tokens: lazy(&self.input_tokens, &labels),
            output_tokens: lazy(&self.output_tokens, &labels),
            prompt_cached_tokens: lazy(&self.prompt_cached_tokens, &labels),
            seconds_per_output_token: lazy(&self.seconds_per_output_token, &labels),
            labels,
        })
    }
}

fn lazy<L, M, C>(family: &Family<L, M, C>, labels: &L) -> Lazy<M>
where
    L: Clone + Eq + Hash + Send + Sync + 'static,
    M: Clone + Send + Sync + 'static,
    C: MetricConstructor<M> + Clone + Send + Sync + 'static,
{
    let (family, labels) = (family.clone(), labels.clone());
    LazyLock::new(Box::new(move || family.get_or_create(&labels).clone()))
}

// === impl Models ===

impl fmt::Debug for Models {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Models").finish_non_exhaustive()
    }
}

impl Default for Models {
    fn default() -> Self {
        let families = Families::default();
        Self {
            unnamed: families.of_model("", ""),
            unlisted: families.of_model(UNLISTED_MODEL, UNLISTED_MODEL),
            listed: Mutex::default(),
            families,
        }
    }
}

impl Models {
    /// The metrics of a model that an InferenceModel has, and of the target that was chosen for it.
    pub fn listed(&self, model_name: &str, target_model_name: &str) -> Arc<ModelMetrics> {
        let labels = ModelLabels {
            model_name: model_name.to_owned(),
            target_model_name: target_model_name.to_owned(),
        };
        let mut listed = self.listed.lock();
        let metrics =
            listed.entry(labels).or_insert_with(|| self.families.of_model(model_name, target_model_name));
        Arc::clone(metrics)
    }
}
