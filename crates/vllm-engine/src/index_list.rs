//! A doubly linked list over small indexes. It is kept beside the items that it orders, and every operation is O(1)
//! without an allocation.
//!
//! ```text
//! links[0] is both ends:  0 ⇄ first ⇄ … ⇄ last ⇄ 0
//! ```

/// Index of the list itself, which is never a member.
const ENDS: u32 = 0;

#[derive(Clone, Copy, Debug, Default)]
struct Link {
    prev: u32,
    next: u32,
}

/// List of indexes from 1 on, each at most once.
#[derive(Clone, Debug)]
pub struct IndexList {
    links: Vec<Link>,
    len: usize,
}

// === impl IndexList ===

impl IndexList {
    /// Makes an empty list with memory for the indexes below `n_indexes`, which [`Self::grow`] makes usable.
    pub fn with_capacity(n_indexes: usize) -> Self {
        let mut links = Vec::with_capacity(n_indexes.max(1));
        links.push(Link::default());
        Self { links, len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes room for the indexes below `n_indexes`.
    pub fn grow(&mut self, n_indexes: usize) {
        if n_indexes > self.links.len() {
            self.links.resize(n_indexes, Link::default());
        }
    }

    pub fn first(&self) -> Option<u32> {
        let first = self.links[ENDS as usize].next;
        (first != ENDS).then_some(first)
    }

    pub fn push_front(&mut self, idx: u32) {
        self.insert_after(ENDS, idx);
    }

    pub fn push_back(&mut self, idx: u32) {
        self.insert_after(self.links[ENDS as usize].prev, idx);
    }

    /// Puts `idx` behind the member `prev`, or at the front if `prev` is 0.
    pub fn insert_after(&mut self, prev: u32, idx: u32) {
        debug_assert_ne!(idx, ENDS, "index 0 marks the ends");
        let next = self.links[prev as usize].next;
        self.links[idx as usize] = Link { prev, next };
        self.links[prev as usize].next = idx;
        self.links[next as usize].prev = idx;
        self.len += 1;
    }

    pub fn pop_front(&mut self) -> Option<u32> {
        let first = self.first()?;
        self.remove(first);
        Some(first)
    }

    /// Removes `idx`, which must be a member.
    pub fn remove(&mut self, idx: u32) {
        debug_assert!(idx != ENDS && self.len > 0, "only a member can be removed");
        let Link { prev, next } = self.links[idx as usize];
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
        self.len -= 1;
    }

    /// Iterates from front to back.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(self.first(), |idx| {
            let next = self.links[*idx as usize].next;
            (next != ENDS).then_some(next)
        })
    }
}
