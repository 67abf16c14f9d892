//! The identity of an endpoint in the index: a small slot number that is reused, and the generation that owns it.

/// One endpoint: `slot` is a dense small number, reused after a removal; `generation` tells the slot's owners apart.
///
/// A later owner of a slot must have a larger generation: entries of earlier ones are dropped when it first appears, and
/// insertions that arrive late for an earlier one are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId {
    slot: u32,
    generation: u32,
}

impl EndpointId {
    #[inline]
    #[must_use]
    pub const fn new(slot: u32, generation: u32) -> Self {
        Self { slot, generation }
    }

    #[inline]
    #[must_use]
    pub const fn slot(self) -> u32 {
        self.slot
    }

    #[inline]
    #[must_use]
    pub const fn generation(self) -> u32 {
        self.generation
    }
}
