//! The set of slots that hold a run of blocks: a few numbers inline, or a bitmap if there are many.

/// Slots kept inline. Most runs have one holder; four slots fit in the space of the bitmap's pointer and length.
const N_INLINE: usize = 4;

#[derive(Clone, Debug)]
pub(crate) enum Holders {
    /// The first `len` of `slots`, in no particular order.
    Few { len: u8, slots: [u32; N_INLINE] },
    /// Bit `slot % 64` of word `slot / 64`. Created for more than [`N_INLINE`] slots.
    Many(Box<[u64]>),
}

impl Holders {
    pub(crate) const fn none() -> Self {
        Self::Few { len: 0, slots: [0; N_INLINE] }
    }

    pub(crate) fn contains(&self, slot: u32) -> bool {
        match self {
            Self::Few { len, slots } => slots[..usize::from(*len)].contains(&slot),
            Self::Many(words) => words.get(word_of(slot)).is_some_and(|word| word & bit_of(slot) != 0),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Few { len, slots: _ } => *len == 0,
            Self::Many(words) => words.iter().all(|word| *word == 0),
        }
    }

    pub(crate) fn is_only(&self, slot: u32) -> bool {
        match self {
            Self::Few { len, slots } => *len == 1 && slots[0] == slot,
            Self::Many(_) => self.contains(slot) && self.iter().count() == 1,
        }
    }

    /// Adds `slot`; returns false if it was a member already.
    pub(crate) fn insert(&mut self, slot: u32) -> bool {
        if self.contains(slot) {
            return false;
        }
        match self {
            Self::Few { len, slots } if usize::from(*len) < N_INLINE => {
                slots[usize::from(*len)] = slot;
                *len += 1;
            }
            Self::Few { len: _, slots } => {
                let highest = slots.iter().copied().fold(slot, u32::max);
                let mut words = vec![0; word_of(highest) + 1].into_boxed_slice();
                for member in slots.iter().copied().chain([slot]) {
                    words[word_of(member)] |= bit_of(member);
                }
                *self = Self::Many(words);
            }
            Self::Many(words) => {
                if words.len() <= word_of(slot) {
                    let mut longer = std::mem::take(words).into_vec();
                    longer.resize(word_of(slot) + 1, 0);
                    *words = longer.into_boxed_slice();
                }
                words[word_of(slot)] |= bit_of(slot);
            }
        }
        true
    }

    /// Removes `slot`; returns false if it was not a member.
    pub(crate) fn remove(&mut self, slot: u32) -> bool {
        match self {
            Self::Few { len, slots } => {
                let used = &mut slots[..usize::from(*len)];
                let Some(position) = used.iter().position(|member| *member == slot) else { return false };
                used[position] = used[used.len() - 1];
                *len -= 1;
                true
            }
            Self::Many(words) => {
                let Some(word) = words.get_mut(word_of(slot)).filter(|word| **word & bit_of(slot) != 0)
                else {
                    return false;
                };
                *word &= !bit_of(slot);
                let len: u32 = words.iter().map(|word| word.count_ones()).sum();
                if len as usize <= N_INLINE / 2 {
                    let mut few = Self::none();
                    for member in self.iter() {
                        few.insert(member);
                    }
                    *self = few;
                }
                true
            }
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let (slots, words): (&[u32], &[u64]) = match self {
            Self::Few { len, slots } => (&slots[..usize::from(*len)], &[]),
            Self::Many(words) => (&[], words),
        };
        slots.iter().copied().chain(bits(words.iter().copied()))
    }

    /// Calls `visit` with each member that is not in `kept`.
    pub(crate) fn for_each_not_in(&self, kept: &Self, mut visit: impl FnMut(u32)) {
        match (self, kept) {
            (Self::Many(words), Self::Many(kept)) => {
                let kept = kept.iter().copied().chain(std::iter::repeat(0));
                bits(words.iter().zip(kept).map(|(word, kept)| word & !kept)).for_each(visit);
            }
            _ => self.iter().filter(|slot| !kept.contains(*slot)).for_each(&mut visit),
        }
    }
}

fn word_of(slot: u32) -> usize {
    slot as usize / 64
}

fn bit_of(slot: u32) -> u64 {
    1 << (slot % 64)
}

/// The numbers of the set bits, in ascending order.
fn bits(words: impl Iterator<Item = u64>) -> impl Iterator<Item = u32> {
    words.zip(0u32..).flat_map(|(word, idx)| {
        let mut rest = word;
        std::iter::from_fn(move || {
            let bit = (rest != 0).then(|| rest.trailing_zeros())?;
            rest &= rest - 1;
            Some(idx * 64 + bit)
        })
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::{any, proptest};

    use super::Holders;

    proptest! {
        #[test]
        fn behaves_as_a_set(steps in proptest::collection::vec((any::<bool>(), 0..200u32), 0..60), cut in 0..60usize) {
            let (mut holders, mut model) = (Holders::none(), BTreeSet::new());
            let mut earlier = (holders.clone(), model.clone());
            for (idx, (insert, slot)) in steps.into_iter().enumerate() {
                if idx == cut {
                    earlier = (holders.clone(), model.clone());
                }
                match insert {
                    true => assert_eq!(holders.insert(slot), model.insert(slot)),
                    false => assert_eq!(holders.remove(slot), model.remove(&slot)),
                }
                assert_eq!(holders.iter().collect::<BTreeSet<_>>(), model);
                assert_eq!(holders.iter().count(), model.len());
                assert_eq!(holders.is_empty(), model.is_empty());
                assert_eq!(holders.is_only(slot), model.len() == 1 && model.contains(&slot));
            }
            let mut lost = BTreeSet::new();
            earlier.0.for_each_not_in(&holders, |slot| assert!(lost.insert(slot)));
            assert_eq!(lost, earlier.1.difference(&model).copied().collect());
        }
    }
}
