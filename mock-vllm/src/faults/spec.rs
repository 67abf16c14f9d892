//! Text and JSON of rules: `name:key=value,key=value`, or an object with the same keys and the name under `fault`.

use super::{Endpoints, Fault, Rule, Scope, When};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// End of an error's text, which says where to look.
const SEE: &str = "`mock-vllm faults` lists them";

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRule {
    #[error("`{0}` is not name:key=value,key=value ({SEE})")]
    Shape(String),
    #[error("`{key}` is given twice in `{text}`")]
    Twice { key: String, text: String },
    #[error("{fault}: {reason} ({SEE})")]
    Content { fault: String, reason: String },
}

/// Keys that every rule may have.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
struct Common {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    on: Option<Endpoints>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pod: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rate: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    times: Option<u64>,
    #[serde(default, with = "optional_duration", skip_serializing_if = "Option::is_none")]
    from: Option<Duration>,
    #[serde(default, rename = "for", with = "optional_duration", skip_serializing_if = "Option::is_none")]
    lasts: Option<Duration>,
}

const COMMON: [&str; 7] = ["on", "pod", "rate", "after", "times", "from", "for"];

// === impl Rule ===

impl Rule {
    /// Parses the faults of one request, which its header separates by `;`.
    ///
    /// # Errors
    /// Fails for an invalid rule, and for a rule that a single request cannot have.
    pub fn parse_header(text: &str) -> Result<Vec<Self>, InvalidRule> {
        let rules = text.split(';').map(|text| {
            let rule: Self = text.trim().parse()?;
            let is_plain =
                rule.pod.is_none() && rule.on == Endpoints::default() && rule.when == When::default();
            match (rule.fault.scope(), is_plain) {
                (Scope::Request, true) => Ok(rule),
                (Scope::Request, false) => Err(rule.invalid(
                    "on, pod, rate, after, times, from and for have no meaning in the header of one request",
                )),
                (Scope::Arrivals | Scope::Pod, _) => Err(rule
                    .invalid("is a fault of the pod, not of one request: use --fault or POST /debug/faults")),
            }
        });
        rules.collect()
    }

    /// Reads a rule from text or an object.
    ///
    /// # Errors
    /// Fails for keys that are unknown, missing, or of the wrong type.
    pub fn from_json(value: Value) -> Result<Self, InvalidRule> {
        match value {
            Value::String(text) => text.parse(),
            Value::Object(map) => Self::from_map(map),
            other => Err(InvalidRule::Shape(other.to_string())),
        }
    }

    /// Returns an object with all keys.
    pub fn to_json(&self) -> Value {
        let Self { fault, on, when, pod } = self;
        let When { from, lasts, after, times, rate } = *when;
        let common = Common {
            on: Some(*on).filter(|on| *on != Endpoints::default()),
            pod: pod.clone(),
            rate,
            after: Some(after).filter(|after| *after > 0),
            times,
            from: Some(from).filter(|from| !from.is_zero()),
            lasts,
        };
        let mut map = serde_json::to_value(fault).expect("a fault is plain data");
        let common = serde_json::to_value(common).expect("keys are plain data");
        if let (Value::Object(map), Value::Object(common)) = (&mut map, common) {
            map.extend(common);
        }
        map
    }

    fn from_map(map: Map<String, Value>) -> Result<Self, InvalidRule> {
        let fault = map.get("fault").and_then(Value::as_str).unwrap_or("a fault without a name").to_owned();
        let content = |error: serde_json::Error| InvalidRule::Content {
            fault: fault.clone(),
            reason: error.to_string(),
        };
        let (common, own): (Map<_, _>, Map<_, _>) =
            map.into_iter().partition(|(key, _)| COMMON.contains(&key.as_str()));
        let own: Fault = serde_json::from_value(Value::Object(own)).map_err(content)?;
        let Common { on, pod, rate, after, times, from, lasts } =
            serde_json::from_value(Value::Object(common)).map_err(content)?;
        let from = from.unwrap_or_default();
        let when = When { from, lasts, after: after.unwrap_or_default(), times, rate };
        let rule = Self { fault: own, on: on.unwrap_or_default(), when, pod };
        rule.check()?;
        Ok(rule)
    }

