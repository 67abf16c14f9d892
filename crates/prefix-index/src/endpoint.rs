//! The identity of an endpoint in the index: a small slot number that is reused, and the generation that owns it.

/// An endpoint: `slot` is a small dense number, reused after a removal; `generation` distinguishes the slot's owners.
///
/// A later owner of a slot must have a larger generation. When it first appears, the entries of earlier owners are
/// dropped; insertions that arrive late for an earlier owner are ignored.
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
