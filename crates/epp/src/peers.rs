//! Pickers that serve the same pools report their picks to each other, so that each finds the prefixes of all, and the
//! ends of each other's requests, which the proxy tells to any of them. Each picker's heartbeat tells the requests that it
//! waits for, so that an engine's count can be compared with those of all.
//!
//! ```text
//! director ─ SentPrompt ─┬► PeerJournal (bounded)
//! reports ─ ToldEnd ─────┘     └─ GET /peers/insertions, a line of JSON each ─► the peer's Follower ┬► its index
//!                                                                                                  └► its reports
//! ```
//! There is no leader. Each picker follows every other one and passes nothing on; one that was away or starts again
//! reads the others' journals as far back as they go. A lost event costs a cache hit, never a request.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ext_proc::observation::{Ending, Name};
use parking_lot::Mutex;
use prefix_index::chain::Chain;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Version of the lines and of the hashes in them: pickers with different versions do not understand each other.
pub const FORMAT: u32 = 3;
/// Time between two heartbeats.
pub const HEARTBEAT: Duration = Duration::from_secs(1);
/// Bytes of an event besides its hashes or its name.
const EVENT_BYTES: usize = 128;

/// One line of the stream. The first is [`PeerLine::Hello`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub enum PeerLine {
    Hello {
        format: u32,
        /// Random id of the process, by which a picker notices that it follows itself.
        instance: String,
        /// Number of the next event; the events between the wanted one and this one are forgotten.
        next_seq: u64,
    },
    /// Heartbeat: the requests that the picker waits for.
    Waiting {
        ages_ms: Ages,
    },
    Insertion(SentPrompt),
    End(ToldEnd),
}

/// Milliseconds since the picks of requests, by endpoint (`ip:port`).
pub type Ages = BTreeMap<Arc<str>, Vec<u64>>;

/// The end of another picker's request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToldEnd {
    /// Number of the event in its process, from 1.
    pub seq: u64,
    pub ending: Ending,
}

/// A prompt that was sent to an endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SentPrompt {
    /// Number of the event in its process, from 1.
    pub seq: u64,
    /// Unix time in milliseconds.
    pub time_ms: u64,
    /// `ip:port`.
    pub endpoint: Arc<str>,
    /// `process_start_time_seconds` of the engine, if known: a prompt for an earlier process is of no use.
    pub started: Option<f64>,
    /// The prompt's chain.
    pub hashes: Chain,
}

/// The newest events of this picker, as many as fit.
#[derive(Debug)]
pub struct PeerJournal {
    /// Random id of this process.
    instance: String,
    max_bytes: usize,
    state: Mutex<State>,
    /// Number of the last event.
    last_seq: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    next_seq: u64,
    n_bytes: usize,
    events: VecDeque<Arc<Event>>,
}

/// An event of a journal.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Number of the event in its process, from 1.
    pub seq: u64,
    /// The line that followers read.
    pub line: PeerLine,
    n_bytes: usize,
}

// === impl PeerJournal ===

impl PeerJournal {
    /// Keeps at most `max_bytes` of events, and the newest one in any case.
    #[must_use]
    pub fn new(instance: String, max_bytes: usize) -> Self {
        let state = State { next_seq: 1, ..State::default() };
        Self { instance, max_bytes, state: Mutex::new(state), last_seq: watch::Sender::new(0) }
    }

    #[must_use]
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Notes that `chain` goes to `endpoint`.
    pub fn note(&self, endpoint: &Arc<str>, started: Option<f64>, chain: &Chain, now: SystemTime) {
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let time_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        let line = |seq| {
            let (endpoint, hashes) = (Arc::clone(endpoint), chain.clone());
            PeerLine::Insertion(SentPrompt { seq, time_ms, endpoint, started, hashes })
        };
        self.add(line, size_of_val(chain.hashes()));
    }

    /// Notes how another picker's request has ended.
    pub fn note_end(&self, ending: Ending) {
        let (Name::Ticket(name) | Name::Id(name)) = &ending.name;
        let n_bytes = name.len();
        self.add(|seq| PeerLine::End(ToldEnd { seq, ending }), n_bytes);
    }

    /// Adds the event with the next number, and forgets the oldest ones if there is no room.
    fn add(&self, line: impl FnOnce(u64) -> PeerLine, n_bytes: usize) {
        let n_bytes = EVENT_BYTES + n_bytes;
        let mut state = self.state.lock();
        let seq = state.next_seq;
        state.next_seq += 1;
        state.n_bytes += n_bytes;
        state.events.push_back(Arc::new(Event { seq, line: line(seq), n_bytes }));
        while state.n_bytes > self.max_bytes
            && state.events.len() > 1
            && let Some(oldest) = state.events.pop_front()
        {
            state.n_bytes -= oldest.n_bytes;
        }
        drop(state);
        self.last_seq.send_replace(seq);
    }

    /// The first event with a number above `after`, or the oldest that is kept.
    #[must_use]
    pub fn after(&self, after: u64) -> Option<Arc<Event>> {
        let state = self.state.lock();
        let idx = state.events.partition_point(|event| event.seq <= after);
        state.events.get(idx).cloned()
    }

    /// The first line for a follower that has read up to `after`. A follower that knows another process's numbers has
    /// read nothing of this one.
    #[must_use]
    pub fn hello(&self, after: u64) -> PeerLine {
        let next_seq = self.after(after).map_or_else(|| self.state.lock().next_seq, |event| event.seq);
        PeerLine::Hello { format: FORMAT, instance: self.instance.clone(), next_seq }
    }

    /// Returns true when there is an event after number `after`, or false after [`HEARTBEAT`].
    pub async fn wait_for_more(&self, after: u64) -> bool {
        let mut last_seq = self.last_seq.subscribe();
        tokio::time::timeout(HEARTBEAT, last_seq.wait_for(|last| *last > after)).await.is_ok()
    }
}
