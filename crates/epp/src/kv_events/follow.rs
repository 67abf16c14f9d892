//! Follows the events of one endpoint, as long as it lives and its pool wants them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::StreamExt as _;
use pool_index::snapshot::KvAddresses;
use prefix_index::blocks::BlockIndex;
use prefix_index::endpoint::EndpointId;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, info, warn};
use zeromq::{Socket, SocketEvent, SocketRecv, SubSocket};

use super::replay::replay;
use super::sequence::{Next, Replayed, Sequence};
use super::wire::{self, Message};
use crate::datastore::LiveEndpoint;
use crate::metrics::{Counted, Metrics};

/// Time between two tries.
const RETRY: Duration = Duration::from_millis(500);
/// Longest wait for a connection.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time in which the follower notices that the pool uses the estimate now, or that another process is behind the
/// endpoint.
const WATCH: Duration = Duration::from_millis(50);
/// Time in which the follower notices that the pool wants events: most pools never do, and then a hundred endpoints
/// must cost nothing.
const IDLE: Duration = Duration::from_secs(1);
/// Time that a subscription usually takes to reach the engine. Events that are missed nevertheless are asked for again.
const SUBSCRIBING: Duration = Duration::from_millis(50);

/// Ports of engines for which no other ports are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvPorts {
    pub events: u16,
    /// Port for past messages. `None`: engines are not asked for what was missed.
    pub replay: Option<u16>,
}

/// Reason why a connection is not followed any longer.
enum End {
    /// The pool uses the estimate.
    Unwanted,
    /// Another process is behind the endpoint.
    Replaced,
}

struct Follower {
    endpoint: Arc<LiveEndpoint>,
    blocks: Arc<BlockIndex>,
    metrics: Arc<Metrics>,
    events: SocketAddr,
    replay: Option<SocketAddr>,
    /// The process whose messages are counted.
    id: EndpointId,
    sequence: Sequence,
    /// True after the log has said that the index has no room for the endpoint's blocks.
    has_said_full: bool,
}

/// Follows `endpoint` until this future is dropped.
pub async fn follow(
    endpoint: Arc<LiveEndpoint>,
    blocks: Arc<BlockIndex>,
    metrics: Arc<Metrics>,
    ports: KvPorts,
) {
    let KvAddresses { events, replay } = endpoint.kv;
    let at = |port| SocketAddr::new(endpoint.address.ip(), port);
    let mut follower = Follower {
        events: events.unwrap_or_else(|| at(ports.events)),
        replay: replay.or_else(|| ports.replay.map(at)),
        id: endpoint.state.id(),
        endpoint,
        blocks,
        metrics,
        sequence: Sequence::default(),
        has_said_full: false,
    };
    loop {
        while !follower.endpoint.wants_events() {
            sleep(IDLE).await;
        }
        let outcome = follower.run_connection().await;
        follower.blocks.set_live(follower.id, false);
        match outcome {
            Ok(End::Unwanted) => {
                follower.blocks.remove_endpoint(follower.id);
                follower.sequence.reset();
            }
            Ok(End::Replaced) => {}
            Err(error) => {
                let (endpoint, error) = (&follower.endpoint.destination, format!("{error:#}"));
                debug!(%endpoint, address = %follower.events, error, "Cannot follow KV events");
                sleep(RETRY).await;
            }
        }
    }
}

