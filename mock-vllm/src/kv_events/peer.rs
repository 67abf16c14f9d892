//! One connection: a subscriber that gets the messages of its queue, or a client that asks for replay.

use super::replay::ReplayBuffer;
use super::stats::Counters;
use super::zmtp::{self, Decoder, PeerInput, SocketType, ZmtpError};
use bytes::Bytes;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use vllm_engine::vllm_version::VllmVersion;

/// libzmq's `ZMQ_HANDSHAKE_IVL`.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Messages that one system call writes if there is a backlog.
const WRITE_BATCH: usize = 64;
/// Most prefixes that one peer may subscribe to.
const MAX_SUBSCRIPTIONS: usize = 1024;
/// The sequence number after the last replayed message: -1.
const END_SEQ: [u8; 8] = [0xff; 8];

/// The subscriber's end of its queue, which stays over reconnects.
#[derive(Debug)]
pub(super) struct Subscriber {
    pub(super) topic: Bytes,
    /// Framed messages.
    pub(super) queue: mpsc::Receiver<Bytes>,
    pub(super) interest: Interest,
}

/// State of the peer's subscription to the topic; the service looks at it before it queues a message.
#[derive(Debug)]
pub(super) struct Interest {
    subscribed: Arc<AtomicBool>,
    counters: Arc<Counters>,
}

/// Source of the answers of a replay connection.
#[derive(Clone, Debug)]
pub(super) struct ReplaySource {
    pub(super) buffer: Arc<Mutex<ReplayBuffer>>,
    pub(super) topic: Bytes,
    pub(super) version: VllmVersion,
    pub(super) counters: Arc<Counters>,
}

struct Connection {
    stream: TcpStream,
    decoder: Decoder,
}

// === impl Interest ===

impl Interest {
    pub(super) fn new(subscribed: Arc<AtomicBool>, counters: Arc<Counters>) -> Self {
        Self { subscribed, counters }
    }

    fn set(&self, subscribed: bool) {
        match (self.subscribed.swap(subscribed, Ordering::AcqRel), subscribed) {
            (false, true) => self.counters.subscribers.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.counters.subscribers.fetch_sub(1, Ordering::Relaxed),
            (true, true) | (false, false) => return,
        };
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        self.set(false);
    }
}

// === impl Subscriber ===

impl Subscriber {
    /// Serves one connection until the peer closes it, or until the queue is closed and sent.
    pub(super) async fn serve(&mut self, stream: TcpStream) -> Result<(), ZmtpError> {
        let served = self.serve_subscribed(stream).await;
        self.interest.set(false);
        served
    }

    async fn serve_subscribed(&mut self, stream: TcpStream) -> Result<(), ZmtpError> {
        let mut connection = Connection::handshake(stream, SocketType::Pub).await?;
        // Messages that an earlier connection left are not for this one.
        while self.queue.try_recv().is_ok() {}
        let mut prefixes: Vec<Bytes> = Vec::new();
        let mut messages = Vec::with_capacity(WRITE_BATCH);
        loop {
            tokio::select! {
                incoming = connection.read() => {
                    let Some(incoming) = incoming? else { return Ok(()) };
                    match subscription(incoming) {
                        PeerInput::Subscribe(_) if prefixes.len() == MAX_SUBSCRIPTIONS => {
                            return Err(ZmtpError::TooLong("list of subscriptions"));
                        }
                        PeerInput::Subscribe(prefix) => prefixes.push(prefix),
                        PeerInput::Cancel(prefix) => {
                            if let Some(idx) = prefixes.iter().position(|held| *held == prefix) {
                                prefixes.swap_remove(idx);
                            }
                        }
                        PeerInput::Ping(context) => connection.pong(&context).await?,
                        PeerInput::Message(_) | PeerInput::Other => {}
                    }
                    self.interest.set(prefixes.iter().any(|prefix| self.topic.starts_with(prefix)));
                }
                n_messages = self.queue.recv_many(&mut messages, WRITE_BATCH) => {
                    if n_messages == 0 {
                        return Ok(connection.stream.shutdown().await?);
                    }
                    connection.stream.write_all(&messages.concat()).await?;
                    messages.clear();
                }
            }
        }
    }
}

// === impl ReplaySource ===

