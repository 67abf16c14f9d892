//! The follower's side: reads a peer's journal, adds its events to the index and notes its requests.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail, ensure};
use bytes::{Buf as _, BytesMut};
use http::Request;
use http_body_util::BodyExt;
use tokio::net::lookup_host;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::director::{Director, Now};
use crate::http_client::{self, Chunks, HttpClient};
use crate::metrics::PeerLabels;
use crate::peers::{FORMAT, HEARTBEAT, PeerLine};
use crate::reports::Reports;

/// Longest silence of a live peer.
const PATIENCE: Duration = HEARTBEAT.saturating_mul(3);
/// Time between two tries.
const RETRY: Duration = Duration::from_millis(500);
/// Time between two look-ups of the names: peers come and go.
const RESOLVE: Duration = Duration::from_secs(5);
/// Longest line: the chain of a prompt of hundreds of megabytes.
const MAX_LINE: usize = 8 << 20;

/// Follows every address of some names.
#[derive(Debug)]
pub struct Followers {
    reports: Arc<Reports>,
    client: HttpClient,
    /// Names of peers, as `host:port`.
    names: Vec<String>,
    /// Addresses of the last look-up, each with the token that ends its follower.
    followed: HashMap<SocketAddr, CancellationToken>,
    /// Followers; each returns its address when it ends.
    tasks: JoinSet<SocketAddr>,
}

/// The reader of one peer, and its position.
struct Follower {
    reports: Arc<Reports>,
    client: HttpClient,
    address: SocketAddr,
    labels: PeerLabels,
    /// The process that `seq` belongs to.
    instance: String,
    seq: u64,
}

/// The next step after a line: read on or stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Line,
    /// Stop: the peer is this picker.
    Nothing,
}

// === impl Followers ===

impl Followers {
    #[must_use]
    pub fn new(reports: Arc<Reports>, names: Vec<String>) -> Self {
        let (client, followed, tasks) = (http_client::new(), HashMap::new(), JoinSet::new());
        Self { reports, client, names, followed, tasks }
    }

    /// Runs until `stop`.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut ticks = interval(RESOLVE);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => self.resolve().await,
                () = self.reap() => {}
            }
        }
    }

    /// Looks up the names and follows their addresses. If one look-up fails, nothing changes.
    async fn resolve(&mut self) {
        let mut found = HashSet::new();
        for name in &self.names {
            match timeout(RESOLVE, lookup_host(name)).await {
                Ok(Ok(addresses)) => found.extend(addresses),
                Ok(Err(error)) => return debug!(name, %error, "Cannot look up a peer"),
                Err(_) => return debug!(name, "Looking up a peer takes too long"),
            }
        }
        self.follow(found);
    }

    /// Follows the addresses in `found` and no others. One that turned out to be this picker is not asked again.
    pub fn follow(&mut self, found: HashSet<SocketAddr>) {
        let Self { reports, client, names: _, followed, tasks } = self;
        followed.retain(|address, stop| {
            let keep = found.contains(address);
            if !keep {
                stop.cancel();
            }
            keep
        });
        for address in found {
            followed.entry(address).or_insert_with(|| {
                let stop = CancellationToken::new();
                let stopped = stop.clone().cancelled_owned();
                let follower = Follower::new(Arc::clone(reports), client.clone(), address);
                tasks.spawn(async move {
                    tokio::select! {
                        () = stopped => {}
                        () = follower.run() => {}
                    }
                    address
                });
                stop
            });
        }
    }

    /// Waits until a follower has ended, because its peer is gone or is this picker, and removes the peer's metrics.
    ///
    /// # Panics
    /// If the follower panicked.
    pub async fn reap(&mut self) {
        let Some(ended) = self.tasks.join_next().await else { return std::future::pending().await };
        let peer = ended.expect("a follower does not panic").to_string();
        let (metrics, labels) = (self.reports.director().metrics(), PeerLabels { peer });
        metrics.peer_connected.remove(&labels);
        metrics.peer_insertions.remove(&labels);
        metrics.peer_missed.remove(&labels);
    }
}

// === impl Follower ===

