//! Cache logs of many pods, brought into one order.

use crate::cache_log::CacheLine;
use anyhow::{Context as _, ensure};
use std::path::PathBuf;

/// A line, and where it was.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) line: CacheLine,
    /// `file:number`
    pub(super) place: String,
}

/// All lines by time; those of a pod stay in their order. A last line that the end of its pod cut off is left out.
///
/// # Errors
/// For a file that cannot be read or has a line of another kind.
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
