//! Names of a tree's nodes.

/// Position of a node in the tree; positions are reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeId(pub(crate) u32);

// === impl NodeId ===

impl NodeId {
    /// Hash of the position. Positions are dense, so it is enough to spread them over the high bits, which the table
    /// reads first.
    pub(crate) fn hash(self) -> u64 {
        u64::from(self.0).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}
