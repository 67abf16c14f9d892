//! One JSON line per request that ended, whatever its outcome, on disk before the client sees the end.

use crate::json_lines::JsonLines;
use serde::Serialize;
use std::path::Path;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::StaticFormatDescription;
use time::macros::format_description;

const TIME: StaticFormatDescription =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// Appends; without a file it forgets.
#[derive(Debug, Default)]
pub struct RequestLog {
    lines: Option<JsonLines>,
}

/// Durations are virtual milliseconds since the request's arrival. What a request never came to is null.
#[derive(Clone, Debug, Serialize)]
pub struct RequestLine {
    /// When it ended, UTC, RFC 3339 with microseconds.
    pub time: String,
    pub pod: String,
    /// As in the response's `id`, without its prefix.
    pub request_id: String,
    pub endpoint: &'static str,
    pub model: Option<String>,
    pub stream: bool,
    /// HTTP status; 499 when the client went before there was one.
    pub status: u16,
    pub finish_reason: Option<&'static str>,
    pub prompt_tokens: Option<usize>,
    pub cached_tokens: Option<u32>,
    pub completion_tokens: usize,
    pub queue_ms: Option<f64>,
    pub ttft_ms: Option<f64>,
    pub e2e_ms: f64,
    /// Of the prompt's token ids, each as 4 bytes, little endian.
    pub prompt_sha256: Option<String>,
}

// === impl RequestLog ===

impl RequestLog {
    /// # Errors
    /// When the file cannot be opened for appending.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self { lines: Some(JsonLines::open(path)?) })
    }

    pub fn write(&self, line: &RequestLine) {
        if let Some(lines) = &self.lines {
            lines.append(line);
        }
    }
}

/// Time since the Unix epoch, as the log writes it.
pub fn timestamp(unix_time: Duration) -> String {
    (OffsetDateTime::UNIX_EPOCH + unix_time).format(TIME).expect("UTC has every part of the format")
}
