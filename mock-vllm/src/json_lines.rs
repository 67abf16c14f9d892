//! A file of JSON values, one per line. Each line is appended with a single write.

use parking_lot::Mutex;
use serde::Serialize;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;

#[derive(Debug)]
pub struct JsonLines {
    file: Mutex<File>,
}

// === impl JsonLines ===

impl JsonLines {
    /// Opens the file.
    ///
    /// # Errors
    /// Fails if the file cannot be opened for appending.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        Ok(Self { file: Mutex::new(file) })
    }

    /// Appends `line`, which must be plain data. A failed write is logged as an error.
    pub fn append(&self, line: &impl Serialize) {
        let mut text = serde_json::to_vec(line).expect("a line is plain data");
        text.push(b'\n');
        if let Err(error) = self.file.lock().write_all(&text) {
            tracing::error!(%error, "Log cannot be written");
        }
    }
}
