//! Responses that go past the picker, and what the proxy tells of them.
//!
//! ```text
//! pick ─► keep ─► ticket ─► proxy ┬ access log: each end ────────┬─► take ─► settled
//!                                 └ stream: a share, with bodies ┴─► claim
//! ```
//! A proxy sends its access log to any picker of the pool. A picker that gets the end of another's request writes it into
//! its journal, which its peers read. If it is killed before, nobody tells of that end, and the engine's own count must.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ext_proc::exchange::ResponseReport;
use ext_proc::observation::{Ending, Name};
use inference_api::object::ObjectKey;
use parking_lot::Mutex;
use pool_index::snapshot::Slot;

use crate::director::{Director, InFlightRequest, Now};
use crate::observed::Observed;
use crate::peers::Ages;
use crate::spans::RequestSpan;

/// Time between two looks for requests that are over although nobody has told.
pub const LOOKS: Duration = Duration::from_secs(1);

/// The requests that wait for news of their response.
#[derive(Debug)]
pub struct Reports {
    director: Arc<Director>,
    observed: Observed<Served, Slot>,
    /// The requests that each peer waits for, by its instance.
    peers: Mutex<HashMap<String, PeerRequests>>,
}

/// Times of the picks of a peer's requests, by endpoint.
type PeerRequests = BTreeMap<Arc<str>, Vec<Instant>>;

/// A request after its pick, and the span in which its response is noted.
#[derive(Debug)]
pub struct Served {
    pub in_flight: InFlightRequest,
    pub span: RequestSpan,
}

impl Served {
    /// Ends the request, about whose response `report` is known.
    pub fn end(self, director: &Director, report: &ResponseReport, now: Instant) {
        let Self { in_flight, span } = self;
        span.note_response(report);
        director.settle(in_flight, report, now);
    }
}

impl Reports {
    /// Creates the requests of the process that was started at `started`.
    #[must_use]
    pub fn new(director: Arc<Director>, started: SystemTime) -> Self {
        let started = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let observed = Observed::new(format!("{:x}", started.as_nanos()));
        Self { director, observed, peers: Mutex::default() }
    }

    #[must_use]
    pub fn director(&self) -> &Arc<Director> {
        &self.director
    }

    /// Keeps a request of `pool` until the proxy tells of its response. Returns its ticket.
    pub fn keep(&self, served: Served, pool: Option<&ObjectKey>, id: &str, now: Instant) -> String {
        let ticket = self.observed.keep(served, id, now);
        match pool {
            Some(ObjectKey { namespace, name }) => [namespace, "/", name, "/", &ticket].concat(),
            None => ticket,
        }
    }

    /// Hands out the request whose response is about to be reported.
    pub fn claim(&self, ticket: &str) -> Option<Served> {
        self.observed.claim(without_pool(ticket))
    }

    /// Takes the end of a request from the proxy: ends it, or tells the peers if it is one of theirs.
    pub fn take(&self, ending: Ending, now: Now) {
        let is_others = match &ending.name {
            Name::Ticket(ticket) => !self.observed.is_maker_of(without_pool(ticket)),
            // Answers without a pick are whole.
            Name::Id(_) => !ending.complete,
        };
        let was_own = self.end(&ending, now);
        if is_others
            && !was_own
            && let Some(journal) = self.director.journal()
        {
            journal.note_end(ending);
        }
    }

    /// Ends the request if it is this picker's, and has not ended. Returns true if it is.
    pub fn end(&self, ending: &Ending, now: Now) -> bool {
        let served = match &ending.name {
            Name::Ticket(ticket) => self.claim(ticket),
            Name::Id(id) => self.observed.claim_id(id),
        };
        let Some(mut served) = served else { return false };
        if let Some(elsewhere) = &ending.served_elsewhere {
            self.director.note_served_elsewhere(&mut served.in_flight, elsewhere, now);
        }
        served.end(&self.director, &ending.report(), now.instant);
        true
    }

    /// The requests that wait, for the peers.
    #[must_use]
    pub fn ages(&self, now: Instant) -> Ages {
        let mut ages = Ages::new();
        self.observed.read_each(|served, since| {
            let age = now.saturating_duration_since(since).as_millis();
            let endpoint = Arc::clone(served.in_flight.destination());
            ages.entry(endpoint).or_default().push(u64::try_from(age).unwrap_or(u64::MAX));
        });
        ages
    }

    /// Notes the requests that a peer waits for.
    pub fn note_peer(&self, instance: &str, ages_ms: Ages, now: Instant) {
        let since = |age_ms| now.checked_sub(Duration::from_millis(age_ms)).unwrap_or(now);
        let requests = ages_ms
            .into_iter()
            .map(|(endpoint, ages_ms)| (endpoint, ages_ms.into_iter().map(since).collect()))
            .collect();
        self.peers.lock().insert(instance.to_owned(), requests);
    }

    /// Forgets the requests of a peer that tells of them no more.
    pub fn forget_peer(&self, instance: &str) {
        self.peers.lock().remove(instance);
    }

    /// Ends the requests that are over although nobody has told.
    pub fn give_up(&self, now: Instant) {
        let engine = |served: &Served, since| self.director.engine(&served.in_flight, since, now);
        let others = |slot| {
            let Some(endpoint) = self.director.destination(slot) else { return Vec::new() };
            let peers = self.peers.lock();
            peers.values().filter_map(|requests| requests.get(&endpoint)).flatten().copied().collect()
        };
        for served in self.observed.expire(now, engine, others) {
            self.director.metrics().unreported_responses.inc();
            served.end(&self.director, &ResponseReport::default(), now);
        }
    }
}

/// The ticket as it was made; the pool in front of it is for the proxy, which tells each pool's picker its own.
fn without_pool(ticket: &str) -> &str {
    ticket.rsplit_once('/').map_or(ticket, |(_, ticket)| ticket)
}
