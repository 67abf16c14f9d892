//! Requests whose response goes past the picker, from the pick until the proxy tells of the response.
//!
//! News of a response may be late, missing or doubled, or be about another process's request. This module knows no
//! streams, and the time is an argument.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Longest wait for the proxy to tell of a response. After it the request counts as over, and the engine's own counts
/// show its work.
pub const REPORT_WAIT: Duration = Duration::from_secs(600);
/// Time after which the engine's counts are believed: if it has no request, a request that the picker waits for is over.
/// Engines do not count a request before they have its token ids.
pub const ENGINE_WAIT: Duration = Duration::from_secs(2);
/// Time after which an engine's count has a request: an engine counts no new one while it computes a long step.
pub const COUNT_WAIT: Duration = Duration::from_secs(5);
/// Time after which no end is on its way any more: a request that was over when the engine was asked is known to be over.
/// A proxy takes up to 7 s to find out that the picker hangs which has its access log.
pub const END_WAIT: Duration = Duration::from_secs(10);
/// Longest delay of what another picker tells of its requests, by which they are older than they seem.
pub const PEER_DELAY: Duration = Duration::from_secs(1);

/// The requests that nothing was told of. `T` is what ends a request, and `K` identifies an engine.
#[derive(Debug)]
pub struct Observed<T, K> {
    /// Different in each process, so that news for a process that is gone claims nothing.
    instance: String,
    waiting: Mutex<Waiting<T, K>>,
}

#[derive(Debug)]
struct Waiting<T, K> {
    n_begun: u64,
    /// The requests by number.
    requests: HashMap<u64, Kept<T>>,
    /// The last number of each request's id.
    numbers: HashMap<Arc<str>, u64>,
    /// Counts of each engine that are younger than [`END_WAIT`], the oldest first.
    counts: HashMap<K, VecDeque<Count>>,
}

/// A request that waits.
#[derive(Debug)]
struct Kept<T> {
    /// The time of its pick.
    since: Instant,
    id: Arc<str>,
    request: T,
}

/// A request that a picker waits for since its pick.
#[derive(Clone, Copy, Debug)]
enum Awaited {
    Own { since: Instant, number: u64 },
    Others { since: Instant },
}

/// The number of requests that an engine had at a moment when pickers waited for more.
#[derive(Clone, Copy, Debug)]
struct Count {
    at: Instant,
    n_requests: usize,
}

/// An engine whose counts are believed.
#[derive(Debug)]
struct Believed {
    n_requests: Option<usize>,
    awaited: Vec<Awaited>,
}

/// A request's engine, according to its scrapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Engine<K> {
    pub key: K,
    /// True if it has had no request since the moment that was asked for.
    pub is_quiet: bool,
    /// Its requests, if a scrape has just told them.
    pub n_requests: Option<usize>,
}

impl<T, K: Copy + Eq + Hash> Observed<T, K> {
    /// Creates the requests of the process that is called `instance`.
    #[must_use]
    pub fn new(instance: String) -> Self {
        let waiting =
            Waiting { n_begun: 0, requests: HashMap::new(), numbers: HashMap::new(), counts: HashMap::new() };
        Self { instance, waiting: Mutex::new(waiting) }
    }

    /// Keeps `request`, whose id is `id`, until it is claimed. Returns its ticket.
    pub fn keep(&self, request: T, id: &str, now: Instant) -> String {
        let mut waiting = self.waiting.lock();
        waiting.n_begun += 1;
        let number = waiting.n_begun;
        let id = Arc::from(id);
        waiting.numbers.insert(Arc::clone(&id), number);
        waiting.requests.insert(number, Kept { since: now, id, request });
        [&self.instance, "-", &number.to_string()].concat()
    }

    /// Returns true if this process has made the ticket.
    #[must_use]
    pub fn is_maker_of(&self, ticket: &str) -> bool {
        ticket.rsplit_once('-').is_some_and(|(instance, _)| instance == self.instance)
    }

    /// Hands the request out to the first who has its ticket.
    pub fn claim(&self, ticket: &str) -> Option<T> {
        let (instance, number) = ticket.rsplit_once('-')?;
        let number = number.parse().ok()?;
        if instance == self.instance { self.waiting.lock().remove(number) } else { None }
    }