impl ReplaySource {
    /// Answers the requests of one connection until the peer closes it.
    pub(super) async fn serve(self, stream: TcpStream) -> Result<(), ZmtpError> {
        let mut connection = Connection::handshake(stream, SocketType::Router).await?;
        while let Some(incoming) = connection.read().await? {
            match incoming {
                PeerInput::Message(parts) => match start_seq(&parts) {
                    Some(start) => self.answer(&mut connection.stream, start).await?,
                    None => tracing::warn!(?parts, "Invalid replay request"),
                },
                PeerInput::Ping(context) => connection.pong(&context).await?,
                PeerInput::Subscribe(_) | PeerInput::Cancel(_) | PeerInput::Other => {}
            }
        }
        Ok(())
    }

    async fn answer(&self, stream: &mut TcpStream, start: u64) -> std::io::Result<()> {
        let messages = self.buffer.lock().since(start);
        // Messages are kept as they were published, the topic first. Before 0.33 replay leaves the topic's frame out.
        let n_skipped = match self.version {
            VllmVersion::V0_8 | VllmVersion::V0_11 => {
                let mut topic = Vec::new();
                zmtp::frame_more(&mut topic, &self.topic);
                topic.len()
            }
            VllmVersion::V0_33 => 0,
        };
        let mut wire = Vec::new();
        for messages in messages.chunks(WRITE_BATCH) {
            wire.clear();
            for message in messages {
                zmtp::frame_more(&mut wire, b"");
                wire.extend_from_slice(&message[n_skipped..]);
            }
            stream.write_all(&wire).await?;
        }
        wire.clear();
        zmtp::frame_more(&mut wire, b"");
        match self.version {
            VllmVersion::V0_8 | VllmVersion::V0_11 => {}
            VllmVersion::V0_33 => zmtp::frame_more(&mut wire, b""),
        }
        zmtp::frame_more(&mut wire, &END_SEQ);
        zmtp::frame(&mut wire, b"");
        stream.write_all(&wire).await?;
        self.counters.replays.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

// === impl Connection ===

impl Connection {
    async fn handshake(stream: TcpStream, socket_type: SocketType) -> Result<Self, ZmtpError> {
        stream.set_nodelay(true)?;
        let mut connection = Self { stream, decoder: Decoder::default() };
        tokio::time::timeout(HANDSHAKE_TIMEOUT, connection.greet(socket_type))
            .await
            .map_err(|_elapsed| ZmtpError::ClosedEarly)??;
        Ok(connection)
    }

    async fn greet(&mut self, socket_type: SocketType) -> Result<(), ZmtpError> {
        self.stream.write_all(&zmtp::greeting()).await?;
        while self.decoder.take_greeting()?.is_none() {
            self.fill().await?.ok_or(ZmtpError::ClosedEarly)?;
        }
        let mut ready = Vec::new();
        zmtp::ready(&mut ready, socket_type);
        self.stream.write_all(&ready).await?;
        while self.decoder.take_ready(socket_type)?.is_none() {
            self.fill().await?.ok_or(ZmtpError::ClosedEarly)?;
        }
        Ok(())
    }

    /// Returns the next message or command; `None` at the end. Cancelling it loses nothing.
    async fn read(&mut self) -> Result<Option<PeerInput>, ZmtpError> {
        loop {
            if let Some(incoming) = self.decoder.take_incoming()? {
                return Ok(Some(incoming));
            }
            if self.fill().await?.is_none() {
                return Ok(None);
            }
        }
    }

    async fn fill(&mut self) -> std::io::Result<Option<()>> {
        let n_read = self.stream.read_buf(&mut self.decoder.buffer).await?;
        Ok((n_read > 0).then_some(()))
    }

    async fn pong(&mut self, context: &[u8]) -> std::io::Result<()> {
        let mut pong = Vec::new();
        zmtp::pong(&mut pong, context);
        self.stream.write_all(&pong).await
    }
}

/// Converts messages with which ZMTP 3.0 peers subscribe: 1 or 0, then the prefix.
fn subscription(incoming: PeerInput) -> PeerInput {
    let PeerInput::Message(parts) = &incoming else { return incoming };
    match parts.as_slice() {
        [only] if only.first() == Some(&1) => PeerInput::Subscribe(only.slice(1..)),
        [only] if only.first() == Some(&0) => PeerInput::Cancel(only.slice(1..)),
        _ => incoming,
    }
}

/// Returns the sequence number of a replay request: an empty frame, then a big-endian number of up to eight bytes.
fn start_seq(parts: &[Bytes]) -> Option<u64> {
    let [delimiter, seq] = parts else { return None };
    if !delimiter.is_empty() || seq.len() > 8 {
        return None;
    }
    Some(seq.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}
