//! The index that threads share: lookups side by side, one insertion at a time.

use std::num::NonZeroU32;

use crate::{chain::Chain, endpoint::EndpointId, matches::Matches};

/// Who holds which prefix, as far as past picks tell.
#[derive(Debug)]
pub struct PrefixIndex {
    capacity: NonZeroU32,
}

/// Sizes and counters, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Endpoints with at least one block.
    pub n_endpoints: u32,
    /// Distinct blocks in memory.
    pub n_blocks: u64,
    /// Blocks counted once for each endpoint that holds them.
    pub n_held_blocks: u64,
    /// Runs of blocks that share their holders; what the index pays for besides 8 bytes a block.
    pub n_nodes: u64,
    /// Blocks that endpoints lost to the bound, since the start.
    pub n_evicted_blocks: u64,
    /// Insertions for an endpoint that was already removed, since the start.
    pub n_stale_insertions: u64,
}

impl PrefixIndex {
    /// `capacity` bounds each endpoint, in blocks.
    #[must_use]
    pub fn new(capacity: NonZeroU32) -> Self {
        Self { capacity }
    }

    /// Writes to `matches` how much of `chain` each endpoint holds, contiguously from the start.
    pub fn longest_match(&self, chain: &Chain, matches: &mut Matches) {
        let _ = (chain, self.capacity);
        matches.reset(0);
    }

    /// Notes that `endpoint` holds `chain` from now on, as its most recently used one.
    pub fn insert(&self, chain: &Chain, endpoint: EndpointId) {
        let _ = (chain, endpoint);
    }

    /// Forgets `endpoint`; later insertions for it are ignored.
    pub fn remove_endpoint(&self, endpoint: EndpointId) {
        let _ = endpoint;
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// Blocks that `endpoint` holds, at most the capacity.
    #[must_use]
    pub fn held_blocks(&self, endpoint: EndpointId) -> u32 {
        let _ = endpoint;
        0
    }
}