impl Follower {
    fn new(reports: Arc<Reports>, client: HttpClient, address: SocketAddr) -> Self {
        let labels = PeerLabels { peer: address.to_string() };
        Self { reports, client, address, labels, instance: String::new(), seq: 0 }
    }

    fn director(&self) -> &Director {
        self.reports.director()
    }

    /// Reads until it is stopped, or the peer turns out to be this picker.
    async fn run(mut self) {
        let connected = self.director().metrics().peer_connected.get_or_create(&self.labels).clone();
        loop {
            let outcome = self.read().await;
            connected.set(0);
            self.reports.forget_peer(&self.instance);
            match outcome {
                Ok(()) => return debug!(address = %self.address, "This picker is among its own peers"),
                Err(error) => {
                    debug!(address = %self.address, error = format!("{error:#}"), "Cannot follow a peer");
                }
            }
            sleep(RETRY).await;
        }
    }

    /// Reads one answer to its end. The end is an error, unless the peer is this picker.
    async fn read(&mut self) -> anyhow::Result<()> {
        let Self { address, instance, seq, .. } = &*self;
        let uri = format!("http://{address}/peers/insertions?instance={instance}&after={seq}");
        let request = Request::get(uri).body(Chunks::default())?;
        let response = timeout(PATIENCE, self.client.request(request)).await.context("no answer")??;
        ensure!(response.status().is_success(), "status {}", response.status());
        let mut body = response.into_body();
        let mut buffer = BytesMut::new();
        loop {
            let frame = timeout(PATIENCE, body.frame()).await.context("silence")?;
            let frame = frame.context("the stream has ended")??;
            if let Some(chunk) = frame.data_ref() {
                buffer.extend_from_slice(chunk);
            }
            if self.take_lines(&mut buffer)? == Next::Nothing {
                return Ok(());
            }
            ensure!(buffer.len() <= MAX_LINE, "a line of more than {MAX_LINE} bytes");
        }
    }

    /// Removes the complete lines from the buffer and applies them.
    fn take_lines(&mut self, buffer: &mut BytesMut) -> anyhow::Result<Next> {
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = serde_json::from_slice(&buffer[..end]).context("not a line of a journal")?;
            buffer.advance(end + 1);
            if self.take(line)? == Next::Nothing {
                return Ok(Next::Nothing);
            }
        }
        Ok(Next::Line)
    }

    fn take(&mut self, line: PeerLine) -> anyhow::Result<Next> {
        let metrics = self.director().metrics();
        match line {
            PeerLine::Hello { format, .. } if format != FORMAT => {
                bail!("it speaks format {format}, this picker {FORMAT}")
            }
            PeerLine::Hello { instance, .. } if self.director().is_instance(&instance) => {
                return Ok(Next::Nothing);
            }
            PeerLine::Hello { instance, next_seq, format: _ } => {
                let is_known = self.instance == instance;
                let missed = if is_known { next_seq.saturating_sub(self.seq + 1) } else { 0 };
                if missed > 0 {
                    warn!(address = %self.address, missed, "A peer's journal does not go back far enough");
                    metrics.peer_missed.get_or_create(&self.labels).inc_by(missed);
                }
                info!(address = %self.address, instance, next_seq, "Following a peer");
                metrics.peer_connected.get_or_create(&self.labels).set(1);
                self.instance = instance;
                self.seq = next_seq.saturating_sub(1);
            }
            PeerLine::Waiting { ages_ms } => self.reports.note_peer(&self.instance, ages_ms, now().instant),
            PeerLine::End(event) => {
                self.seq = event.seq;
                self.reports.end(&event.ending, now());
            }
            PeerLine::Insertion(event) => {
                let since_epoch = now().wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                let age = since_epoch.saturating_sub(Duration::from_millis(event.time_ms));
                metrics.peer_staleness.observe(age.as_secs_f64());
                metrics.peer_insertions.get_or_create(&self.labels).inc();
                self.seq = event.seq;
                self.director().believe(&event);
            }
        }
        Ok(Next::Line)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.reports.forget_peer(&self.instance);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the follower is an edge; staleness is measured against the sender's wall clock"
)]
fn now() -> Now {
    Now { instant: Instant::now(), wall: SystemTime::now() }
}
