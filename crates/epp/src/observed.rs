//! Requests whose response goes past the picker, from the pick until the proxy reports the response.
//!
//! A report may be late, missing or doubled, or be about another process's request. It knows no streams, and the time is
//! an argument.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Longest wait for the report to begin. The proxy begins it when it sends the request on, a millisecond after the pick;
/// without it the request counts as over, and the engine's own counts show its work.
pub const REPORT_WAIT: Duration = Duration::from_secs(10);

/// The requests that no report has claimed. `T` is what ends a request.
#[derive(Debug)]
pub struct Observed<T> {
    /// Different in each process, so that a report for a process that is gone claims nothing.
    instance: String,
    waiting: Mutex<Waiting<T>>,
}

#[derive(Debug)]
struct Waiting<T> {
    n_begun: u64,
    requests: HashMap<u64, T>,
    /// Numbers of all requests of the last [`REPORT_WAIT`], the oldest first.
    ages: VecDeque<(Instant, u64)>,
}

impl<T> Observed<T> {
    /// Creates the requests of the process that is called `instance`.
    #[must_use]
    pub fn new(instance: String) -> Self {
        let waiting = Waiting { n_begun: 0, requests: HashMap::new(), ages: VecDeque::new() };
        Self { instance, waiting: Mutex::new(waiting) }
    }

    /// Keeps `request` until it is claimed. Returns its ticket.
    pub fn keep(&self, request: T, now: Instant) -> String {
        let mut waiting = self.waiting.lock();
        waiting.n_begun += 1;
        let number = waiting.n_begun;
        waiting.requests.insert(number, request);
        waiting.ages.push_back((now, number));
        format!("{}-{number}", self.instance)
    }

    /// Hands the request out to the first report with its ticket.
    pub fn claim(&self, ticket: &str) -> Option<T> {
        let (instance, number) = ticket.rsplit_once('-')?;
        let number = number.parse().ok()?;
        (instance == self.instance).then(|| self.waiting.lock().requests.remove(&number)).flatten()
    }

    /// Removes and returns the requests that have waited for their report too long.
    pub fn expire(&self, now: Instant) -> Vec<T> {
        let mut waiting = self.waiting.lock();
        let Waiting { n_begun: _, requests, ages } = &mut *waiting;
        let is_late = |(kept, _): &(Instant, u64)| now.saturating_duration_since(*kept) >= REPORT_WAIT;
        let n_late = ages.partition_point(is_late);
        ages.drain(..n_late).filter_map(|(_, number)| requests.remove(&number)).collect()
    }
}
