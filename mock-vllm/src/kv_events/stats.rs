//! Counters of sent and lost messages. The publisher, the service and its peers count; any thread reads.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KvEventStats {
    /// Batches that got a sequence number.
    pub published: u64,
    /// Batches that found the queue to the service full (`max_queue_size`): neither subscribers nor replay have them.
    pub dropped_batches: u64,
    /// Messages that found the queue of one subscriber full (`hwm`), summed over subscribers; replay has them.
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
