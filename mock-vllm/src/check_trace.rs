//! `check-trace`: replays recorded vLLM workloads through the engine and compares every field of every step.

use anyhow::{Context as _, ensure};
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use vllm_engine::trace::{self, CheckError, MAX_TRACE_BYTES, Matched};

/// Checks each file and writes one line about it. Returns the exit code: 0 if all match, 1 if one differs, 2 if one
/// cannot be read (which outweighs 1).
///
/// # Errors
/// Fails if `out` cannot be written.
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

fn check(path: &Path) -> Result<Matched, CheckError> {
    let bytes = read(path).map_err(CheckError::Invalid)?;
    trace::check_bytes(&bytes)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let file = File::open(path).context("open the file")?;
    let mut bytes = Vec::new();
    file.take(MAX_TRACE_BYTES + 1).read_to_end(&mut bytes).context("read the file")?;
    ensure!(bytes.len() as u64 <= MAX_TRACE_BYTES, "read the file: more than {MAX_TRACE_BYTES} bytes");
    Ok(bytes)
}
