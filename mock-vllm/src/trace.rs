//! `check-trace`: replays a recorded vLLM workload through the engine and compares every field of every step.

mod format;
mod replay;

use anyhow::{Context as _, ensure};
use flate2::read::MultiGzDecoder;
use format::Trace;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// No real trace is near this, packed or not; a gzip bomb is.
const MAX_TRACE_BYTES: u64 = 1 << 30;
/// RFC 1952, 2.3.1
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// What a trace that matched held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Matched {
    pub requests: usize,
    pub steps: usize,
    /// Tokens scheduled.
    pub tokens: u64,
    pub events: usize,
    pub preemptions: usize,
}

/// The first field in which the engine and the trace differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// `None` for a field of a request.
    pub step: Option<u64>,
    /// As the trace names it: `scheduled.r4`, `events[2]`, `free_blocks`, `requests.r4.cached_tokens`, …
    pub field: String,
    pub trace: String,
    pub engine: String,
}

#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The engine did something else than the trace says: exit code 1.
    #[error("{0}")]
    Differs(Difference),
    /// The file cannot be read or is not a trace: exit code 2.
    #[error("{0:#}")]
    Invalid(anyhow::Error),
}

/// Checks each file and writes one line about it; the exit code: 0 when all match, 1 when one differs, 2 when one
/// cannot be read (which outweighs 1).
///
/// # Errors
/// When `out` cannot be written.
pub fn check_files(paths: &[PathBuf], out: &mut impl Write) -> io::Result<u8> {
    let mut code = 0;
    for path in paths {
        let shown = path.display();
        match check(path) {
            Ok(Matched { requests, steps, tokens, events, preemptions }) => writeln!(
                out,
                "{shown}: ok ({requests} requests, {steps} steps, {tokens} tokens, {events} events, {preemptions} preemptions)"
            )?,
            Err(CheckError::Differs(difference)) => {
                writeln!(out, "{shown}: {difference}")?;
                code = code.max(1);
            }
            Err(CheckError::Invalid(error)) => {
                writeln!(out, "{shown}: invalid: {error:#}")?;
                code = code.max(2);
            }
        }
    }
    Ok(code)
}

/// Reads one trace file, gzip or plain JSON, and compares.
///
/// # Errors
/// The first difference, or why the file is no trace.
pub fn check(path: &Path) -> Result<Matched, CheckError> {
    let bytes = read(path).map_err(CheckError::Invalid)?;
    check_bytes(&bytes)
}

/// Compares a trace that was read already, gzip or plain JSON.
///
/// # Errors
/// The first difference, or why the bytes are no trace.
pub fn check_bytes(bytes: &[u8]) -> Result<Matched, CheckError> {
    let trace = parse(bytes).map_err(CheckError::Invalid)?;
    replay::replay(&trace)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let file = File::open(path).context("open the file")?;
    read_bounded(file).context("read the file")
}

fn parse(bytes: &[u8]) -> anyhow::Result<Trace> {
    let is_gzip = bytes.starts_with(&GZIP_MAGIC);
    let unpacked =
        is_gzip.then(|| read_bounded(MultiGzDecoder::new(bytes))).transpose().context("unpack the file")?;
    let trace: Trace =
        serde_json::from_slice(unpacked.as_deref().unwrap_or(bytes)).context("parse the trace")?;
    trace.validate()?;
    Ok(trace)
}

fn read_bounded(reader: impl Read) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MAX_TRACE_BYTES + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= MAX_TRACE_BYTES, "more than {MAX_TRACE_BYTES} bytes");
    Ok(bytes)
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
