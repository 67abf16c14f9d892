//! Reads files, with a bound on their size and on the wait for them.
//!
//! A read may hang as long as its mount is dead, and nothing can end it: each file is read in a thread of its own,
//! which may be left behind.

use std::fs::{File, FileType};
use std::io::Read as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use thiserror::Error;

/// Largest file: about a hundred thousand endpoints.
pub const MAX_BYTES: u64 = 16 << 20;

/// Why a file cannot be read. Two errors are equal if they have the same text.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ReadError {
    #[error("cannot be read: {0}")]
    Io(String),
    #[error("is {0}: give a regular file, which can be read again when it changes")]
    NotAFile(&'static str),
    #[error("has more than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("is not UTF-8")]
    NotText,
    #[error("cannot be read: its file system does not answer")]
    Hangs,
}

/// Reads one file repeatedly.
#[derive(Debug)]
pub struct FileReader {
    path: PathBuf,
    thread: Option<Thread>,
}

/// A thread that reads when asked to, and ends when its `FileReader` is dropped.
#[derive(Debug)]
struct Thread {
    asks: SyncSender<()>,
    answers: Receiver<Result<String, ReadError>>,
    /// True if the last read was given up because it took too long.
    hangs: bool,
}

// === impl FileReader ===

impl FileReader {
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, thread: None }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's text. Waits at most `patience` for a read; while that read still hangs, later calls do not wait for
    /// it again.
    ///
    /// # Errors
    /// A [`ReadError`] that says what is wrong with the file.
    pub fn read(&mut self, patience: Duration) -> Result<String, ReadError> {
        let thread = match self.thread.take() {
            Some(thread) => thread,
            None => Thread::start(self.path.clone())?,
        };
        let thread = self.thread.insert(thread);
        let patience = if thread.hangs { Duration::ZERO } else { patience };
        if !thread.hangs && thread.asks.send(()).is_err() {
            self.thread = None;
            return Err(ReadError::Io("its reader has ended".to_owned()));
        }
        match thread.answers.recv_timeout(patience) {
            Ok(answer) => {
                thread.hangs = false;
                answer
            }
            Err(RecvTimeoutError::Timeout) => {
                thread.hangs = true;
                Err(ReadError::Hangs)
            }
            Err(RecvTimeoutError::Disconnected) => {
                self.thread = None;
                Err(ReadError::Io("its reader has ended".to_owned()))
            }
        }
    }
}

// === impl Thread ===

impl Thread {
    fn start(path: PathBuf) -> Result<Self, ReadError> {
        let (asks, asked) = sync_channel(1);
        let (answer, answers) = sync_channel(1);
        let read = move || {
            while asked.recv().is_ok() && answer.send(read(&path)).is_ok() {}
        };
        let thread = std::thread::Builder::new().name("file-reader".to_owned());
        thread.spawn(read).map_err(|error| ReadError::Io(error.to_string()))?;
        Ok(Self { asks, answers, hangs: false })
    }
}

/// Reads a regular file and refuses any other kind first: opening a FIFO would wait for its writer.
fn read(path: &Path) -> Result<String, ReadError> {
    let io = |error: std::io::Error| ReadError::Io(error.to_string());
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(ReadError::NotAFile(kind(metadata.file_type())));
    }
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ReadError::TooLarge);
    }
    String::from_utf8(bytes).map_err(|_| ReadError::NotText)
}

fn kind(file_type: FileType) -> &'static str {
    match file_type {
        file_type if file_type.is_dir() => "a directory",
        file_type if file_type.is_fifo() => "a FIFO",
        file_type if file_type.is_socket() => "a socket",
        file_type if file_type.is_char_device() || file_type.is_block_device() => "a device",
        _ => "not a file",
    }
}
