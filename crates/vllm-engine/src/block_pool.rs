//! vLLM's `BlockPool`: which blocks are held, which hold a known prefix, and in which order free ones are reused. It
//! does not know requests or tokens.
//!
//! ```text
//! free queue:  front (reused next) … back;  a free block keeps its hash until it is reused
//! freed without a hash → front            freed with a hash → back, the tail of a chain before its head
//! before vLLM 0.33: all to the back
//! ```
//! Blocks that were never handed out stay together in the queue, in order of index, and only the first of them is
//! really in it, so that the memory of the others is not touched before they are used.

use crate::hash::BlockHash;
use crate::index_list::IndexList;
use crate::vllm_version::VllmVersion;
use hashbrown::HashTable;

/// Index of a block; 0 is the null block, which is never handed out.
pub type BlockIdx = u32;

/// Place in the free queue for blocks without a hash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FreeOrder {
    /// Puts them at the back with all others, as before vLLM 0.33.
    AsReleased,
    /// Puts them at the front, to be reused first.
    #[default]
    UnhashedFirst,
}

#[derive(Clone, Copy, Debug)]
struct Block {
    n_refs: u32,
    hash: Option<BlockHash>,
    /// Ring of the blocks with the same hash, in order of insertion; a block alone links to itself.
    twin_prev: BlockIdx,
    twin_next: BlockIdx,
}

/// Invariant: a block other than the null block is in the free queue exactly if no request holds it. Of the blocks that
/// were never handed out, only the first is in the queue.
#[derive(Clone, Debug)]
pub struct BlockPool {
    /// The null block, and the blocks that were handed out.
    blocks: Vec<Block>,
    n_blocks: u32,
    free: IndexList,
    /// First inserted block of those with each hash.
    cached: HashTable<BlockIdx>,
    /// Blocks that no request holds and that are not free either, as if other work had the memory.
    reserved: Vec<BlockIdx>,
    order: FreeOrder,
}

// === impl FreeOrder ===

impl FreeOrder {
    pub fn of(version: VllmVersion) -> Self {
        match version {
            VllmVersion::V0_8 | VllmVersion::V0_11 => Self::AsReleased,
            VllmVersion::V0_33 => Self::UnhashedFirst,
        }
    }
}

// === impl Block ===

impl Block {
    fn new(idx: BlockIdx) -> Self {
        Self { n_refs: 0, hash: None, twin_prev: idx, twin_next: idx }
    }
}

// === impl BlockPool ===

impl BlockPool {
    /// Makes a pool of `n_blocks`, the null block included, all free and in order of index.
    pub fn new(n_blocks: u32, order: FreeOrder) -> Self {
        let n_blocks = n_blocks.max(1);
        let n = n_blocks as usize;
        let mut pool = Self {
            blocks: Vec::with_capacity(n),
            n_blocks,
            free: IndexList::with_capacity(n),
            cached: HashTable::new(),
            reserved: Vec::new(),
            order,
        };
        pool.blocks.push(Block::new(0));
        pool.offer_unused();
        pool
    }

    /// Returns the number of blocks that can be handed out at all.
    pub fn n_usable(&self) -> u32 {
        self.n_blocks - 1
    }

    pub fn n_free(&self) -> u32 {
        let n_unused = self.n_blocks - self.first_unused();
        to_u32(self.free.len()) + n_unused.saturating_sub(1)
    }

    pub fn n_refs(&self, block: BlockIdx) -> u32 {
        self.blocks.get(block as usize).map_or(0, |block| block.n_refs)
    }

    pub fn hash(&self, block: BlockIdx) -> Option<BlockHash> {
        self.blocks.get(block as usize)?.hash
    }

