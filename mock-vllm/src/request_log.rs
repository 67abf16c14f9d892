//! Writes one JSON line per request that ended, whatever its outcome. The line is on disk before the client sees the
//! end.

use crate::json_lines::JsonLines;
use serde::Serialize;
use std::path::Path;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::StaticFormatDescription;
use time::macros::format_description;

const TIME: StaticFormatDescription =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// Log of requests; without a file it drops the lines.
#[derive(Debug, Default)]
pub struct RequestLog {
    lines: Option<JsonLines>,
}

/// A line of the log. Durations are virtual milliseconds since the request's arrival; stages that a request did not
/// reach are null.
#[derive(Clone, Debug, Serialize)]
pub struct RequestLine {
    /// Time of its end: UTC, RFC 3339 with microseconds.
    pub time: String,
    pub pod: String,
    /// Id like in the response, without its prefix.
    pub request_id: String,
    pub endpoint: &'static str,
    pub model: Option<String>,
    pub stream: bool,
    /// HTTP status; 499 if the client left before there was one.
    pub status: u16,
    pub finish_reason: Option<&'static str>,
    pub prompt_tokens: Option<usize>,
    pub cached_tokens: Option<u32>,
    pub completion_tokens: usize,
    pub queue_ms: Option<f64>,
    pub ttft_ms: Option<f64>,
    pub e2e_ms: f64,
    /// Digest of the prompt's token ids, each as 4 bytes, little endian.
    pub prompt_sha256: Option<String>,
}

// === impl RequestLog ===

impl RequestLog {
    /// Opens a file.
    ///
    /// # Errors
    /// Fails if the file cannot be opened for appending.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self { lines: Some(JsonLines::open(path)?) })
    }

    pub fn write(&self, line: &RequestLine) {
        if let Some(lines) = &self.lines {
            lines.append(line);
        }
    }
}

/// Formats a time since the Unix epoch.
pub fn timestamp(unix_time: Duration) -> String {
    (OffsetDateTime::UNIX_EPOCH + unix_time).format(TIME).expect("UTC has every part of the format")
}
