//! Sizes and counters of an index.

/// Sizes and counters, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Endpoints that hold at least one block.
    pub n_endpoints: u64,
    /// Distinct blocks in memory.
    pub n_blocks: u64,
    /// Sum over all endpoints of the blocks that each holds.
    pub n_held_blocks: u64,
    /// Runs of blocks with the same holders: the memory of the index, besides 8 bytes a block.
    pub n_nodes: u64,
    /// Blocks that endpoints lost because of their bounds, since the start.
    pub n_evicted_blocks: u64,
    /// Insertions for endpoints that were already removed, since the start.
    pub n_stale_insertions: u64,
}
