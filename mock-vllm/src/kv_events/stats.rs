//! Counters of what was sent and what was lost; the publisher, the service and its peers add, anyone reads.

use std::sync::atomic::{AtomicU64, Ordering};

/// As of now, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvEventStats {
    /// Batches that were given a sequence number.
    pub published: u64,
    /// Batches that found the queue to the service full (`max_queue_size`): no subscriber and no replay has them.
    pub dropped_batches: u64,
    /// Messages that found the queue of one subscriber full (`hwm`), added up over subscribers; replay has them.
    pub dropped_messages: u64,
    /// Peers that are subscribed to the topic now.
    pub subscribers: u64,
    /// Replay requests that were answered.
    pub replays: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) published: AtomicU64,
    pub(super) dropped_batches: AtomicU64,
    pub(super) dropped_messages: AtomicU64,
    pub(super) subscribers: AtomicU64,
    pub(super) replays: AtomicU64,
}

// === impl Counters ===

impl Counters {
    pub(super) fn snapshot(&self) -> KvEventStats {
        let Self { published, dropped_batches, dropped_messages, subscribers, replays } = self;
        let [published, dropped_batches, dropped_messages, subscribers, replays] =
            [published, dropped_batches, dropped_messages, subscribers, replays]
                .map(|counter| counter.load(Ordering::Relaxed));
        KvEventStats { published, dropped_batches, dropped_messages, subscribers, replays }
    }
}