    /// Returns the free blocks in the order in which they will be reused.
    pub fn free_order(&self) -> impl Iterator<Item = BlockIdx> + '_ {
        let first_unused = self.first_unused();
        self.free.iter().flat_map(move |block| {
            let end = if block == first_unused { self.n_blocks } else { block + 1 };
            block..end
        })
    }

    /// Returns the block that was given this hash first, of those that still have it.
    pub fn find(&self, hash: &BlockHash) -> Option<BlockIdx> {
        self.cached
            .find(table_key(hash), |idx| self.blocks[*idx as usize].hash.as_ref() == Some(hash))
            .copied()
    }

    /// Takes the block at the front of the free queue and holds it once; its content is evicted. Also returns its hash.
    pub fn allocate(&mut self) -> Option<(BlockIdx, Option<BlockHash>)> {
        let block = self.free.pop_front()?;
        if block == self.first_unused() {
            self.blocks.push(Block::new(block));
            self.offer_unused();
            self.make_room_in_table();
        }
        let evicted = self.evict(block);
        self.blocks[block as usize].n_refs = 1;
        Some((block, evicted))
    }

    /// Holds a block once more, and takes it out of the free queue if it is there.
    pub fn hold(&mut self, block: BlockIdx) {
        let n_refs = &mut self.blocks[block as usize].n_refs;
        *n_refs += 1;
        if *n_refs == 1 {
            self.free.remove(block);
        }
    }

    /// Gives a held block its hash.
    pub fn insert(&mut self, block: BlockIdx, hash: BlockHash) {
        debug_assert!(self.blocks[block as usize].hash.is_none(), "a block is cached once");
        debug_assert!(self.blocks[block as usize].n_refs > 0, "only a held block can be filled");
        self.blocks[block as usize].hash = Some(hash);
        match self.find(&hash) {
            Some(first) => self.link_twin(first, block),
            None => {
                let blocks = &self.blocks;
                self.cached.insert_unique(table_key(&hash), block, |idx| {
                    blocks[*idx as usize].hash.as_ref().map_or(0, table_key)
                });
            }
        }
    }

    /// Releases a request's blocks, which come tail first.
    pub fn release(&mut self, tail_first: impl Iterator<Item = BlockIdx>) {
        // Blocks without a hash keep their order at the front.
        let mut last_at_front = 0;
        for idx in tail_first {
            let block = &mut self.blocks[idx as usize];
            debug_assert!(block.n_refs > 0, "only a held block can be released");
            block.n_refs -= 1;
            match (block.n_refs, block.hash, self.order) {
                (0, Some(_), _) | (0, None, FreeOrder::AsReleased) => self.free.push_back(idx),
                (0, None, FreeOrder::UnhashedFirst) => {
                    self.free.insert_after(last_at_front, idx);
                    last_at_front = idx;
                }
                (1.., ..) => {}
            }
        }
    }

    /// Forgets every hash. Returns false, without a change, if a request holds a block.
    pub fn reset(&mut self) -> bool {
        if self.n_free() + self.n_reserved() != self.n_usable() {
            return false;
        }
        self.cached.clear();
        for (idx, block) in self.blocks.iter_mut().enumerate() {
            let idx = to_u32(idx);
            *block = Block { n_refs: block.n_refs, ..Block::new(idx) };
        }
        true
    }

    pub fn n_reserved(&self) -> u32 {
        to_u32(self.reserved.len())
    }

    /// Brings the reserve to `n_blocks`, as far as blocks are free: takes blocks from the front of the free queue, or
    /// releases some. Returns the hashes that are lost.
    pub fn reserve(&mut self, n_blocks: u32) -> Vec<BlockHash> {
        while self.n_reserved() > n_blocks
            && let Some(block) = self.reserved.pop()
        {
            self.release(std::iter::once(block));
        }
        let mut evicted = Vec::new();
        while self.n_reserved() < n_blocks
            && let Some((block, hash)) = self.allocate()
        {
            self.reserved.push(block);
            evicted.extend(hash);
        }
        evicted
    }

    /// Returns the first block that was never handed out, or the number of blocks if there is none.
    fn first_unused(&self) -> BlockIdx {
        to_u32(self.blocks.len())
    }

    /// Puts the first block that was never handed out at the front of the free queue.
    fn offer_unused(&mut self) {
        let block = self.first_unused();
        if block < self.n_blocks {
            self.free.grow(block as usize + 1);
            self.free.push_front(block);
        }
    }

    /// Reserves room for twice as many hashes as there can be: then hashbrown reclaims tombstones in place and never
    /// grows by itself.
    fn make_room_in_table(&mut self) {
        let n_used = self.blocks.len();
        if n_used.is_power_of_two() {
            let n_before_next = (2 * n_used).min(self.n_blocks as usize);
            let blocks = &self.blocks;
            self.cached.reserve(2 * n_before_next - self.cached.len(), |idx| {
                blocks[*idx as usize].hash.as_ref().map_or(0, table_key)
            });
        }
    }

    /// Evicts `block` from the prefix cache. Returns the hash that it loses, if it has one.
    fn evict(&mut self, block: BlockIdx) -> Option<BlockHash> {
        let hash = self.blocks[block as usize].hash?;
        let next = self.unlink_twin(block);
        // The table has this block, or an older twin of it, which stays there.
        if let Ok(mut first) = self.cached.find_entry(table_key(&hash), |idx| *idx == block) {
            match next {
                Some(next) => *first.get_mut() = next,
                None => {
                    first.remove();
                }
            }
        }
        self.blocks[block as usize].hash = None;
        Some(hash)
    }

    /// Puts `block` at the end of the ring that starts with `first`.
    fn link_twin(&mut self, first: BlockIdx, block: BlockIdx) {
        let last = self.blocks[first as usize].twin_prev;
        self.blocks[block as usize].twin_prev = last;
        self.blocks[block as usize].twin_next = first;
        self.blocks[last as usize].twin_next = block;
        self.blocks[first as usize].twin_prev = block;
    }

    /// Takes `block` out of its ring. Returns the block behind it, unless it was alone.
    fn unlink_twin(&mut self, block: BlockIdx) -> Option<BlockIdx> {
        let Block { twin_prev, twin_next, .. } = self.blocks[block as usize];
        self.blocks[twin_prev as usize].twin_next = twin_next;
        self.blocks[twin_next as usize].twin_prev = twin_prev;
        self.blocks[block as usize].twin_prev = block;
        self.blocks[block as usize].twin_next = block;
        (twin_next != block).then_some(twin_next)
    }
}

/// Returns the first bytes of the digest, which serve as the table's hash because a digest is uniform.
fn table_key(hash: &BlockHash) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = hash.0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

fn to_u32(n: usize) -> u32 {
    u32::try_from(n).expect("block counts come from a u32")
}
