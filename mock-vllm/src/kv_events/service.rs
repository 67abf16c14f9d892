//! The task that owns the sockets: encodes batches, keeps them for replay and queues them for each subscriber.

use super::config::{TcpAddress, ZmqConfig, ZmqEndpoint};
use super::encoding::{self, WireFormat};
use super::peer::{Interest, ReplaySource, Subscriber};
use super::publisher::{Batch, KvEventMonitor, KvEventPublisher};
use super::replay::ReplayBuffer;
use super::stats::Counters;
use super::zmtp::{self, ZmtpError};
use bytes::Bytes;
use parking_lot::Mutex;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

/// Most batches taken from the queue at once.
const INTAKE: usize = 64;
/// Most open connections per socket; further ones wait. A pod has few subscribers.
const MAX_PEERS: usize = 1_024;
/// libzmq's `ZMQ_RECONNECT_IVL`.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(100);
/// Pause after a failed accept, which repeats while the process is out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time that subscribers have after the stop to read their queues; vLLM closes with linger 0 after up to a second.
const LINGER: Duration = Duration::from_millis(100);

/// Service that does not listen yet.
#[derive(Debug)]
pub struct KvEventService {
    config: ZmqConfig,
    format: WireFormat,
    rank: u16,
    batches: mpsc::Receiver<Batch>,
    counters: Arc<Counters>,
}

/// Service that listens; `run` serves.
#[derive(Debug)]
pub struct BoundService {
    outlet: Outlet,
    replay: Option<TcpListener>,
    batches: mpsc::Receiver<Batch>,
    hub: Hub,
}

#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {endpoint} for KV events")]
pub struct KvEventsBindError {
    pub endpoint: String,
    pub source: std::io::Error,
}

#[derive(Debug)]
enum Outlet {
    Listening(TcpListener),
    Dialling(TcpAddress),
}

#[derive(Debug)]
struct Hub {
    format: WireFormat,
    rank: u16,
    topic: Bytes,
    hwm: usize,
    subscribers: Vec<SubscriberQueue>,
    /// Messages for replay; `None` without a replay endpoint, because then no client can ask.
    buffer: Option<Arc<Mutex<ReplayBuffer>>>,
    counters: Arc<Counters>,
    /// Buffer that is reused for each payload.
    payload: Vec<u8>,
}

#[derive(Debug)]
struct SubscriberQueue {
    queue: mpsc::Sender<Bytes>,
    subscribed: Arc<AtomicBool>,
}

/// Makes the two ends of a pod's events: the publisher for the thread that steps the engine, the service for the
/// runtime. `config` already has the ports of its rank (`KvEventsConfig::for_rank`); `rank` only goes into the batches.
pub fn channel(config: ZmqConfig, format: WireFormat, rank: u16) -> (KvEventPublisher, KvEventService) {
    let (queue, batches) = mpsc::channel(capacity(config.max_queue_size));
    let counters: Arc<Counters> = Arc::default();
    let publisher = KvEventPublisher::new(queue, counters.clone());
    (publisher, KvEventService { config, format, rank, batches, counters })
}

// === impl KvEventService ===

impl KvEventService {
    /// Listens on the endpoints. (`run` connects to an endpoint that is not listened on.)
    ///
    /// # Errors
    /// Names the endpoint that is taken or does not resolve.
    pub async fn bind(self) -> Result<BoundService, KvEventsBindError> {
        let Self { config, format, rank, batches, counters } = self;
        let ZmqConfig { endpoint, replay_endpoint, buffer_steps, hwm, max_queue_size: _, topic } = config;
        let outlet = match endpoint {
            ZmqEndpoint::Bind(address) => Outlet::Listening(listen(&address).await?),
            ZmqEndpoint::Connect(address) => Outlet::Dialling(address),
        };
        let replay = match replay_endpoint {
            Some(address) => Some(listen(&address).await?),
            None => None,
        };
        let hub = Hub {
            format,
            rank,
            topic: topic.into(),
            hwm,
            subscribers: Vec::new(),
            buffer: replay.is_some().then(|| Arc::new(Mutex::new(ReplayBuffer::new(buffer_steps)))),
            counters,
            payload: Vec::new(),
        };
        Ok(BoundService { outlet, replay, batches, hub })
    }
}

async fn listen(address: &TcpAddress) -> Result<TcpListener, KvEventsBindError> {
    let endpoint = address.to_string();
    TcpListener::bind(&endpoint).await.map_err(|source| KvEventsBindError { endpoint, source })
}

// === impl BoundService ===

