//! One file under watch: its content, once it has stopped changing.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::time::{MissedTickBehavior, interval};
use tracing::dispatcher::{self, Dispatch};
use tracing::{error, info};

use super::kept::SETTLE;
use super::reading::{FileReader, ReadError};

/// Time between two reads of a file. A change counts when two reads agree, so within three times this: a person who
/// edits a
/// file does not notice the delay. Reading a few kilobytes costs microseconds.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Longest wait for the file system: while the process starts, and later.
const START_PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(1);

/// Meaning of one kind of file.
pub trait Content: From<Self::Parsed> {
    type Parsed;
    type Error: From<Unreadable> + std::error::Error;

    /// Parses the text of the file at `path`.
    ///
    /// # Errors
    /// If the text is not valid; the message names `path`.
    fn parse(text: &str, path: &Path) -> Result<Self::Parsed, Self::Error>;

    /// Notes that the file now contains `parsed` and nothing else. Returns how many objects have disappeared from it.
    fn update(&mut self, parsed: Self::Parsed, now: Instant) -> usize;

    /// Notes that the file has not changed. Returns whether objects that disappeared from it earlier are removed now.
    fn settle(&mut self, now: Instant) -> bool;
}

/// A file that could not be read, and why.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{}: {error}", path.display())]
pub struct Unreadable {
    pub path: PathBuf,
    pub error: ReadError,
}

/// A file, its text as read, and the meaning of the last valid text.
#[derive(Debug)]
pub struct Watched<C> {
    reader: FileReader,
    /// The text that counts: two reads agreed on it, or the first read returned it.
    text: Result<String, ReadError>,
    /// The last read's result, if it differs from `text`.
    next: Option<Result<String, ReadError>>,
    /// True if `text` could be read and is valid.
    is_good: bool,
    content: C,
}

// === impl Watched ===

impl<C: Content> Watched<C> {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// If it cannot be read or is not valid.
    pub fn load(path: PathBuf) -> Result<Self, C::Error> {
        let mut reader = FileReader::new(path);
        let read = reader.read(START_PATIENCE);
        let text = read.map_err(|error| unreadable(&reader, error))?;
        let content = C::from(C::parse(&text, reader.path())?);
        Ok(Self { reader, text: Ok(text), next: None, is_good: true, content })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        self.reader.path()
    }

    #[must_use]
    pub fn content(&self) -> &C {
        &self.content
    }

    /// Reads the file again and returns whether its content changes. An error is logged once per text that causes it.
    pub fn poll(&mut self, now: Instant) -> bool {
        let read = self.reader.read(PATIENCE);
        if read == self.text {
            self.next = None;
            return self.is_good && self.content.settle(now);
        }
        if self.next.as_ref() != Some(&read) {
            self.next = Some(read);
            return false;
        }
        self.next = None;
        self.text = read;
        let parsed = match &self.text {
            Ok(text) => C::parse(text, self.path()),
            Err(error) => Err(unreadable(&self.reader, error.clone()).into()),
        };
        self.is_good = parsed.is_ok();
        match parsed {
            Ok(parsed) => {
                let absent = self.content.update(parsed, now);
                let file = self.path().display();
                info!(%file, "Reading changed file");
                if absent > 0 {
                    info!(%file, absent, after = ?SETTLE, "Removing what the file does not have any more if it stays so");
                }
                true
            }
            Err(error) => {
                error!(file = %self.path().display(), error = chain(&error), "Keeping the last good version");
                false
            }
        }
    }
}

fn unreadable(reader: &FileReader, error: ReadError) -> Unreadable {
    Unreadable { path: reader.path().to_owned(), error }
}

/// The error and its sources in one line.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        None => error.to_string(),
        Some(source) => format!("{error}: {}", chain(source)),
    }
}

/// Calls `poll` with the time every [`POLL_INTERVAL`] until `shutdown` resolves, in a thread that may block.
///
/// # Panics
/// If `poll` panics.
pub async fn poll_blocking<P>(mut poll: P, shutdown: impl Future<Output = ()>)
where
    P: FnMut(Instant) + Send + 'static,
{
    let dispatch = dispatcher::get_default(Dispatch::clone);
    let mut ticks = interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tokio::pin!(shutdown);
    loop {
        let now = tokio::select! {
            () = &mut shutdown => return,
            now = ticks.tick() => now.into_std(),
        };
        let dispatch = dispatch.clone();
        let polled = tokio::task::spawn_blocking(move || {
            dispatcher::with_default(&dispatch, || poll(now));
            poll
        });
        poll = match polled.await {
            Ok(poll) => poll,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down.
                Err(_) => return,
            },
        };
    }
}
