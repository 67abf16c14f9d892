//! The knobs of `PREFIX_CACHE` that can be changed while the picker runs: names, ranges, and sources of their values.
//!
//! A later source overrides an earlier one, knob by knob: built in, flag, file, the pool's annotation. More specific
//! sources come later, and so do those that can change without a restart.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use inference_api::picker_config::{PickerConfig, Weights};
use scheduling::affinity::Affinity;
use serde::{Deserialize, Serialize, Serializer};

/// A number that changes how pods are picked, with its name in the file; flags have the same words with dashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Knob {
    /// Share of the prompt that a pod must exceed for its prefix to count.
    Threshold,
    /// Tokens of work by which the holder of a prefix may exceed the least busy pod.
    SpillTokens,
    /// Tokens of work for each request ahead.
    QueueTokens,
    /// Share of a request's uncached tokens that each request ahead adds to them.
    Stall,
    /// Tokens of work for a full KV cache.
    KvTokens,
    /// KV-cache usage above which `kv_tokens` apply.
    KvThreshold,
}

/// Source of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KnobSource {
    BuiltIn,
    Flag,
    File,
    Annotation,
}

/// Some knobs, each in its range.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(try_from = "BTreeMap<Knob, f64>")]
pub struct Patch(BTreeMap<Knob, f64>);

/// Weights in upstream's default configuration (Gateway API Inference Extension v1.5), for which every knob has its
/// built-in value.
const UPSTREAM: Weights = Weights { prefix: 3.0, queue: 2.0, kv_cache: 2.0 };

/// Every knob.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuning {
    settings: BTreeMap<Knob, Setting>,
}

/// A knob's value and its source.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Setting {
    pub value: f64,
    pub source: KnobSource,
}

/// Reason why a text is not a policy.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TuningError {
    #[error("{0}")]
    Syntax(String),
    #[error("{knob}: {value} is not in {} to {}", range.start(), range.end())]
    Range { knob: Knob, value: f64, range: RangeInclusive<f64> },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    default: BTreeMap<Knob, f64>,
}

// === impl Knob ===

impl Knob {
    pub const ALL: [Self; 6] = [
        Self::Threshold,
        Self::SpillTokens,
        Self::QueueTokens,
        Self::Stall,
        Self::KvTokens,
        Self::KvThreshold,
    ];

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Threshold => "threshold",
            Self::SpillTokens => "spillTokens",
            Self::QueueTokens => "queueTokens",
            Self::Stall => "stall",
            Self::KvTokens => "kvTokens",
            Self::KvThreshold => "kvThreshold",
        }
    }

    /// Range of the knob's values. A million tokens, the upper bound, is more than any prompt has.
    #[must_use]
    pub fn range(self) -> RangeInclusive<f64> {
        match self {
            Self::Threshold | Self::KvThreshold => 0.0..=1.0,
            Self::SpillTokens | Self::QueueTokens | Self::KvTokens => 0.0..=1e6,
            Self::Stall => 0.0..=100.0,
        }
    }

    #[must_use]
    pub fn built_in(self) -> f64 {
        let affinity = Affinity::default();
        match self {
            Self::Threshold => affinity.threshold,
            Self::SpillTokens => affinity.spill_bytes / Affinity::BYTES_PER_TOKEN,
            Self::QueueTokens => affinity.queue_bytes / Affinity::BYTES_PER_TOKEN,
            Self::Stall => affinity.stall,
            Self::KvTokens => affinity.kv_bytes / Affinity::BYTES_PER_TOKEN,
            Self::KvThreshold => affinity.kv_threshold,
        }
    }

    /// Returns `value` if it is in the knob's range.
    ///
    /// # Errors
    /// If it is not.
    pub fn check(self, value: f64) -> Result<f64, TuningError> {
        let range = self.range();
        if range.contains(&value) { Ok(value) } else { Err(TuningError::Range { knob: self, value, range }) }
    }
}

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Patch ===

impl Patch {
    /// Creates a patch of these values.
    ///
    /// # Errors
    /// The first value that is not in its knob's range.
    pub fn try_new(values: BTreeMap<Knob, f64>) -> Result<Self, TuningError> {
        for (knob, value) in &values {
            knob.check(*value)?;
        }
        Ok(Self(values))
    }

