//! The requests of an endpoint whose first token has not come, in the order in which they were sent.
//!
//! Engines compute prompts in that order and count first tokens, so each scrape tells which prompts are computed. That
//! needs nothing of the responses, which may go past the picker.

use std::collections::VecDeque;

/// A request's place in the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct QueuePlace(u64);

/// The order. Requests of other senders are in it only as far as the engine reports them as waiting.
#[derive(Debug, Default)]
pub(crate) struct Awaited {
    n_places: u64,
    sent: VecDeque<AwaitedRequest>,
    /// First tokens that the engine has counted; `None` if it does not tell.
    n_counted: Option<u64>,
    /// The count when all requests so far have their first tokens.
    due: u64,
    /// Requests that waited at the last scrape, and those that were sent since.
    n_ahead: u64,
    /// First tokens that were seen since the last scrape, and may not be in its count.
    n_seen: u64,
}

/// The prompts of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PromptWork {
    /// Each prompt has a first token.
    pub(crate) n_prompts: u64,
    /// Bytes that are still to be computed.
    pub(crate) uncached_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
struct AwaitedRequest {
    place: QueuePlace,
    work: PromptWork,
    /// The count when it has its first tokens.
    due: u64,
}

impl Awaited {
    /// Adds a request.
    pub(crate) fn push(&mut self, work: PromptWork) -> QueuePlace {
        let place = QueuePlace(self.n_places);
        self.n_places += 1;
        self.n_ahead += work.n_prompts;
        let after_others = self.n_counted.unwrap_or(0).saturating_add(self.n_ahead);
        self.due = after_others.max(self.due.saturating_add(work.n_prompts));
        self.sent.push_back(AwaitedRequest { place, work, due: self.due });
        place
    }

    /// Removes a request whose first token was seen, or whose response is over; `None` if its prompts were counted.
    pub(crate) fn remove(&mut self, place: QueuePlace) -> Option<PromptWork> {
        let idx = self.sent.binary_search_by_key(&place, |sent| sent.place).ok()?;
        let AwaitedRequest { work, .. } = self.sent.remove(idx)?;
        self.n_seen += work.n_prompts;
        Some(work)
    }

    /// Notes a scrape with the engine's count of first tokens, if it tells, and with `n_waiting` requests of all senders.
    /// Removes the requests that are computed, and returns the bytes that they still counted.
    pub(crate) fn count(&mut self, n_counted: Option<u64>, n_waiting: u64) -> u64 {
        self.n_ahead = n_waiting;
        let Some(n_counted) = n_counted else { return 0 };
        let is_first = self.n_counted.replace(n_counted).is_none_or(|before| n_counted < before);
        let n_seen = std::mem::take(&mut self.n_seen);
        // A request that ends without a first token is never counted, so the others are due earlier than was thought.
        let bounded = |due: u64, n_prompts: u64| {
            let latest = n_counted.saturating_add(n_seen + n_prompts.max(n_waiting));
            if is_first { latest } else { due.min(latest) }
        };
        let mut n_prompts = 0;
        for sent in &mut self.sent {
            n_prompts += sent.work.n_prompts;
            sent.due = bounded(sent.due, n_prompts);
        }
        self.due = bounded(self.due, n_prompts);
        let n_computed = self.sent.partition_point(|sent| sent.due <= n_counted);
        self.sent.drain(..n_computed).map(|sent| sent.work.uncached_bytes).sum()
    }

    /// Forgets all requests, because the process that had them has ended. Returns the bytes that they still counted.
    pub(crate) fn clear(&mut self) -> u64 {
        let Self { n_places, sent, .. } = std::mem::take(self);
        self.n_places = n_places;
        sent.iter().map(|sent| sent.work.uncached_bytes).sum()
    }
}
