//! What a file says, and what it said a moment ago.
//!
//! A file that is rewritten in place is empty between its truncation and its text, and after that it may hold half of it.
//! So a new value counts at once, and absence counts when it stays so.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long something must be absent before it counts as removed: editors, shells and scripts that write a file line by
/// line are done by then, and a person who removes a pool waits no longer than for a pod to end.
pub const SETTLE: Duration = Duration::from_secs(2);

/// Values by key, each with whether the file still has it.
#[derive(Clone, Debug)]
pub struct Kept<K, V>(BTreeMap<K, Entry<V>>);

#[derive(Clone, Debug)]
struct Entry<V> {
    value: V,
    absent_since: Option<Instant>,
}

impl<K: Ord, V> From<BTreeMap<K, V>> for Kept<K, V> {
    fn from(present: BTreeMap<K, V>) -> Self {
        let entry = |(key, value)| (key, Entry { value, absent_since: None });
        Self(present.into_iter().map(entry).collect())
    }
}

impl<K: Ord, V> Kept<K, V> {
    /// Notes that the file has `present` and nothing else. Returns how many it has no longer, and had until now.
    pub fn update(&mut self, mut present: BTreeMap<K, V>, now: Instant) -> usize {
        let mut n_absent = 0;
        for (key, entry) in &mut self.0 {
            match present.remove(key) {
                Some(value) => *entry = Entry { value, absent_since: None },
                None if entry.absent_since.is_none() => {
                    entry.absent_since = Some(now);
                    n_absent += 1;
                }
                None => {}
            }
        }
        self.0.extend(Self::from(present).0);
        n_absent
    }

    /// Notes that the file still says the same at `now`. Returns whether something was absent for long enough to be removed.
    pub fn settle(&mut self, now: Instant) -> bool {
        let n_before = self.0.len();
        let is_gone = |since: Instant| now.saturating_duration_since(since) >= SETTLE;
        self.0.retain(|_, entry| !entry.absent_since.is_some_and(is_gone));
        self.0.len() < n_before
    }

    /// What the file has.
    pub fn present(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries(true)
    }

    /// What it does not have any more, and which is not removed yet.
    pub fn absent(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries(false)
    }

    fn entries(&self, present: bool) -> impl Iterator<Item = (&K, &V)> {
        let entries = self.0.iter().filter(move |(_, entry)| entry.absent_since.is_none() == present);
        entries.map(|(key, entry)| (key, &entry.value))
    }
}