    /// Parses a YAML or JSON mapping of knobs, the form of an annotation: `{"threshold": 0.6}`.
    ///
    /// # Errors
    /// A message with the knob's name.
    pub fn parse(text: &str) -> Result<Self, TuningError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        Self::try_new(serde_saphyr::from_str(text).map_err(|error| syntax(&error))?)
    }

    /// The knobs that upstream's configuration asks for. Its weights count relative to that of the prefix cache: a queue of
    /// twice the weight makes each request ahead twice as much work. Without a weight for the prefix cache no prefix counts.
    ///
    /// # Errors
    /// If a weight is out of proportion to the others.
    pub fn of_config(config: &PickerConfig) -> Result<Self, TuningError> {
        let mut values = BTreeMap::new();
        if let Some(threshold) = config.affinity_threshold {
            values.insert(Knob::Threshold, threshold);
        }
        match config.weights {
            None => {}
            Some(Weights { prefix, .. }) if prefix <= 0.0 => {
                values.insert(Knob::Threshold, 1.0);
            }
            Some(Weights { prefix, queue, kv_cache }) => {
                let scaled = |knob: Knob, weight: f64, usual: f64| {
                    (knob, knob.built_in() * (weight / prefix) / (usual / UPSTREAM.prefix))
                };
                values.extend([
                    scaled(Knob::QueueTokens, queue, UPSTREAM.queue),
                    scaled(Knob::Stall, queue, UPSTREAM.queue),
                    scaled(Knob::KvTokens, kv_cache, UPSTREAM.kv_cache),
                ]);
            }
        }
        Self::try_new(values)
    }

    /// This patch with the knobs of `later` set.
    #[must_use]
    pub fn with(mut self, later: Self) -> Self {
        self.0.extend(later.0);
        self
    }

    /// Parses the policy file, a YAML mapping with the knobs under `default`; an empty text sets none.
    ///
    /// # Errors
    /// A message with the line or the knob.
    pub fn parse_file(text: &str) -> Result<Self, TuningError> {
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        let RawFile { default } = serde_saphyr::from_str(text).map_err(|error| syntax(&error))?;
        Self::try_new(default)
    }

    /// The knobs that the patch sets.
    pub fn knobs(&self) -> impl Iterator<Item = (Knob, f64)> {
        self.0.iter().map(|(knob, value)| (*knob, *value))
    }
}

impl TryFrom<BTreeMap<Knob, f64>> for Patch {
    type Error = TuningError;

    fn try_from(values: BTreeMap<Knob, f64>) -> Result<Self, TuningError> {
        Self::try_new(values)
    }
}

// === impl Tuning ===

/// Serialises the values without their sources.
impl Serialize for Tuning {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.settings.iter().map(|(knob, setting)| (knob, setting.value)))
    }
}

impl Default for Tuning {
    fn default() -> Self {
        let built_in = |knob: Knob| (knob, Setting { value: knob.built_in(), source: KnobSource::BuiltIn });
        Self { settings: Knob::ALL.into_iter().map(built_in).collect() }
    }
}

impl Tuning {
    /// This tuning with the knobs of `patch` set.
    #[must_use]
    pub fn with(mut self, patch: &Patch, source: KnobSource) -> Self {
        let settings = patch.0.iter().map(|(knob, value)| (*knob, Setting { value: *value, source }));
        self.settings.extend(settings);
        self
    }

    #[must_use]
    pub fn settings(&self) -> &BTreeMap<Knob, Setting> {
        &self.settings
    }

    /// Weights for prompts with `bytes_per_token`.
    #[must_use]
    pub fn affinity(&self, bytes_per_token: f64) -> Affinity {
        Affinity {
            threshold: self.value(Knob::Threshold),
            queue_bytes: self.value(Knob::QueueTokens) * bytes_per_token,
            stall: self.value(Knob::Stall),
            kv_bytes: self.value(Knob::KvTokens) * bytes_per_token,
            kv_threshold: self.value(Knob::KvThreshold),
            spill_bytes: self.value(Knob::SpillTokens) * bytes_per_token,
        }
    }

    fn value(&self, knob: Knob) -> f64 {
        self.settings[&knob].value
    }
}

/// The first line of the error. A picture of the text follows it, for which a log has no room.
fn syntax(error: &serde_saphyr::Error) -> TuningError {
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    TuningError::Syntax(line.strip_prefix("error: ").unwrap_or(line).to_owned())
}