    fn check(&self) -> Result<(), InvalidRule> {
        let Self { fault, on, when, pod: _ } = self;
        let refuse = |reason: &str| Err(self.invalid(reason));
        let scope = fault.scope();
        if when.rate.is_some_and(|rate| !(rate > 0.0 && rate <= 1.0)) {
            return refuse("rate must be above 0 and at most 1");
        }
        let counts = when.rate.is_some() || when.after > 0 || when.times.is_some();
        if counts && scope == Scope::Pod {
            return refuse(
                "rate, after and times have no meaning for a fault of the whole pod: use from and for",
            );
        }
        if *on != Endpoints::default() && scope != Scope::Request {
            return refuse("`on` has no meaning for a fault that is not of requests");
        }
        if let Fault::KvPressure { share } = fault
            && !(*share > 0.0 && *share <= 1.0)
        {
            return refuse("share must be above 0 and at most 1");
        }
        if matches!(fault, Fault::SlowStart { .. }) && *when != When::default() {
            return refuse("from and for have no meaning, `delay` says how long");
        }
        Ok(())
    }

    fn invalid(&self, reason: &str) -> InvalidRule {
        InvalidRule::Content { fault: self.to_string(), reason: reason.to_owned() }
    }
}

impl FromStr for Rule {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let shape = || InvalidRule::Shape(text.to_owned());
        let (name, keys) = text.split_once(':').unwrap_or((text, ""));
        let mut map = Map::new();
        map.insert("fault".to_owned(), Value::from(name.trim()));
        for pair in keys.split(',').filter(|pair| !pair.trim().is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(shape)?;
            let (key, value) = (key.trim(), value.trim());
            // Numbers are numbers; everything else is text.
            let is_number = value.parse::<f64>().is_ok();
            let value =
                serde_json::from_str(value).ok().filter(|_| is_number).unwrap_or_else(|| Value::from(value));
            if map.insert(key.to_owned(), value).is_some() {
                return Err(InvalidRule::Twice { key: key.to_owned(), text: text.to_owned() });
            }
        }
        Self::from_map(map)
    }
}

/// Writes the text that parses to this rule.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Value::Object(map) = self.to_json() else { return Ok(()) };
        f.write_str(map.get("fault").and_then(Value::as_str).unwrap_or_default())?;
        let pairs = map.iter().filter(|(key, _)| *key != "fault");
        for (idx, (key, value)) in pairs.enumerate() {
            let separator = if idx == 0 { ':' } else { ',' };
            match value {
                Value::String(text) => write!(f, "{separator}{key}={text}")?,
                other => write!(f, "{separator}{key}={other}")?,
            }
        }
        Ok(())
    }
}

/// Durations like `500ms`, `2s`, `1m 30s`.
pub(super) mod duration {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};
    use std::time::Duration;

    pub(crate) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let parsed = value.as_str().and_then(|text| humantime::parse_duration(text).ok());
        parsed.ok_or_else(|| D::Error::custom(format!("{value} is not a duration like 500ms, 2s or 1m 30s")))
    }
}

pub(super) mod optional_duration {
    use serde::{Deserializer, Serializer};
    use std::time::Duration;

    pub(crate) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::duration::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        super::duration::deserialize(deserializer).map(Some)
    }
}

/// Statuses of errors.
pub(super) mod status {
    use http::StatusCode;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u16(value.as_u16())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<StatusCode, D::Error> {
        let code = u16::deserialize(deserializer)?;
        let status =
            StatusCode::from_u16(code).ok().filter(|status| status.as_u16() >= 400 && status.as_u16() < 600);
        status.ok_or_else(|| D::Error::custom(format!("code must be 400 to 599, got {code}")))
    }
}
