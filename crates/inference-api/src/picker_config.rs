//! EndpointPickerConfig, the configuration file of upstream's pickers: what it says of the prefix cache, queues and KV
//! caches.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::field::FieldError;
use crate::gateway::parse_duration;
use crate::keys;
use crate::manifest;

/// The kind of the object.
pub const KIND: &str = "EndpointPickerConfig";
/// Version of both groups.
const VERSION: &str = "v1alpha1";
/// Plugins whose parameters are read: the picker's own ways, and what only names others.
const PLUGINS: [&str; 9] = [
    "max-score-picker",
    "single-profile-handler",
    "prefix-cache-scorer",
    "queue-scorer",
    "kv-cache-scorer",
    "kv-cache-utilization-scorer",
    "prefix-cache-affinity-filter",
    "approx-prefix-cache-producer",
    "utilization-detector",
];
/// Weight of a scorer that names none.
const DEFAULT_WEIGHT: f64 = 1.0;

/// The parts of a configuration that Warmpath's picker has, too.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PickerConfig {
    /// Weights of the scorers; `None` if the configuration has no scheduling profile.
    pub weights: Option<Weights>,
    /// Share of the prompt from which the holders of a prefix are preferred.
    pub affinity_threshold: Option<f64>,
    /// Bound of the prefix index, in blocks per endpoint.
    pub index_capacity: Option<u32>,
    pub saturation: Saturation,
    /// Paths of the fields that have no counterpart.
    pub left_out: Vec<String>,
}

/// Weights of the scorers of the first scheduling profile; 0 for one that it does not name.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weights {
    pub prefix: f64,
    pub queue: f64,
    pub kv_cache: f64,
}

/// Limits above which an endpoint has no capacity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Saturation {
    pub queue_depth: Option<u32>,
    pub kv_usage: Option<f64>,
    pub metrics_age: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    api_version: String,
    kind: String,
    #[serde(default)]
    plugins: Vec<Plugin>,
    #[serde(default)]
    scheduling_profiles: Vec<Profile>,
    /// Limits of versions before 1.4, and a reference to a plugin since.
    #[serde(default)]
    saturation_detector: Map<String, Value>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Deserialize)]
struct Plugin {
    name: Option<String>,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    parameters: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Profile {
    #[serde(default)]
    plugins: Vec<ProfilePlugin>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProfilePlugin {
    plugin_ref: String,
    weight: Option<f64>,
}

/// True if a document is such a configuration.
#[must_use]
pub fn is_config(api_version: &str, kind: &str) -> bool {
    kind == KIND
        && [keys::GROUP_X, keys::LLM_D_GROUP].iter().any(|group| api_version == format!("{group}/{VERSION}"))
}

impl PickerConfig {
    /// Reads the first document of a text of YAML or JSON.
    ///
    /// # Errors
    /// If it is not such a configuration; the message names the field.
    pub fn parse(text: &str) -> Result<Self, FieldError> {
        let documents = manifest::documents(text, KIND)
            .map_err(|error| FieldError::new(String::new(), error.to_string()))?;
        let value = documents.into_iter().find(|value| !value.is_null()).unwrap_or_default();
        Self::read(value)
    }

    fn read(value: Value) -> Result<Self, FieldError> {
        let wire: Wire = serde_path_to_error::deserialize(value)?;
        if !is_config(&wire.api_version, &wire.kind) {
            let what = format!("{} of {} is not an {KIND} of {VERSION}", wire.kind, wire.api_version);
            return Err(FieldError::new("kind", what));
        }
        let Wire { api_version: _, kind: _, plugins, scheduling_profiles, saturation_detector, others } =
            wire;
        let mut config = Self::default();
        for (idx, plugin) in plugins.iter().enumerate() {
            config.add_plugin(plugin, &format!("plugins[{idx}]"))?;
        }
        config.weights = scheduling_profiles.first().map(|profile| config.weights(profile, &plugins));
        let others = others.iter().filter(|(name, value)| *name != "metadata" && !is_empty(value));
        config.left_out.extend(others.map(|(name, _)| name.clone()));
        if scheduling_profiles.len() > 1 {
            config.left_out.push("schedulingProfiles[1]".to_owned());
        }
        for (name, value) in saturation_detector.iter().filter(|(name, _)| *name != "pluginRef") {
            config.add_parameter((name, value), "saturationDetector")?;
        }
        Ok(config)
    }

    fn add_plugin(&mut self, plugin: &Plugin, path: &str) -> Result<(), FieldError> {
        if !PLUGINS.contains(&plugin.kind.as_str()) {
            self.left_out.push(format!("{path} ({})", plugin.kind));
            return Ok(());
        }
        let path = format!("{path}.parameters");
        plugin.parameters.iter().flatten().try_for_each(|parameter| self.add_parameter(parameter, &path))
    }

    fn add_parameter(&mut self, (name, value): (&String, &Value), path: &str) -> Result<(), FieldError> {
        let path = format!("{path}.{name}");
        let refuse = |what: &str| FieldError::new(&path, format!("{value} is not {what}"));
        let ratio = || value.as_f64().filter(|ratio| (0.0..=1.0).contains(ratio));
        let count = || value.as_u64().and_then(|count| u32::try_from(count).ok());
        match name.as_str() {
            "affinityThreshold" => {
                self.affinity_threshold = Some(ratio().ok_or_else(|| refuse("a ratio from 0 to 1"))?);
            }
            "lruCapacityPerServer" => {
                self.index_capacity = Some(count().ok_or_else(|| refuse("a number of blocks"))?);
            }
            "queueDepthThreshold" => {
                self.saturation.queue_depth = Some(count().ok_or_else(|| refuse("a number of requests"))?);
            }
            "kvCacheUtilThreshold" => {
                self.saturation.kv_usage = Some(ratio().ok_or_else(|| refuse("a ratio from 0 to 1"))?);
            }
            "metricsStalenessThreshold" => {
                let age = value.as_str().and_then(|text| parse_duration(text).ok());
                self.saturation.metrics_age = Some(age.ok_or_else(|| refuse("a duration such as 200ms"))?);
            }
            _ => self.left_out.push(path),
        }
        Ok(())
    }

    /// Weights of the profile's scorers. Scorers that have no counterpart are listed already.
    fn weights(&self, profile: &Profile, plugins: &[Plugin]) -> Weights {
        let mut weights = Weights::default();
        for ProfilePlugin { plugin_ref, weight } in &profile.plugins {
            let named =
                plugins.iter().find(|plugin| plugin.name.as_ref().unwrap_or(&plugin.kind) == plugin_ref);
            let weight = weight.unwrap_or(DEFAULT_WEIGHT);
            match named.map_or(plugin_ref.as_str(), |plugin| plugin.kind.as_str()) {
                "prefix-cache-scorer" => weights.prefix += weight,
                "queue-scorer" => weights.queue += weight,
                "kv-cache-scorer" | "kv-cache-utilization-scorer" => weights.kv_cache += weight,
                _ => {}
            }
        }
        weights
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}
