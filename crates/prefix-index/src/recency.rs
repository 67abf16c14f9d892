//! An endpoint's nodes in the order in which it used them: a map from nodes to a linked list, with the time of each
//! use.

use std::num::NonZeroU32;

use hashbrown::HashTable;

use crate::{node_id::NodeId, usage::Use};

/// Position in `entries`, plus one, so that an absent link takes no space.
type Link = Option<NonZeroU32>;

/// An endpoint's nodes, each at most once, from the coldest (used longest ago) to the hottest. Every operation is O(1).
#[derive(Debug, Default)]
pub(crate) struct Recency {
    positions: HashTable<NonZeroU32>,
    entries: Vec<Entry>,
    free: Vec<NonZeroU32>,
    coldest: Link,
    hottest: Link,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    node: NodeId,
    used: Use,
    colder: Link,
    hotter: Link,
}

impl Recency {
    pub(crate) fn contains(&self, node: NodeId) -> bool {
        self.find(node).is_some()
    }

    /// Time of the last use of `node`; `None` if it is not in the list.
    pub(crate) fn used(&self, node: NodeId) -> Option<Use> {
        self.find(node).map(|position| self.entry(position).used)
    }

    pub(crate) fn coldest(&self) -> Option<(NodeId, Use)> {
        self.coldest.map(|position| {
            let Entry { node, used, .. } = *self.entry(position);
            (node, used)
        })
    }

    /// Makes `node` the hottest; adds it if it is not in the list.
    pub(crate) fn touch(&mut self, node: NodeId, used: Use) {
        let position = match self.find(node) {
            Some(position) => {
                self.unlink(position);
                position
            }
            None => self.allocate(node, used),
        };
        let colder = self.hottest.replace(position);
        *self.entry_mut(position) = Entry { node, used, colder, hotter: None };
        match colder {
            Some(colder) => self.entry_mut(colder).hotter = Some(position),
            None => self.coldest = Some(position),
        }
    }

    /// Adds `node`, which must not be in the list, as the coldest.
    pub(crate) fn insert_coldest(&mut self, node: NodeId, used: Use) {
        debug_assert!(!self.contains(node), "a node has one place in the order of use");
        let position = self.allocate(node, used);
        let hotter = self.coldest.replace(position);
        *self.entry_mut(position) = Entry { node, used, colder: None, hotter };
        match hotter {
            Some(hotter) => self.entry_mut(hotter).colder = Some(position),
            None => self.hottest = Some(position),
        }
    }

    pub(crate) fn remove(&mut self, node: NodeId) {
        let Self { positions, entries, .. } = self;
        let entry =
            positions.find_entry(node.hash(), |position| entries[position.get() as usize - 1].node == node);
        if let Ok(entry) = entry {
            let (position, _) = entry.remove();
            self.unlink(position);
            self.free.push(position);
        }
    }

    fn find(&self, node: NodeId) -> Link {
        self.positions.find(node.hash(), |position| self.entry(*position).node == node).copied()
    }

    fn allocate(&mut self, node: NodeId, used: Use) -> NonZeroU32 {
        let entry = Entry { node, used, colder: None, hotter: None };
        let position = match self.free.pop() {
            Some(position) => {
                *self.entry_mut(position) = entry;
                position
            }
            None => {
                self.entries.push(entry);
                let position = u32::try_from(self.entries.len()).expect("nodes are numbered by u32");
                NonZeroU32::new(position).expect("an entry was just added")
            }
        };
        let Self { positions, entries, .. } = self;
        positions.insert_unique(node.hash(), position, |position| {
            entries[position.get() as usize - 1].node.hash()
        });
        position
    }

    fn unlink(&mut self, position: NonZeroU32) {
        let Entry { colder, hotter, .. } = *self.entry(position);
        match colder {
            Some(colder) => self.entry_mut(colder).hotter = hotter,
            None => self.coldest = hotter,
        }
        match hotter {
            Some(hotter) => self.entry_mut(hotter).colder = colder,
            None => self.hottest = colder,
        }
    }

    fn entry(&self, position: NonZeroU32) -> &Entry {
        &self.entries[position.get() as usize - 1]
    }

    fn entry_mut(&mut self, position: NonZeroU32) -> &mut Entry {
        &mut self.entries[position.get() as usize - 1]
    }
}