impl Follower {
    async fn run_connection(&mut self) -> anyhow::Result<End> {
        let mut socket = SubSocket::new();
        let mut monitor = socket.monitor();
        let connected = timeout(PATIENCE, socket.connect(&format!("tcp://{}", self.events))).await;
        connected.context("no connection")?.context("connect")?;
        socket.subscribe("").await.context("subscribe")?;
        sleep(SUBSCRIBING).await;
        self.begin().await?;
        let _counted = Counted::new(self.metrics.kv_event_streams.clone());
        info!(endpoint = %self.endpoint.destination, due = self.sequence.due(), "Following KV events");
        let mut ticks = interval(WATCH);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = socket.recv() => {
                    let frames = message.context("read a message")?.into_vec();
                    self.take(Message::new(&frames)?).await?;
                }
                event = monitor.next() => if matches!(event, None | Some(SocketEvent::Disconnected(_))) {
                    bail!("the connection has closed");
                },
                _ = ticks.tick() => {}
            }
            if self.endpoint.state.id() != self.id {
                return Ok(End::Replaced);
            }
            if !self.endpoint.wants_events() {
                return Ok(End::Unwanted);
            }
        }
    }

    /// Fills the index with what the engine's cache holds, as far as that can be found out.
    async fn begin(&mut self) -> anyhow::Result<()> {
        if self.endpoint.state.id() != self.id {
            self.blocks.remove_endpoint(self.id);
            self.id = self.endpoint.state.id();
            self.sequence.reset();
        }
        match self.replay {
            // The first known message is the next one.
            None => {
                self.sequence.reset();
                self.blocks.reset(self.id, true);
            }
            Some(address) => {
                let messages = replay(address, 0).await.context("ask for the past")?;
                self.apply_replay(messages)?;
                self.blocks.set_live(self.id, true);
            }
        }
        Ok(())
    }

    async fn take(&mut self, message: Message) -> anyhow::Result<()> {
        match self.sequence.take(message.number) {
            Next::Skip => return Ok(()),
            Next::Apply => return self.apply(&message),
            Next::Missing { from } => {
                let (endpoint, number) = (&self.endpoint.destination, message.number);
                debug!(%endpoint, from, number, "KV events are missing");
                self.metrics.kv_event_gaps.inc();
                if let Some(address) = self.replay {
                    let messages = replay(address, from).await.context("ask for what is missing")?;
                    self.apply_replay(messages)?;
                }
            }
        }
        match self.sequence.take(message.number) {
            Next::Skip => Ok(()),
            Next::Apply => self.apply(&message),
            Next::Missing { .. } => {
                self.lose();
                self.sequence.reset();
                self.sequence.take(message.number);
                self.apply(&message)
            }
        }
    }

    fn apply_replay(&mut self, messages: Vec<Message>) -> anyhow::Result<()> {
        let numbers = messages.first().zip(messages.last()).map(|(first, last)| (first.number, last.number));
        let knew = self.sequence != Sequence::default();
        match self.sequence.take_replay(numbers) {
            Replayed::Continues => {}
            Replayed::Whole => self.blocks.reset(self.id, true),
            Replayed::Torn if knew => self.lose(),
            Replayed::Torn | Replayed::Empty => self.blocks.reset(self.id, true),
        }
        if numbers.is_none() {
            self.sequence.reset();
        }
        for message in messages {
            if self.sequence.take(message.number) == Next::Apply {
                self.apply(&message)?;
            }
        }
        Ok(())
    }

    /// Treats the cache as empty: events were lost, so we may underestimate it, never overestimate it.
    fn lose(&self) {
        warn!(endpoint = %self.endpoint.destination, "KV events are lost; its cache counts as empty");
        self.metrics.kv_event_losses.inc();
        self.blocks.reset(self.id, true);
    }

    fn apply(&mut self, message: &Message) -> anyhow::Result<()> {
        let events = wire::events(&message.batch).context("read a batch")?;
        let n_events = events.len() as u64;
        let n_refused = self.blocks.apply(self.id, events);
        // Counted last: who reads the count finds the index as the events made it.
        self.metrics.kv_events.inc_by(n_events);
        if n_refused > 0 && !self.has_said_full {
            self.has_said_full = true;
            let endpoint = &self.endpoint.destination;
            warn!(%endpoint, n_refused, "The index has no room for all blocks of the engine; its other blocks count");
        }
        Ok(())
    }
}

impl Drop for Follower {
    /// Removes what was stored from events that came after the endpoint was forgotten.
    fn drop(&mut self) {
        self.blocks.remove_endpoint(self.id);
    }
}
