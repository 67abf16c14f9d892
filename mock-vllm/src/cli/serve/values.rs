//! Values of flags: parsers that turn their text into numbers, shares and times.

use http::HeaderValue;
use serde_json::{Map, Value};
use std::time::Duration;

/// Values of a header that is a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HeaderList(pub(super) Vec<String>);

/// Parses the lists that vLLM takes as one JSON value: `["*"]`.
pub(super) fn header_list(text: &str) -> Result<HeaderList, String> {
    let items: Vec<String> = serde_json::from_str(text)
        .map_err(|error| format!("{text} is not a JSON list of texts, like [\"*\"]: {error}"))?;
    match items.iter().find(|item| HeaderValue::try_from(item.as_str()).is_err()) {
        Some(item) => Err(format!("{item:?} cannot be part of a header")),
        None => Ok(HeaderList(items)),
    }
}

pub(super) fn jitter(text: &str) -> Result<f64, String> {
    let jitter: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.0..=1.0).contains(&jitter) { Ok(jitter) } else { Err("must be between 0 and 1".to_owned()) }
}

/// Parses vLLM's human-readable counts: `k`, `m`, `g` are powers of 1000, `K`, `M`, `G` of 1024.
pub(super) fn human_count(text: &str) -> Result<u32, String> {
    let count = human_number(text).ok_or_else(|| format!("{text} is not a count"))?;
    if count.fract() != 0.0 || !(0.0..=f64::from(u32::MAX)).contains(&count) {
        return Err(format!("{text} is not a whole count below 2^32"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just above")]
    Ok(count as u32)
}

fn human_number(text: &str) -> Option<f64> {
    let units =
        [('k', 1e3), ('m', 1e6), ('g', 1e9), ('K', 1_024.0), ('M', 1_048_576.0), ('G', 1_073_741_824.0)];
    let unit = units.iter().find_map(|(suffix, factor)| Some((text.strip_suffix(*suffix)?, *factor)));
    let (digits, factor) = unit.unwrap_or((text, 1.0));
    Some(digits.parse::<f64>().ok()? * factor)
}

/// Parses a time with its unit, like `50ms`, `0.2ms`, `1.5s` or `1m 30s`.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("expected a time, as in 50ms: {error}"))
}

/// Parses a size in bytes, with the units of [`human_count`].
pub(super) fn human_bytes(text: &str) -> Result<u64, String> {
    let bytes = human_number(text).ok_or_else(|| format!("{text} is not a number of bytes"))?;
    if !(bytes >= 1.0 && bytes < u64::MAX as f64) {
        return Err("must be above 0".to_owned());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked just above")]
    Ok(bytes as u64)
}

/// Parses a switch that is also one of vLLM's environment variables, which are 0 or 1.
pub(super) fn flag(text: &str) -> Result<bool, String> {
    match text {
        "0" | "false" => Ok(false),
        "1" | "true" => Ok(true),
        other => Err(format!("must be 0 or 1, got {other}")),
    }
}

/// Merges a JSON flag that may be given several times: each value is a whole object, or a `key=value` that comes from
/// `--flag.key`.
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
