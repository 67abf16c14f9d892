//! Requests whose response goes past the picker, from the pick until the proxy reports the response.
//!
//! A report may be late, missing or doubled, or be about another process's request. It knows no streams, and the time is
//! an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Longest wait for the report to begin. The proxy begins it when it sends the request on, a millisecond after the pick;
/// without it the request counts as over, and the engine's own counts show its work.
pub const REPORT_WAIT: Duration = Duration::from_secs(10);
/// Time after which the engine's counts are believed: if it has no request, a request without a report is over. Engines
/// do not count a request before they have its token ids.
pub const ENGINE_WAIT: Duration = Duration::from_secs(2);

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
    /// The requests by number, each since its pick.
    requests: HashMap<u64, (Instant, T)>,
}

impl<T> Observed<T> {
    /// Creates the requests of the process that is called `instance`.
    #[must_use]
    pub fn new(instance: String) -> Self {
        let waiting = Waiting { n_begun: 0, requests: HashMap::new() };
        Self { instance, waiting: Mutex::new(waiting) }
    }

    /// Keeps `request` until it is claimed. Returns its ticket.
    pub fn keep(&self, request: T, now: Instant) -> String {
        let mut waiting = self.waiting.lock();
        waiting.n_begun += 1;
        let number = waiting.n_begun;
        waiting.requests.insert(number, (now, request));
        format!("{}-{number}", self.instance)
    }

    /// Hands the request out to the first report with its ticket.
    pub fn claim(&self, ticket: &str) -> Option<T> {
        let (instance, number) = ticket.rsplit_once('-')?;
        let number = number.parse().ok()?;
        let claimed = (instance == self.instance).then(|| self.waiting.lock().requests.remove(&number));
        claimed.flatten().map(|(_, request)| request)
    }

    /// Removes and returns the requests that have waited for their report too long, and those that have waited for
    /// [`ENGINE_WAIT`] and of which `is_over` says that the engine has had no request since that moment.
    pub fn expire(&self, now: Instant, is_over: impl Fn(&T, Instant) -> bool) -> Vec<T> {
        let is_due = |kept: Instant, request: &T| {
            now.saturating_duration_since(kept) >= REPORT_WAIT || is_over(request, kept + ENGINE_WAIT)
        };
        let mut waiting = self.waiting.lock();
        let due = waiting.requests.extract_if(|_, (kept, request)| is_due(*kept, request));
        due.map(|(_, (_, request))| request).collect()
    }
}
