//! Values of flags: how their text becomes a number, a share or a model of time.

use crate::engine::latency::LatencyModel;
use serde_json::{Map, Value};

pub(super) fn latency_preset(name: &str) -> Result<LatencyModel, String> {
    LatencyModel::preset(name).ok_or_else(|| format!("no such preset: {name}"))
}

pub(super) fn jitter(text: &str) -> Result<f64, String> {
    let jitter: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.0..=1.0).contains(&jitter) { Ok(jitter) } else { Err("must be between 0 and 1".to_owned()) }
}

/// vLLM's counts for people: `k`, `m`, `g` are powers of 1000, `K`, `M`, `G` of 1024.
pub(super) fn human_count(text: &str) -> Result<u32, String> {
    let units =
        [('k', 1e3), ('m', 1e6), ('g', 1e9), ('K', 1_024.0), ('M', 1_048_576.0), ('G', 1_073_741_824.0)];
    let unit = units.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(*suffix)?, *factor)));
    let (digits, factor) = unit.unwrap_or((text, 1.0));
    let count = digits.parse::<f64>().map_err(|_| format!("{text} is not a count"))? * factor;
    if count.fract() != 0.0 || !(0.0..=f64::from(u32::MAX)).contains(&count) {
        return Err(format!("{text} is not a whole count below 2^32"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just above")]
    Ok(count as u32)
}

/// A switch that is also an environment variable of vLLM's, where it is 0 or 1.
pub(super) fn flag(text: &str) -> Result<bool, String> {
    match text {
        "0" | "false" => Ok(false),
        "1" | "true" => Ok(true),
        other => Err(format!("must be 0 or 1, got {other}")),
    }
}

/// A flag that takes JSON, given any number of times: a whole object, or a `key=value` as the dialect makes of `--flag.key`.
pub(super) fn json_object(values: &[String]) -> Result<Map<String, Value>, String> {
    let mut object = Map::new();
    for text in values {
        if text.trim_start().starts_with('{') {
            object = serde_json::from_str(text).map_err(|error| format!("{text}: {error}"))?;
            continue;
        }
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| format!("{text} is neither a JSON object nor a key with a value"))?;
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        object.insert(key.to_owned(), value);
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::human_count;

    #[test]
    fn counts_for_people() {
        assert_eq!(human_count("8192"), Ok(8192));
        assert_eq!(human_count("8k"), Ok(8_000));
        assert_eq!(human_count("8K"), Ok(8_192));
        assert_eq!(human_count("1.5k"), Ok(1_500));
        assert!(human_count("-1").is_err());
        assert!(human_count("x").is_err());
        assert!(human_count("5G").is_err());
    }
}
