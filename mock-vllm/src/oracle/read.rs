//! Reads the cache logs of many pods into one order.

use crate::cache_log::CacheLine;
use anyhow::{Context as _, ensure};
use std::path::PathBuf;

/// A line and its place in the files.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) line: CacheLine,
    /// `file:number`
    pub(super) place: String,
}

/// Reads all lines in order of time; those of one pod stay in their order. A last line that the end of its pod cut off
/// is left out.
///
/// # Errors
/// Fails for a file that cannot be read, or that has a line of another kind.
pub(super) fn read(files: &[PathBuf]) -> anyhow::Result<Vec<Placed>> {
    let mut lines = Vec::new();
    for file in files {
        let shown = file.display();
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {shown}"))?;
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        ensure!(!whole.is_empty(), "{shown} is empty: was the pod started with --cache-log?");
        for (idx, line) in whole.lines().enumerate() {
            let place = format!("{shown}:{}", idx + 1);
            let line = serde_json::from_str(line).with_context(|| {
                format!("{place} is no line of a cache log (serve --cache-log writes them)")
            })?;
            lines.push(Placed { line, place });
        }
    }
    lines.sort_by_key(|placed| placed.line.time_ns);
    Ok(lines)
}
