//! The log on stderr, written by a thread of its own: if its reader stops, like a pager, no request, signal or shutdown
//! waits. `tracing-appender` does as much until the shutdown, when it prints to stdout, which may be the same pipe.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Most lines that wait for a slow reader; more are lost.
const MAX_WAITING: usize = 4_096;
/// Longest time that the shutdown waits for the last lines.
const PATIENCE: Duration = Duration::from_secs(1);
/// Pause before the shutdown tries a full queue again.
const RETRY: Duration = Duration::from_millis(10);

/// The log. Dropping it waits for its last lines, but at most for [`PATIENCE`].
#[derive(Debug)]
#[must_use]
pub(super) struct Log(SyncSender<Entry>);

#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    /// Last entry; answered once all lines before it are written.
    End(SyncSender<()>),
}

/// Writer of log events, each of which is one line.
#[derive(Clone, Debug)]
struct Queue {
    entries: SyncSender<Entry>,
    n_lost: Arc<AtomicU64>,
}

// === impl Log ===

impl Log {
    /// Starts the thread that writes the log.
    ///
    /// # Errors
    /// Fails if the system has no thread left.
    pub(super) fn start(filter: EnvFilter) -> io::Result<Self> {
        let (entries, waiting) = sync_channel(MAX_WAITING);
        let n_lost = Arc::new(AtomicU64::new(0));
        let queue = Queue { entries: entries.clone(), n_lost: n_lost.clone() };
        thread::Builder::new().name("log".to_owned()).spawn(move || write_all(&waiting, &n_lost))?;
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(queue).init();
        Ok(Self(entries))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let (written, end) = sync_channel(1);
        let mut entry = Entry::End(written);
        let n_tries = PATIENCE.as_millis() / RETRY.as_millis();
        for _ in 0..n_tries {
            match self.0.try_send(entry) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) => entry = back,
                Err(TrySendError::Disconnected(_)) => return,
            }
            thread::sleep(RETRY);
        }
        let _too_slow = end.recv_timeout(PATIENCE);
    }
}

// === impl Queue ===

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.entries.try_send(Entry::Line(line.to_vec())).is_err() {
            self.n_lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Prints a message on stderr, unless its reader has stopped.
pub(super) fn say(text: String) {
    let (said, end) = sync_channel(1);
    let saying = thread::Builder::new().spawn(move || {
        let _stderr_gone = io::stderr().write_all(text.as_bytes());
        let _gave_up = said.send(());
    });
    if saying.is_ok() {
        let _too_slow = end.recv_timeout(PATIENCE);
    }
}

fn write_all(waiting: &Receiver<Entry>, n_lost: &AtomicU64) {
    let mut stderr = io::stderr();
    for entry in waiting {
        let n_lost = n_lost.swap(0, Ordering::Relaxed);
        let told = match n_lost {
            0 => Ok(()),
            _ => writeln!(stderr, "{n_lost} lines of the log are lost: its reader was too slow"),
        };
        let _stderr_gone = match entry {
            Entry::Line(line) => told.and_then(|()| stderr.write_all(&line)),
            Entry::End(written) => {
                let _gave_up = written.send(());
                return;
            }
        };
    }
}