    /// Hands out the last request with this id.
    pub fn claim_id(&self, id: &str) -> Option<T> {
        let mut waiting = self.waiting.lock();
        let number = *waiting.numbers.get(id)?;
        waiting.remove(number)
    }

    /// Reads each request, and the time of its pick.
    pub fn read_each(&self, mut read: impl FnMut(&T, Instant)) {
        self.waiting.lock().requests.values().for_each(|kept| read(&kept.request, kept.since));
    }

    /// Removes and returns the requests that are over although nothing was told of them: those that have waited for
    /// [`REPORT_WAIT`]; those that have waited for [`ENGINE_WAIT`] and whose engine has had no request since that moment;
    /// and those that an engine cannot have had. An engine has counted all requests that pickers had sent it for
    /// [`COUNT_WAIT`]. If pickers wait for more of these [`END_WAIT`] later, the oldest are over.
    ///
    /// `others` tells the times of other pickers' picks whose requests wait.
    pub fn expire(
        &self,
        now: Instant,
        engine: impl Fn(&T, Instant) -> Engine<K>,
        others: impl Fn(K) -> Vec<Instant>,
    ) -> Vec<T> {
        let mut waiting = self.waiting.lock();
        let mut due = Vec::new();
        let mut by_engine: HashMap<K, Believed> = HashMap::new();
        for (number, Kept { since: kept, id: _, request }) in &waiting.requests {
            let believes_engine = kept.checked_add(ENGINE_WAIT).filter(|since| *since <= now);
            let Some(since) = believes_engine else { continue };
            let Engine { key, is_quiet, n_requests } = engine(request, since);
            if is_quiet || now.saturating_duration_since(*kept) >= REPORT_WAIT {
                due.push(*number);
            } else {
                let believed = by_engine.entry(key).or_insert(Believed { n_requests, awaited: Vec::new() });
                believed.awaited.push(Awaited::Own { since: *kept, number: *number });
            }
        }
        waiting.counts.retain(|key, _| by_engine.contains_key(key));
        for (key, Believed { n_requests, mut awaited }) in by_engine {
            awaited.extend(others(key).into_iter().map(|since| Awaited::Others { since }));
            awaited.sort_unstable_by_key(Awaited::order);
            let counts = waiting.counts.entry(key).or_default();
            let count = n_requests.map(|n_requests| Count { at: now, n_requests });
            counts.extend(count.filter(|count| count.n_beyond(&awaited) > 0));
            while let Some(count) = counts.pop_front_if(|count| count.at + END_WAIT <= now) {
                let n_over = count.n_beyond(&awaited);
                let over = awaited.extract_if(.., |awaited| count.includes(awaited)).take(n_over);
                due.extend(over.filter_map(|awaited| awaited.number()));
            }
        }
        due.into_iter().filter_map(|number| waiting.remove(number)).collect()
    }
}

impl<T, K> Waiting<T, K> {
    fn remove(&mut self, number: u64) -> Option<T> {
        let Kept { since: _, id, request } = self.requests.remove(&number)?;
        // Clients may send one id twice.
        if self.numbers.get(&id) == Some(&number) {
            self.numbers.remove(&id);
        }
        Some(request)
    }
}

impl Awaited {
    /// The order of requests by age. One of this picker counts as older than another picker's only if it is for certain:
    /// otherwise each of two pickers might take its own for the oldest one.
    fn order(&self) -> (Instant, Option<u64>) {
        match *self {
            Self::Own { since, number } => (since + PEER_DELAY, Some(number)),
            Self::Others { since } => (since, None),
        }
    }

    fn number(self) -> Option<u64> {
        match self {
            Self::Own { since: _, number } => Some(number),
            Self::Others { since: _ } => None,
        }
    }
}

impl Count {
    /// Returns true if the engine has counted the request, unless it was over.
    fn includes(&self, awaited: &Awaited) -> bool {
        let (Awaited::Own { since, .. } | Awaited::Others { since }) = *awaited;
        since + COUNT_WAIT <= self.at
    }

    /// The number of requests beyond those that the engine had.
    fn n_beyond(&self, awaited: &[Awaited]) -> usize {
        let n_awaited = awaited.iter().filter(|awaited| self.includes(awaited)).count();
        n_awaited.saturating_sub(self.n_requests)
    }
}
