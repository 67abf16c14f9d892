//! Follows logs that grow, are truncated, or are replaced by new files of the same names when a cluster starts again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Followed files, open at the position up to which they were read. A name alone does not identify a file.
#[derive(Debug, Default)]
pub struct Followed(BTreeMap<PathBuf, File>);

impl Followed {
    /// Returns what was added to the logs since the last call, in their order, after the rest of logs that are gone.
    ///
    /// # Errors
    /// When a log cannot be read.
    pub fn read(&mut self, logs: &[PathBuf]) -> Result<Vec<Vec<u8>>> {
        let mut added = Vec::new();
        for (path, mut file) in std::mem::take(&mut self.0) {
            if is_at(&file, &path).with_context(|| format!("look at {}", path.display()))? {
                self.0.insert(path, file);
            } else {
                added.push(rest(&mut file, &path)?);
            }
        }
        for log in logs {
            let file = match self.0.get_mut(log) {
                Some(file) => file,
                None => match File::open(log) {
                    // The log was removed after it was listed.
                    Err(error) if error.kind() == ErrorKind::NotFound => continue,
                    file => {
                        let file = file.with_context(|| format!("open {}", log.display()))?;
                        self.0.entry(log.clone()).or_insert(file)
                    }
                },
            };
            added.push(rest(file, log)?);
        }
        added.retain(|added| !added.is_empty());
        Ok(added)
    }
}

/// True if the path still leads to this file.
fn is_at(file: &File, path: &Path) -> std::io::Result<bool> {
    let own = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads from the last position to the end, or the whole file if it has been truncated.
fn rest(file: &mut File, path: &Path) -> Result<Vec<u8>> {
    let mut added = Vec::new();
    let read = file.metadata().and_then(|metadata| {
        if metadata.len() < file.stream_position()? {
            file.rewind()?;
        }
        file.read_to_end(&mut added)
    });
    read.with_context(|| format!("read {}", path.display()))?;
    Ok(added)
}

#[cfg(test)]
mod tests {
    use std::fs::{OpenOptions, remove_file, write};
    use std::io::Write as _;

    use super::Followed;

    #[test]
    fn a_log_is_followed_through_growth_cuts_and_replacement() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("epp.log");
        let mut followed = Followed::default();
        let mut read = || {
            let logs = if log.exists() { vec![log.clone()] } else { Vec::new() };
            String::from_utf8(followed.read(&logs).unwrap().concat()).unwrap()
        };
        write(&log, "one\n").unwrap();
        assert_eq!((read(), read()), ("one\n".to_owned(), String::new()));
        let mut file = OpenOptions::new().append(true).open(&log).unwrap();
        file.write_all(b"two\n").unwrap();
        assert_eq!(read(), "two\n");
        // A new cluster's log may be shorter than, as long as, or longer than the part of the old one that was read.
        for text in ["new\n", "as long\n", "another one that is longer\n"] {
            file.write_all(b"last\n").unwrap();
            remove_file(&log).unwrap();
            write(&log, text).unwrap();
            assert_eq!(read(), format!("last\n{text}"));
            file = OpenOptions::new().append(true).open(&log).unwrap();
        }
        write(&log, "cut\n").unwrap();
        assert_eq!(read(), "cut\n");
        remove_file(&log).unwrap();
        assert_eq!(read(), "");
        write(&log, "later\n").unwrap();
        assert_eq!(read(), "later\n");
    }
}
