//! The objects in a file, and those that were in it a moment ago.
//!
//! A file that is rewritten in place is first empty and then perhaps half written. So a new value counts at once, and
//! an absence only after it has lasted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Time for which something must be absent to count as removed. Editors, shells and scripts that write a file line by
/// line have finished by then, and a person who removes a pool waits no longer than for a pod to end.
pub const SETTLE: Duration = Duration::from_secs(2);

/// Values by key, each with the time since which the file does not contain it any more.
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
    /// Notes that the file now contains `present` and nothing else. Returns how many values have just disappeared from
    /// it.
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

    /// Notes that the file has not changed by `now`. Returns whether something has been absent long enough to be
    /// removed.
    pub fn settle(&mut self, now: Instant) -> bool {
        let n_before = self.0.len();
        let is_gone = |since: Instant| now.saturating_duration_since(since) >= SETTLE;
        self.0.retain(|_, entry| !entry.absent_since.is_some_and(is_gone));
        self.0.len() < n_before
    }

    /// Values that the file contains.
    pub fn present(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries(true)
    }

    /// Values that the file does not contain any more, but that are not removed yet.
    pub fn absent(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries(false)
    }

    fn entries(&self, present: bool) -> impl Iterator<Item = (&K, &V)> {
        let entries = self.0.iter().filter(move |(_, entry)| entry.absent_since.is_none() == present);
        entries.map(|(key, entry)| (key, &entry.value))
    }
}
