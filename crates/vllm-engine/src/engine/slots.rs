//! Live requests by a small index, which is reused.

use super::kv_cache::{KnownTokens, RequestBlocks};
use crate::request::EngineRequest;
use std::ops::{Index, IndexMut};

/// Index from 1 on: 0 belongs to the lists that link slots.
pub(super) type SlotIdx = u32;

#[derive(Clone, Debug)]
pub(super) struct LiveRequest {
    pub(super) request: EngineRequest,
    /// Number in the order of arrival.
    pub(super) arrival_seq: u64,
    pub(super) place: Place,
    pub(super) n_outputs: u32,
    pub(super) held: RequestBlocks,
    /// Prefix hits at its first scheduling; `None` before that.
    pub(super) cached_tokens: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Waiting,
    /// Waiting, after it was passed over because of its adapter.
    Deferred,
    Running {
        /// Tokens whose KV is there, those of the current step included.
        n_computed: u32,
        /// Tokens of the current step; 0 if the request is not in it.
        n_in_step: u32,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Slots {
    slots: Vec<Option<LiveRequest>>,
    vacant: Vec<SlotIdx>,
}

// === impl LiveRequest ===

impl LiveRequest {
    pub(super) fn known_tokens(&self) -> KnownTokens<'_> {
        KnownTokens { request: &self.request, n_outputs: self.n_outputs as usize }
    }

    /// Returns the request's tokens, and its blocks to change.
    pub(super) fn parts(&mut self) -> (KnownTokens<'_>, &mut RequestBlocks) {
        (KnownTokens { request: &self.request, n_outputs: self.n_outputs as usize }, &mut self.held)
    }

    pub(super) fn n_known(&self) -> u32 {
        u32::try_from(self.known_tokens().len()).expect("a request is shorter than max_model_len")
    }
}

// === impl Slots ===

impl Slots {
    pub(super) fn new() -> Self {
        Self { slots: vec![None], vacant: Vec::new() }
    }

    pub(super) fn insert(&mut self, live: LiveRequest) -> SlotIdx {
        if let Some(slot) = self.vacant.pop() {
            self.slots[slot as usize] = Some(live);
            return slot;
        }
        self.slots.push(Some(live));
        u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 requests live")
    }

    pub(super) fn remove(&mut self, slot: SlotIdx) -> LiveRequest {
        self.vacant.push(slot);
        self.slots[slot as usize].take().expect("a slot in use")
    }

    pub(super) fn get_mut(&mut self, slot: SlotIdx) -> Option<&mut LiveRequest> {
        self.slots[slot as usize].as_mut()
    }

    pub(super) fn get(&self, slot: SlotIdx) -> Option<&LiveRequest> {
        self.slots[slot as usize].as_ref()
    }
}

impl Index<SlotIdx> for Slots {
    type Output = LiveRequest;

    fn index(&self, slot: SlotIdx) -> &LiveRequest {
        self.slots[slot as usize].as_ref().expect("a slot in use")
    }
}

impl IndexMut<SlotIdx> for Slots {
    fn index_mut(&mut self, slot: SlotIdx) -> &mut LiveRequest {
        self.slots[slot as usize].as_mut().expect("a slot in use")
    }
}
