//! Threads with their own runtimes, for what is cheaper if it wakes no other thread: a connection of the ext_proc port stays
//! with all its streams on one worker, and so do the scrapes of the endpoints of a small pool.

use std::io;
use std::num::NonZeroUsize;
use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Dispatch;
use tracing::dispatcher::{get_default, with_default};

/// Most endpoints in a row on one worker: their scrapes take a tenth of its time.
const ENDPOINTS_IN_A_ROW: u32 = 32;

/// Runtimes that take the connections of a port in turns, or endpoints. Dropping this ends the threads that it has
/// started.
#[derive(Debug)]
pub(super) struct Workers {
    runtimes: Vec<Handle>,
    /// Connections so far.
    n_taken: usize,
    _stop: DropGuard,
}

impl Workers {
    /// Starts a thread for each processor, which are called `name` and a number. A proxy opens a connection for each of
    /// its own worker threads, so that connections spread the work.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub(super) fn start(name: &str) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let n_workers = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let runtimes = (0..n_workers)
            .map(|idx| worker(format!("{name}-{idx}"), stop.clone()))
            .collect::<io::Result<_>>()?;
        Ok(Self { runtimes, n_taken: 0, _stop: stop.drop_guard() })
    }

    /// Leaves the connections to the runtime of the caller.
    pub(super) fn shared() -> Self {
        Self { runtimes: vec![Handle::current()], n_taken: 0, _stop: CancellationToken::new().drop_guard() }
    }

    /// The runtime of the next connection.
    pub(super) fn next(&mut self) -> &Handle {
        let idx = self.n_taken % self.runtimes.len();
        self.n_taken = self.n_taken.wrapping_add(1);
        &self.runtimes[idx]
    }

    /// The runtime of the endpoints in this row.
    pub(super) fn of_row(&self, row: u32) -> &Handle {
        &self.runtimes[usize::try_from(row).unwrap_or(usize::MAX) % self.runtimes.len()]
    }
}

/// Number of the row in which the endpoint with this number is.
pub(super) fn row(endpoint_idx: u32) -> u32 {
    endpoint_idx / ENDPOINTS_IN_A_ROW
}

fn worker(name: String, stop: CancellationToken) -> io::Result<Handle> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let thread = thread::Builder::new().name(name);
    // A worker logs to where its starter does.
    let log = get_default(Dispatch::clone);
    thread.spawn(move || with_default(&log, || runtime.block_on(stop.cancelled_owned())))?;
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::thread;

    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::mpsc;
    use tokio::task::JoinSet;
    use tokio_util::sync::CancellationToken;

    use super::{Workers, row};
    use crate::server::accept::{Patience, Port, Protocol};

    /// Tells the names of the threads on which a connection and 32 streams of it run.
    #[derive(Clone)]
    struct Threads(mpsc::UnboundedSender<HashSet<String>>);

    impl Protocol for Threads {
        async fn serve(self, _: TcpStream, _: Patience, _: CancellationToken) -> anyhow::Result<()> {
            let name = || thread::current().name().unwrap_or_default().to_owned();
            let mut streams = JoinSet::new();
            for _ in 0..32 {
                streams.spawn(async move {
                    tokio::task::yield_now().await;
                    name()
                });
            }
            let mut names: HashSet<_> = streams.join_all().await.into_iter().collect();
            names.insert(name());
            Ok(self.0.send(names)?)
        }
    }

    /// The threads of each of four connections, one after the other.
    async fn threads(workers: Workers) -> Vec<HashSet<String>> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tx, mut rx) = mpsc::unbounded_channel();
        let (patience, closed) = (Patience::default(), CancellationToken::new());
        let port = Port { name: "test", listener, protocol: Threads(tx), patience, workers };
        let clients = async {
            let mut threads = Vec::new();
            for _ in 0..4 {
                let _connection = TcpStream::connect(address).await.unwrap();
                threads.push(rx.recv().await.unwrap());
            }
            closed.cancel();
            threads
        };
        let ((), threads) = tokio::join!(port.serve(closed.clone()), clients);
        threads
    }

    #[tokio::test]
    async fn a_connection_stays_on_one_worker_and_the_next_goes_to_another() {
        let n_workers = thread::available_parallelism().unwrap().get();
        let of_connections = threads(Workers::start("worker").unwrap()).await;
        let expected = (0..4).map(|idx| HashSet::from([format!("worker-{}", idx % n_workers)]));
        assert_eq!(of_connections, expected.collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_port_without_workers_runs_on_the_thread_of_its_runtime() {
        let here = HashSet::from([thread::current().name().unwrap().to_owned()]);
        assert_eq!(threads(Workers::shared()).await, vec![here; 4]);
    }

    #[test]
    fn the_endpoints_of_a_small_pool_share_a_worker() {
        let workers = Workers::start("scraper").unwrap();
        let ids: Vec<_> = (0..3 * 32).map(|idx| workers.of_row(row(idx)).id()).collect();
        assert!(ids.chunks(32).all(|row| row.iter().all(|id| *id == row[0])));
        // Control: a large pool uses as many workers as there are.
        let used: HashSet<_> = (0..1000).map(|idx| workers.of_row(row(idx * 32)).id()).collect();
        assert_eq!(used.len(), thread::available_parallelism().unwrap().get());
    }

    #[tokio::test]
    async fn workers_end_with_their_port() {
        let mut workers = Workers::start("worker").unwrap();
        let endless = workers.next().spawn(std::future::pending::<()>());
        drop(workers);
        assert!(endless.await.unwrap_err().is_cancelled());
    }
}
