//! Values that several flags share, parsed.

use std::time::Duration;

/// A duration such as `50ms`, `2s` or `1m 30s`, longer than 0.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = parse_wait(text)?;
    if duration.is_zero() { Err("must be longer than 0".to_owned()) } else { Ok(duration) }
}

/// A duration that may be 0.
pub(super) fn parse_wait(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("expected a time, as in 50ms: {error}"))
}

/// A share, from 0 to 1.
pub(super) fn parse_ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        Ok(_) | Err(_) => Err("expected a number from 0 to 1".to_owned()),
    }
}
