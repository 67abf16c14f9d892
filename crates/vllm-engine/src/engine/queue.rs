//! Queue of waiting requests, in the order in which they are admitted.

use super::slots::{LiveRequest, SlotIdx};
use crate::config::SchedulingPolicy;
use crate::index_list::IndexList;
use std::collections::BTreeSet;

#[derive(Clone, Debug)]
pub(super) enum WaitingQueue {
    Fcfs(IndexList),
    /// Requests ordered by priority and arrival.
    Priority(BTreeSet<(i32, u64, SlotIdx)>),
}

// === impl WaitingQueue ===

impl WaitingQueue {
    pub(super) fn new(policy: SchedulingPolicy) -> Self {
        match policy {
            SchedulingPolicy::Fcfs => Self::Fcfs(IndexList::with_capacity(1)),
            SchedulingPolicy::Priority => Self::Priority(BTreeSet::new()),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Fcfs(list) => list.len(),
            Self::Priority(set) => set.len(),
        }
    }

    /// Adds a request that has just arrived.
    pub(super) fn push(&mut self, slot: SlotIdx, live: &LiveRequest) {
        match self {
            Self::Fcfs(list) => {
                list.grow(slot as usize + 1);
                list.push_back(slot);
            }
            Self::Priority(set) => {
                set.insert(priority_key(slot, live));
            }
        }
    }

    /// Adds a request that waited before: it becomes the first, or goes to its priority's place.
    pub(super) fn requeue(&mut self, slot: SlotIdx, live: &LiveRequest) {
        match self {
            Self::Fcfs(list) => {
                list.grow(slot as usize + 1);
                list.push_front(slot);
            }
            Self::Priority(set) => {
                set.insert(priority_key(slot, live));
            }
        }
    }

    pub(super) fn first(&self) -> Option<SlotIdx> {
        match self {
            Self::Fcfs(list) => list.first(),
            Self::Priority(set) => set.first().map(|(_, _, slot)| *slot),
        }
    }

    pub(super) fn remove(&mut self, slot: SlotIdx, live: &LiveRequest) {
        match self {
            Self::Fcfs(list) => list.remove(slot),
            Self::Priority(set) => {
                set.remove(&priority_key(slot, live));
            }
        }
    }
}

fn priority_key(slot: SlotIdx, live: &LiveRequest) -> (i32, u64, SlotIdx) {
    (live.request.priority, live.arrival_seq, slot)
}
