//! Requests whose response goes past the picker, from the pick until the proxy tells of the response.
//!
//! News of a response may be late, missing or doubled, or be about another process's request. This module knows no
//! streams, and the time is an argument.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Longest wait for the proxy to tell of a response. After it the request counts as over, and the engine's own counts
/// show its work.
pub const REPORT_WAIT: Duration = Duration::from_secs(600);
/// Time after which the engine's counts are believed: if it has no request, a request that the picker waits for is over.
/// Engines do not count a request before they have its token ids.
pub const ENGINE_WAIT: Duration = Duration::from_secs(2);
/// Time for which an engine must have had fewer requests than the picker waits for, until the rest of them are over: an
/// end that is on its way is not missing.
pub const SURPLUS_WAIT: Duration = Duration::from_secs(10);

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
    numbers: HashMap<String, u64>,
    surpluses: HashMap<K, Surplus>,
}

/// A request that waits.
#[derive(Debug)]
struct Kept<T> {
    /// The time of its pick.
    since: Instant,
    id: String,
    request: T,
}

/// Requests to an engine beyond those that it has.
#[derive(Clone, Copy, Debug)]
struct Surplus {
    since: Instant,
    /// The smallest number of them since then.
    n_requests: usize,
}

/// An engine whose counts are believed.
#[derive(Debug)]
struct Believed {
    n_requests: Option<usize>,
    /// The requests that wait, each since its pick.
    waiting: Vec<(Instant, u64)>,
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
        let waiting = Waiting {
            n_begun: 0,
            requests: HashMap::new(),
            numbers: HashMap::new(),
            surpluses: HashMap::new(),
        };
        Self { instance, waiting: Mutex::new(waiting) }
    }

    /// Keeps `request`, whose id is `id`, until it is claimed. Returns its ticket.
    pub fn keep(&self, request: T, id: &str, now: Instant) -> String {
        let mut waiting = self.waiting.lock();
        waiting.n_begun += 1;
        let number = waiting.n_begun;
        waiting.numbers.insert(id.to_owned(), number);
        waiting.requests.insert(number, Kept { since: now, id: id.to_owned(), request });
        format!("{}-{number}", self.instance)
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

    /// Removes and returns the requests that are over although nothing was told of them: those that have waited for
    /// [`REPORT_WAIT`]; those that have waited for [`ENGINE_WAIT`] and whose engine has had no request since that moment;
    /// and the oldest of those that an engine has not had for [`SURPLUS_WAIT`].
    pub fn expire(&self, now: Instant, engine: impl Fn(&T, Instant) -> Engine<K>) -> Vec<T> {
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
                let believed = by_engine.entry(key).or_insert(Believed { n_requests, waiting: Vec::new() });
                believed.waiting.push((*kept, *number));
            }
        }
        waiting.surpluses.retain(|key, _| by_engine.contains_key(key));
        for (key, Believed { n_requests, waiting: mut requests }) in by_engine {
            requests.sort_unstable();
            let surplus = n_requests.map_or(0, |n_requests| requests.len().saturating_sub(n_requests));
            let n_over = waiting.n_over(key, surplus, now);
            due.extend(requests.into_iter().take(n_over).map(|(_, number)| number));
        }
        due.into_iter().filter_map(|number| waiting.remove(number)).collect()
    }
}

impl<T, K: Eq + Hash> Waiting<T, K> {
    fn remove(&mut self, number: u64) -> Option<T> {
        let Kept { since: _, id, request } = self.requests.remove(&number)?;
        // Clients may send one id twice.
        if self.numbers.get(&id) == Some(&number) {
            self.numbers.remove(&id);
        }
        Some(request)
    }

    /// The number of requests that are over, if the engine `key` has `surplus` fewer than the picker waits for.
    fn n_over(&mut self, key: K, surplus: usize, now: Instant) -> usize {
        if surplus == 0 {
            self.surpluses.remove(&key);
            return 0;
        }
        let lasting = self.surpluses.entry(key).or_insert(Surplus { since: now, n_requests: surplus });
        lasting.n_requests = lasting.n_requests.min(surplus);
        if now.saturating_duration_since(lasting.since) < SURPLUS_WAIT {
            return 0;
        }
        std::mem::replace(lasting, Surplus { since: now, n_requests: usize::MAX }).n_requests
    }
}
