//! Slots, and the endpoint that owns each at a time.

use std::collections::HashMap;
use std::net::SocketAddr;

use inference_api::object::ObjectKey;

use crate::snapshot::{KvAddresses, Slot};

/// An endpoint is the same as before while none of these changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Identity {
    pub(crate) key: ObjectKey,
    pub(crate) address: SocketAddr,
    pub(crate) kv: KvAddresses,
}

/// Hands out the lowest free slot, and counts the owners that each slot has had.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    owned: HashMap<Identity, Slot>,
    /// Generation that the next owner gets, by slot index.
    next_generations: Vec<u32>,
    /// Free slot indices in descending order, so that `pop` takes the lowest.
    free: Vec<u32>,
}

impl Slots {
    /// The slot of `identity`; hands one out if it has none.
    pub(crate) fn acquire(&mut self, identity: &Identity) -> Slot {
        if let Some(slot) = self.owned.get(identity) {
            return *slot;
        }
        let idx = self.free.pop().unwrap_or_else(|| {
            self.next_generations.push(0);
            u32::try_from(self.next_generations.len() - 1).expect("fewer than 2^32 endpoints")
        });
        let next_generation = &mut self.next_generations[idx as usize];
        let slot = Slot { idx, generation: *next_generation };
        *next_generation = next_generation.wrapping_add(1);
        self.owned.insert(identity.clone(), slot);
        slot
    }

    /// Frees the slots of all identities for which `lives` returns false.
    pub(crate) fn retain(&mut self, lives: impl Fn(&Identity) -> bool) {
        let free = &mut self.free;
        self.owned.retain(|identity, slot| {
            let keep = lives(identity);
            if !keep {
                free.push(slot.idx);
            }
            keep
        });
        free.sort_unstable_by(|a, b| b.cmp(a));
    }
}
