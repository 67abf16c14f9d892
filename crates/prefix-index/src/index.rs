//! The index that threads share: lookups run in parallel, insertions one at a time.

use std::num::NonZeroU32;

use crossbeam_utils::sync::{ShardedLock, ShardedLockReadGuard, ShardedLockWriteGuard};

use crate::{
    chain::Chain,
    endpoint::EndpointId,
    matches::Matches,
    stats::Stats,
    tree::Tree,
    usage::{Insertion, Use},
};

/// Nodes that a removal forgets before it releases the lock: about 0.1 ms at 100 ns a node.
const REMOVAL_BATCH: usize = 1024;

/// The prefixes that each endpoint holds, estimated from past picks.
///
/// Readers take one shard of the lock, so they do not slow each other down; a writer takes all shards, for the few
/// microseconds of an insertion.
#[derive(Debug)]
pub struct PrefixIndex {
    tree: ShardedLock<Tree>,
}

impl PrefixIndex {
    /// `capacity` is the most blocks that each endpoint may hold. A block takes 8 bytes and its share of a node:
    /// measured, 8.3 bytes if prompts of 128 KiB share nothing, and in the worst case, if each text adds a single block
    /// to a shared start, 110.
    #[must_use]
    pub fn new(capacity: NonZeroU32) -> Self {
        Self { tree: ShardedLock::new(Tree::new(u64::from(capacity.get()))) }
    }

    /// Writes to `matches` how much of `chain` each endpoint holds, contiguously from the start. A lookup does not
    /// count as use.
    pub fn longest_match(&self, chain: &Chain, matches: &mut Matches) {
        self.read().longest_match(chain, matches);
    }

    /// Notes that `endpoint` now holds `chain`, as its most recently used one. Above its capacity the endpoint forgets
    /// what it used longest ago, the end of a text before its start. Ignored, with `None`, if `endpoint` was removed.
    pub fn insert(&self, chain: &Chain, endpoint: EndpointId) -> Option<Insertion> {
        self.write().insert(chain, endpoint)
    }

    /// Forgets the blocks that `endpoint` used at `last` or before and not since: if it has lost one text, it has lost
    /// those that it used longer ago. Returns the number of these blocks.
    pub fn forget_until(&self, endpoint: EndpointId, last: Use) -> u64 {
        let mut n_forgotten = 0;
        loop {
            let (n_blocks, is_done) = self.write().forget_until(endpoint, last, REMOVAL_BATCH);
            n_forgotten += n_blocks;
            if is_done {
                return n_forgotten;
            }
        }
    }

    /// Forgets `endpoint` and the earlier owners of its slot; later insertions for them are ignored.
    pub fn remove_endpoint(&self, endpoint: EndpointId) {
        while !self.write().remove_endpoint(endpoint, REMOVAL_BATCH) {}
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        self.read().stats()
    }

    /// Bounds the text, in bytes, that `endpoint` is assumed to hold, by what its cache has room for. Above it the
    /// endpoint forgets what it used longest ago, at once and after each insertion. Ignored if `endpoint` was removed;
    /// a later owner of the slot starts without such a bound.
    pub fn limit_bytes(&self, endpoint: EndpointId, max_bytes: u64) {
        self.write().limit_bytes(endpoint, max_bytes);
    }

    /// Blocks that `endpoint` holds, at most the capacity.
    #[must_use]
    pub fn held_blocks(&self, endpoint: EndpointId) -> u64 {
        let (n_blocks, _) = self.read().held(endpoint);
        n_blocks
    }

    /// Bytes of text that `endpoint` holds; a start that texts share counts once.
    #[must_use]
    pub fn held_bytes(&self, endpoint: EndpointId) -> u64 {
        let (_, n_bytes) = self.read().held(endpoint);
        n_bytes
    }

    fn read(&self) -> ShardedLockReadGuard<'_, Tree> {
        self.tree.read().expect("no thread panics while it changes the index")
    }

    fn write(&self) -> ShardedLockWriteGuard<'_, Tree> {
        self.tree.write().expect("no thread panics while it changes the index")
    }
}
