//! Queue of lines on their way to stderr. A separate thread writes them, so that a reader that stops delays no stream,
//! no health check and not the end of the process. Lines that do not fit into the queue are dropped and counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;

/// Most lines that wait for a slow reader, some hundred kilobytes; further lines are dropped.
const MAX_WAITING: usize = 1024;
/// Longest wait for the last lines at the end of the process.
const LAST_LINES: Duration = Duration::from_secs(1);
/// Time between two tries at the end of the process while the queue is full.
const RETRY: Duration = Duration::from_millis(20);

/// The queue's writer: each `write` is one line.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    entries: SyncSender<Entry>,
    dropped: Dropped,
}

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    /// Answered after all earlier lines are written.
    Flush(SyncSender<()>),
}

/// Counts dropped lines.
#[derive(Clone, Debug, Default)]
struct Dropped {
    /// Dropped lines that the log has not reported yet.
    n_untold: Arc<AtomicU64>,
    n_all: Counter,
}

/// The log of the process. Dropping it waits for the last lines, up to a limit.
#[derive(Debug)]
#[must_use = "lines that wait are lost with it"]
pub struct Log {
    entries: SyncSender<Entry>,
    n_dropped: Counter,
}

// === impl Queue ===

impl Queue {
    /// Starts the thread that writes to `writer`. When it can write again after lines were dropped, it calls `tell`
    /// with their number.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(super) fn start(
        writer: impl Write + Send + 'static,
        tell: impl Fn(u64) + Send + 'static,
    ) -> io::Result<(Self, Log)> {
        let (entries, waiting) = sync_channel(MAX_WAITING);
        let dropped = Dropped::default();
        let log = Log { entries: entries.clone(), n_dropped: dropped.n_all.clone() };
        let n_untold = Arc::clone(&dropped.n_untold);
        let thread = thread::Builder::new().name("log".to_owned());
        thread.spawn(move || write_entries((writer, tell), &waiting, &n_untold))?;
        Ok((Self { entries, dropped }, log))
    }
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.entries.try_send(Entry::Line(line.to_vec())).is_err() {
            self.dropped.n_untold.fetch_add(1, Ordering::Relaxed);
            self.dropped.n_all.inc();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// === impl Log ===

impl Log {
    /// Counter of the dropped lines.
    #[must_use]
    pub fn n_dropped(&self) -> &Counter {
        &self.n_dropped
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let (flushed, end) = sync_channel(1);
        let mut entry = Entry::Flush(flushed);
        for _ in 0..LAST_LINES.as_millis() / RETRY.as_millis() {
            match self.entries.try_send(entry) {
                Ok(()) => break,
                Err(TrySendError::Full(full)) => entry = full,
                Err(TrySendError::Disconnected(_)) => return,
            }
            thread::sleep(RETRY);
        }
        // Gives up on a reader that has stopped.
        let _ = end.recv_timeout(LAST_LINES);
    }
}

/// Writes entries until all senders are gone.
fn write_entries(
    (mut writer, tell): (impl Write, impl Fn(u64)),
    waiting: &Receiver<Entry>,
    n_untold: &AtomicU64,
) {
    for entry in waiting {
        match entry {
            Entry::Line(line) => {
                // There is no place to report that the log cannot be written.
                let _ = writer.write_all(&line);
                let n_lines = n_untold.swap(0, Ordering::Relaxed);
                if n_lines > 0 {
                    tell(n_lines);
                }
            }
            Entry::Flush(flushed) => {
                let _ = writer.flush();
                let _ = flushed.send(());
            }
        }
    }
}
