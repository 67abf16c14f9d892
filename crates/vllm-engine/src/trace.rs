//! Replays a recorded vLLM workload through the engine, and compares every field of every step.

mod replay;
mod format;

use anyhow::{Context as _, ensure};
use flate2::read::MultiGzDecoder;
use format::Trace;
use std::io::Read as _;

/// Largest trace, packed or not. No real one is near this size, but a gzip bomb is.
pub const MAX_TRACE_BYTES: u64 = 1 << 30;
/// RFC 1952, 2.3.1
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Contents of a trace that matched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Matched {
    pub requests: usize,
    pub steps: usize,
    /// Scheduled tokens.
    pub tokens: u64,
    pub events: usize,
    pub preemptions: usize,
}

/// The first field in which the engine and the trace differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Step of the field; `None` for a field of a request.
    pub step: Option<u64>,
    /// Name of the field in the trace: `scheduled.r4`, `events[2]`, `free_blocks`, `requests.r4.cached_tokens`, …
    pub field: String,
    pub trace: String,
    pub engine: String,
}

#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The engine did something different from the trace.
    #[error("{0}")]
    Differs(Difference),
    /// The bytes are not a trace.
    #[error("{0:#}")]
    Invalid(anyhow::Error),
}

/// Compares a trace that was read already, gzip or plain JSON.
///
/// # Errors
/// Returns the first difference, or the reason why the bytes are not a trace.
pub fn check_bytes(bytes: &[u8]) -> Result<Matched, CheckError> {
    let trace = parse(bytes).map_err(CheckError::Invalid)?;
    replay::replay(&trace)
}

fn parse(bytes: &[u8]) -> anyhow::Result<Trace> {
    let is_gzip = bytes.starts_with(&GZIP_MAGIC);
    let unpacked = is_gzip.then(|| unpack(bytes)).transpose().context("unpack the file")?;
    let trace: Trace =
        serde_json::from_slice(unpacked.as_deref().unwrap_or(bytes)).context("parse the trace")?;
    trace.validate()?;
    Ok(trace)
}

fn unpack(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut unpacked = Vec::new();
    MultiGzDecoder::new(bytes).take(MAX_TRACE_BYTES + 1).read_to_end(&mut unpacked)?;
    ensure!(unpacked.len() as u64 <= MAX_TRACE_BYTES, "more than {MAX_TRACE_BYTES} bytes");
    Ok(unpacked)
}

// === impl Difference ===

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { step, field, trace, engine } = self;
        if let Some(step) = step {
            write!(f, "step {step}: ")?;
        }
        write!(f, "{field}: trace {trace}, engine {engine}")
    }
}
