//! The answer to a lookup, in memory that is reused for the next one.

use crate::{endpoint::EndpointId, schedule::bytes_in_blocks};

/// The part of a chain that each endpoint holds, contiguously from the start. Endpoints that hold nothing are left out.
///
/// Keep one and pass it to every lookup: it allocates only while the number of endpoints grows.
#[derive(Clone, Debug, Default)]
pub struct Matches {
    /// Position in `found` plus one, by slot; 0 if the slot's endpoint is not in there.
    positions: Vec<u32>,
    /// Endpoints with the number of their blocks, at least one. Each endpoint occurs once, in no particular order.
    found: Vec<(EndpointId, u32)>,
}

impl Matches {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Matched bytes of `endpoint`: the end of the last block that it holds, 0 if it holds none.
    #[inline]
    #[must_use]
    pub fn bytes(&self, endpoint: EndpointId) -> u64 {
        match self.positions.get(endpoint.slot() as usize) {
            None | Some(0) => 0,
            Some(&position) => match self.found[position as usize - 1] {
                (found, n_blocks) if found == endpoint => bytes_in_blocks(n_blocks),
                _ => 0,
            },
        }
    }

    /// Every endpoint that holds at least one block, with its matched bytes, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (EndpointId, u64)> + '_ {
        self.found.iter().map(|&(endpoint, n_blocks)| (endpoint, bytes_in_blocks(n_blocks)))
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Forgets the last answer and makes room for slots below `n_slots`.
    pub(crate) fn reset(&mut self, n_slots: usize) {
        for (endpoint, _) in self.found.drain(..) {
            self.positions[endpoint.slot() as usize] = 0;
        }
        if self.positions.len() < n_slots {
            self.positions.resize(n_slots, 0);
            self.found.reserve(n_slots);
        }
    }

    /// Adds an endpoint that has not been added yet.
    pub(crate) fn add(&mut self, endpoint: EndpointId, n_blocks: u32) {
        self.found.push((endpoint, n_blocks));
        let position = u32::try_from(self.found.len()).expect("slots are u32");
        debug_assert_eq!(self.positions[endpoint.slot() as usize], 0, "each endpoint is reported once");
        self.positions[endpoint.slot() as usize] = position;
    }
}
