//! The engine's side of KV events: numbers the batches and hands them over without waiting.

use super::stats::{Counters, KvEventStats};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use vllm_engine::event::KvEvent;

/// Publisher, owned by the thread that steps the engine. Dropping it ends the service once everything is sent.
#[derive(Debug)]
pub struct KvEventPublisher {
    batches: mpsc::Sender<Batch>,
    next_seq: u64,
    counters: Arc<Counters>,
}

/// Reads the counters of a publisher and its service.
#[derive(Clone, Debug)]
pub struct KvEventMonitor {
    pub(super) counters: Arc<Counters>,
}

/// The events of one engine step.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) seq: u64,
    /// Time since the Unix epoch.
    pub(super) at: Duration,
    /// Events, at least one.
    pub(super) events: Vec<KvEvent>,
}

// === impl KvEventPublisher ===

impl KvEventPublisher {
    pub(super) fn new(batches: mpsc::Sender<Batch>, counters: Arc<Counters>) -> Self {
        Self { batches, next_seq: 0, counters }
    }

    /// Sends the events that `Engine::take_events` returned at the end of a step as one message, or nothing if there
    /// are none. `at` is the time since the Unix epoch.
    ///
    /// It never waits, although vLLM waits for room in the queue. A batch that finds the queue full is dropped and
    /// counted, and its sequence number is not used again, so that every subscriber sees the gap.
    pub fn publish(&mut self, at: Duration, events: Vec<KvEvent>) {
        if events.is_empty() {
            return;
        }
        let seq = self.next_seq;
        self.next_seq += 1;
        self.counters.published.fetch_add(1, Ordering::Relaxed);
        match self.batches.try_send(Batch { seq, at, events }) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                let n_dropped = self.counters.dropped_batches.fetch_add(1, Ordering::Relaxed) + 1;
                if n_dropped.is_power_of_two() {
                    tracing::warn!(seq, n_dropped, "Dropped a batch of KV events: the queue is full");
                }
            }
            // The service ends before the engine when the process stops.
            Err(TrySendError::Closed(_)) => {}
        }
    }

    pub fn monitor(&self) -> KvEventMonitor {
        KvEventMonitor { counters: self.counters.clone() }
    }
}

// === impl KvEventMonitor ===

impl KvEventMonitor {
    pub fn stats(&self) -> KvEventStats {
        self.counters.snapshot()
    }
}