impl BoundService {
    /// Returns the address that subscribers connect to; `None` if the service connects to them.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match &self.outlet {
            Outlet::Listening(listener) => listener.local_addr().ok(),
            Outlet::Dialling(_) => None,
        }
    }

    /// Returns the address of the replay endpoint.
    pub fn replay_addr(&self) -> Option<SocketAddr> {
        self.replay.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    pub fn monitor(&self) -> KvEventMonitor {
        KvEventMonitor { counters: self.hub.counters.clone() }
    }

    /// Serves until `shutdown` or until the publisher is gone, then gives subscribers 100 ms to read what is queued.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self { outlet, replay, mut batches, mut hub } = self;
        let mut subscribers = JoinSet::new();
        let mut replays = JoinSet::new();
        let listener = match outlet {
            Outlet::Listening(listener) => Some(listener),
            Outlet::Dialling(address) => {
                subscribers.spawn(dial(address, hub.add_subscriber()));
                None
            }
        };
        tokio::pin!(shutdown);
        let mut intake = Vec::with_capacity(INTAKE);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                n_batches = batches.recv_many(&mut intake, INTAKE) => {
                    if n_batches == 0 {
                        break;
                    }
                    intake.drain(..).for_each(|batch| hub.publish(&batch));
                }
                stream = accept(listener.as_ref()), if subscribers.len() < MAX_PEERS => {
                    subscribers.spawn(subscribe(stream, hub.add_subscriber()));
                }
                stream = accept(replay.as_ref()), if replays.len() < MAX_PEERS => {
                    if let Some(source) = hub.replay_source() {
                        replays.spawn(answer(stream, source));
                    }
                }
                Some(_ended) = subscribers.join_next() => {}
                Some(_ended) = replays.join_next() => {}
            }
        }
        batches.close();
        while let Ok(batch) = batches.try_recv() {
            hub.publish(&batch);
        }
        // Closes the queues: a subscriber's task ends when it has sent its own.
        drop(hub);
        let drained = async { while subscribers.join_next().await.is_some() {} };
        if tokio::time::timeout(LINGER, drained).await.is_err() {
            tracing::debug!("Left subscribers that did not read their last KV events");
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        match listener.accept().await {
            Ok((stream, _peer)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "Cannot accept a KV-event connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn subscribe(stream: TcpStream, mut subscriber: Subscriber) {
    log_end("subscriber", subscriber.serve(stream).await);
}

async fn answer(stream: TcpStream, source: ReplaySource) {
    log_end("replay client", source.serve(stream).await);
}

/// Connects to a subscriber that listens, again and again until the service ends.
async fn dial(address: TcpAddress, mut subscriber: Subscriber) {
    loop {
        match TcpStream::connect(address.to_string()).await {
            Ok(stream) => log_end("subscriber", subscriber.serve(stream).await),
            Err(error) => tracing::debug!(%address, %error, "Cannot connect to the subscriber"),
        }
        if subscriber.queue.is_closed() {
            return;
        }
        tokio::time::sleep(RECONNECT_INTERVAL).await;
    }
}

fn log_end(peer: &str, end: Result<(), ZmtpError>) {
    match end {
        Ok(()) => tracing::debug!(peer, "A KV-event peer left"),
        Err(error) => tracing::debug!(peer, %error, "Dropped a KV-event peer"),
    }
}

// === impl Hub ===

impl Hub {
    fn add_subscriber(&mut self) -> Subscriber {
        let (queue, receiver) = mpsc::channel(capacity(self.hwm));
        let subscribed: Arc<AtomicBool> = Arc::default();
        self.subscribers.retain(|subscriber| !subscriber.queue.is_closed());
        self.subscribers.push(SubscriberQueue { queue, subscribed: subscribed.clone() });
        Subscriber {
            topic: self.topic.clone(),
            queue: receiver,
            interest: Interest::new(subscribed, self.counters.clone()),
        }
    }

    fn replay_source(&self) -> Option<ReplaySource> {
        Some(ReplaySource {
            buffer: self.buffer.clone()?,
            topic: self.topic.clone(),
            version: self.format.version,
            counters: self.counters.clone(),
        })
    }

    fn publish(&mut self, batch: &Batch) {
        let subscribed = |subscriber: &SubscriberQueue| subscriber.subscribed.load(Ordering::Acquire);
        if self.buffer.is_none() && !self.subscribers.iter().any(subscribed) {
            return;
        }
        let message = self.frame(batch);
        // The message is kept before it is sent, so that a client that has seen it can ask for it.
        if let Some(buffer) = &self.buffer {
            buffer.lock().push(batch.seq, message.clone());
        }
        for subscriber in self.subscribers.iter().filter(|subscriber| subscribed(subscriber)) {
            if let Err(mpsc::error::TrySendError::Full(_)) = subscriber.queue.try_send(message.clone()) {
                let n_dropped = self.counters.dropped_messages.fetch_add(1, Ordering::Relaxed) + 1;
                if n_dropped.is_power_of_two() {
                    tracing::warn!(seq = batch.seq, n_dropped, "Dropped KV events for a slow subscriber");
                }
            }
        }
    }

    /// Frames topic, sequence number and payload for ZMTP.
    fn frame(&mut self, batch: &Batch) -> Bytes {
        let Batch { seq, at, events } = batch;
        self.payload.clear();
        encoding::encode_batch(&mut self.payload, self.format, *at, events, self.rank);
        let mut message = Vec::with_capacity(self.topic.len() + self.payload.len() + 32);
        zmtp::frame_more(&mut message, &self.topic);
        zmtp::frame_more(&mut message, &seq.to_be_bytes());
        zmtp::frame(&mut message, &self.payload);
        message.into()
    }
}

/// Returns the capacity of a channel; vLLM's 0 means no limit.
fn capacity(limit: usize) -> usize {
    if limit == 0 { Semaphore::MAX_PERMITS } else { limit.min(Semaphore::MAX_PERMITS) }
}
