//! Index of the blocks that endpoints hold according to the KV events of their engines.
//!
//! Engines name a block by a hash of their own choice. Here the name of a block is a hash of the tokens up to its end
//! and of everything else that separates caches, computed from the token ids in the events. So it is the same for a
//! request, whatever hash the engine uses. Blocks that requests on their way will compute count as held while they are
//! expected.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Display;
use std::sync::Arc;

use crossbeam_utils::sync::{ShardedLock, ShardedLockReadGuard, ShardedLockWriteGuard};
use smallvec::SmallVec;
use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128};

use crate::endpoint::EndpointId;

/// Separates two parts of a block's name that have no fixed length.
const SEPARATOR: u8 = 0xff;

/// A block's name in its engine: an integer or bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EngineHash(u128);

/// A change of an engine's KV cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockEvent {
    Stored(Stored),
    Removed(Vec<EngineHash>),
    Cleared,
}

/// Blocks that follow each other in one text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    pub hashes: Vec<EngineHash>,
    /// The block before the first one; `None` at the start of a text.
    pub parent: Option<EngineHash>,
    /// Tokens of all blocks together.
    pub tokens: Vec<u32>,
    /// Number of tokens in a block.
    pub block_size: u32,
    /// Other properties of each block besides tokens (adapter, salt, images), for as many blocks as the event
    /// describes.
    pub extras: Vec<Vec<String>>,
    /// The LoRA adapter of all blocks.
    pub adapter: Option<String>,
}

/// A request's tokens, and what distinguishes its blocks besides them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenPrompt {
    pub tokens: Vec<u32>,
    pub adapter: Option<String>,
    /// vLLM's `cache_salt`: part of the first block's name, on which all later names depend.
    pub salt: Option<String>,
    /// Images, sounds and videos in the order of the prompt.
    pub media: Vec<Media>,
}

/// An image, sound or video in a prompt. Its placeholder tokens do not distinguish it from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Media {
    /// The engine's hash of its content.
    pub hash: String,
    /// Position of its first token.
    pub offset: u32,
    /// Number of its tokens.
    pub length: u32,
}

/// The blocks that each endpoint holds, in bounded memory.
///
/// A block without room is not held, and neither are those after it: predictions become too low, never too high.
#[derive(Debug, Default)]
pub struct BlockIndex {
    state: ShardedLock<State>,
}

/// Most blocks that an index holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Stored blocks of one endpoint.
    pub endpoint: usize,
    /// Stored blocks of all endpoints. Each endpoint gets at most an equal share, so that a few large caches do not
    /// displace the others.
    pub stored: usize,
    /// Blocks that requests on their way will compute, at all endpoints.
    pub expected: usize,
}

/// Sizes and counters, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockStats {
    /// Distinct blocks that at least one endpoint holds or is expected to hold.
    pub n_blocks: u64,
    /// Blocks that were stored after an unknown one, since the start.
    pub n_orphans: u64,
    /// Blocks for which there was no room, since the start.
    pub n_refused: u64,
}

/// Blocks that an endpoint is going to compute; they are expected until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct Expected {
    index: Arc<BlockIndex>,
    endpoint: EndpointId,
    names: Vec<u64>,
}

#[derive(Debug, Default)]
struct State {
    /// The endpoints that hold each block, with the number of copies.
    holders: HashMap<u64, SmallVec<[(EndpointId, u32); 2]>>,
    endpoints: HashMap<EndpointId, EndpointBlocks>,
    bounds: Bounds,
    /// Number of blocks in `endpoints`.
    n_stored: usize,
    /// Number of names in all [`Expected`] together.
    n_expected: usize,
    n_orphans: u64,
    n_refused: u64,
}

#[derive(Debug, Default)]
struct EndpointBlocks {
    /// Our name of each block that the engine named, and the number of copies.
    blocks: HashMap<EngineHash, (u64, u32)>,
    /// Number of tokens in a block, known after the first one was stored.
    block_size: Option<u32>,
    /// True if no event was missed, so that the blocks are reliable.
    is_live: bool,
}

// === impl Bounds ===

impl Default for Bounds {
    /// An engine has some 100,000 blocks on one GPU. An endpoint may have ten times as many, and the index the blocks
    /// of forty such engines. A stored block takes at most 160 bytes (measured), all of them 0.7 GB.
    fn default() -> Self {
        Self { endpoint: 1 << 20, stored: 1 << 22, expected: 1 << 22 }
    }
}

impl Bounds {
    /// Most stored blocks of an endpoint, among `n_endpoints`.
    fn share(self, n_endpoints: usize) -> usize {
        self.endpoint.min(self.stored / n_endpoints.max(1))
    }
}

// === impl EngineHash ===

impl EngineHash {
    #[must_use]
    pub fn of_integer(integer: u64) -> Self {
        Self(integer.into())
    }

    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(xxh3_128(bytes))
    }
}

// === impl TokenPrompt ===

impl TokenPrompt {
    /// Names of the prompt's full blocks, in order.
    #[must_use]
    pub fn names(&self, block_size: u32) -> Vec<u64> {
        let Self { tokens, adapter, salt, media } = self;
        let mut names = Vec::with_capacity(tokens.len() / block_size.max(1) as usize);
        let mut name = 0;
        for (tokens, start) in
            tokens.chunks_exact(block_size.max(1) as usize).zip((0..).step_by(block_size.max(1) as usize))
        {
            let salt = salt.as_deref().filter(|_| names.is_empty());
            let media: SmallVec<[String; 1]> =
                media.iter().filter_map(|media| media.key(start, u64::from(block_size))).collect();
            let others = media.iter().map(String::as_str).chain(salt);
            name = name_of(name, tokens, adapter.as_deref(), others);
            names.push(name);
        }
        names
    }

    /// Tokens that a request does not compute if `n_blocks` are cached: the last token is always computed again.
    fn saved(&self, n_blocks: usize, block_size: u32) -> u64 {
        let block_size = u64::from(block_size);
        let n_tokens = self.tokens.len() as u64;
        let most = n_tokens.saturating_sub(1) / block_size;
        (n_blocks as u64).min(most) * block_size
    }
}

// === impl Media ===

impl Media {
    /// A block's extra key, if the media item begins in it, ends in it or goes through it. `start` is the position of
    /// the block's first token.
    fn key(&self, start: u64, block_size: u64) -> Option<String> {
        let Self { hash, offset, length } = self;
        let offset = u64::from(*offset);
        let is_inside = offset < start + block_size && offset + u64::from(*length) > start;
        is_inside.then(|| media_key(hash, i128::from(offset) - i128::from(start)))
    }
}

/// The extra key of a block that contains tokens of an image, sound or video; `offset` is the item's start, counted
/// from the block's first token.
#[must_use]
pub fn media_key(hash: &str, offset: impl Display) -> String {
    format!("{hash} {offset}")
}

// === impl BlockIndex ===

impl BlockIndex {
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { state: ShardedLock::new(State { bounds, ..State::default() }) }
    }

    /// Empties the endpoint's cache. `is_live` says whether its events are reliable from now on.
    pub fn reset(&self, endpoint: EndpointId, is_live: bool) {
        let mut state = self.write();
        state.clear(endpoint);
        state.endpoints.entry(endpoint).or_default().is_live = is_live;
    }

    /// Sets whether the endpoint's blocks are known; while they are not, lookups skip the endpoint.
    pub fn set_live(&self, endpoint: EndpointId, is_live: bool) {
        if let Some(endpoint) = self.write().endpoints.get_mut(&endpoint) {
            endpoint.is_live = is_live;
        }
    }

    /// Applies the events of one message, in order. Ignored for an endpoint that was never reset. Returns the number of
    /// blocks for which there was no room.
    pub fn apply(&self, endpoint: EndpointId, events: Vec<BlockEvent>) -> u64 {
        let mut state = self.write();
        let n_refused = state.n_refused;
        for event in events {
            match event {
                BlockEvent::Stored(stored) => state.store(endpoint, stored),
                BlockEvent::Removed(hashes) => hashes.iter().for_each(|hash| state.remove(endpoint, *hash)),
                BlockEvent::Cleared => state.clear(endpoint),
            }
        }
        state.n_refused - n_refused
    }

    /// Forgets the endpoint. The blocks that it is expected to compute are forgotten when the requests end.
    pub fn remove_endpoint(&self, endpoint: EndpointId) {
        let mut state = self.write();
        state.clear(endpoint);
        state.endpoints.remove(&endpoint);
    }

    /// Tokens in a block of a pool's `endpoints`, according to the first that has stored one.
    #[must_use]
    pub fn block_size(&self, endpoints: impl IntoIterator<Item = EndpointId>) -> Option<u32> {
        let state = self.read();
        endpoints.into_iter().find_map(|endpoint| state.endpoints.get(&endpoint)?.block_size)
    }

    /// Tokens of the prompts that each endpoint need not compute, in the order of `endpoints`; `None` for endpoints
    /// whose blocks are unknown. The blocks of an endpoint that has stored nothing yet are assumed to have
    /// `pool_block_size` tokens.
    #[must_use]
    pub fn saved_tokens(
        &self,
        prompts: &[TokenPrompt],
        endpoints: &[EndpointId],
        pool_block_size: Option<u32>,
    ) -> Vec<Option<u64>> {
        let state = self.read();
        let block_sizes: Vec<Option<u32>> =
            endpoints.iter().map(|endpoint| state.block_size_of(*endpoint, pool_block_size)).collect();
        // If no block size is known, nothing was stored either.
        let is_live =
            |endpoint| state.endpoints.get(endpoint).is_some_and(|known: &EndpointBlocks| known.is_live);
        let mut saved: Vec<Option<u64>> =
            endpoints.iter().map(|endpoint| is_live(endpoint).then_some(0)).collect();
        let mut sizes: Vec<u32> = block_sizes.iter().copied().flatten().collect();
        sizes.sort_unstable();
        sizes.dedup();
        // Most pools have one block size.
        for block_size in sizes {
            let those = |idx: &usize| block_sizes[*idx] == Some(block_size);
            let alike: Vec<usize> = (0..endpoints.len()).filter(those).collect();
            for prompt in prompts {
                let names = prompt.names(block_size);
                for (idx, n_blocks) in state.held_from_the_start(&names, endpoints, alike.clone()) {
                    saved[idx] = saved[idx].map(|saved| saved + prompt.saved(n_blocks, block_size));
                }
            }
        }
        saved
    }

    /// Counts the blocks of `prompts`, which are on their way to `endpoint`, as held there until the result is dropped; if
    /// there is not room for all, the first ones. `None` if the endpoint's blocks are unknown. The blocks of an endpoint
    /// that has stored nothing yet are assumed to have `pool_block_size` tokens.
    #[must_use]
    pub fn expect(
        self: &Arc<Self>,
        prompts: &[TokenPrompt],
        endpoint: EndpointId,
        pool_block_size: Option<u32>,
    ) -> Option<Expected> {
        let block_size = self.read().block_size_of(endpoint, pool_block_size)?;
        // Hash before taking the lock: a long prompt takes a while.
        let mut names: Vec<u64> = prompts.iter().flat_map(|prompt| prompt.names(block_size)).collect();
        let mut state = self.write();
        let room = state.bounds.expected.saturating_sub(state.n_expected);
        state.n_refused += names.len().saturating_sub(room) as u64;
        names.truncate(room);
        state.n_expected += names.len();
        names.iter().for_each(|name| state.add(*name, endpoint));
        drop(state);
        Some(Expected { index: Arc::clone(self), endpoint, names })
    }

    /// Number of blocks that the endpoint has stored; `None` if it is unknown.
    #[must_use]
    pub fn held_blocks(&self, endpoint: EndpointId) -> Option<u64> {
        let state = self.read();
        state.endpoints.get(&endpoint).filter(|known| known.is_live).map(|known| known.blocks.len() as u64)
    }

    #[must_use]
    pub fn stats(&self) -> BlockStats {
        let state = self.read();
        let State { holders, n_orphans, n_refused, .. } = &*state;
        BlockStats { n_blocks: holders.len() as u64, n_orphans: *n_orphans, n_refused: *n_refused }
    }

    fn read(&self) -> ShardedLockReadGuard<'_, State> {
        self.state.read().expect("no thread panics while it changes the index")
    }

    fn write(&self) -> ShardedLockWriteGuard<'_, State> {
        self.state.write().expect("no thread panics while it changes the index")
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        let mut state = self.index.write();
        state.n_expected -= self.names.len();
        for name in self.names.drain(..) {
            state.subtract(name, self.endpoint, 1);
        }
    }
}

// === impl State ===

impl State {
    fn store(&mut self, endpoint: EndpointId, stored: Stored) {
        let Stored { hashes, parent, tokens, block_size, extras, adapter } = stored;
        let share = self.bounds.share(self.endpoints.len());
        let Some(known) = self.endpoints.get_mut(&endpoint) else { return };
        let mut name = match parent.map(|parent| known.blocks.get(&parent)) {
            None => 0,
            Some(Some((name, _))) => *name,
            // The names of these blocks depend on tokens before them, which are unknown.
            Some(None) => {
                self.n_orphans += hashes.len() as u64;
                return;
            }
        };
        known.block_size = Some(block_size.max(1));
        let mut room = share.saturating_sub(known.blocks.len()).min(self.bounds.stored - self.n_stored);
        let mut added = Vec::with_capacity(hashes.len().min(tokens.len()));
        let mut replaced = Vec::new();
        for (idx, (hash, tokens)) in
            hashes.iter().zip(tokens.chunks_exact(block_size.max(1) as usize)).enumerate()
        {
            let others = extras.get(idx).into_iter().flatten().map(String::as_str);
            let others = others.filter(|extra| Some(*extra) != adapter.as_deref());
            name = name_of(name, tokens, adapter.as_deref(), others);
            match known.blocks.entry(*hash) {
                Entry::Occupied(mut entry) if entry.get().0 == name => entry.get_mut().1 += 1,
                // The engine uses the hash for another block: the one that had it is gone.
                Entry::Occupied(mut entry) => replaced.push(entry.insert((name, 1))),
                Entry::Vacant(_) if room == 0 => {
                    self.n_refused += (hashes.len() - idx) as u64;
                    break;
                }
                Entry::Vacant(entry) => {
                    entry.insert((name, 1));
                    room -= 1;
                    self.n_stored += 1;
                }
            }
            added.push(name);
        }
        added.iter().for_each(|name| self.add(*name, endpoint));
        replaced.into_iter().for_each(|(name, n_copies)| self.subtract(name, endpoint, n_copies));
    }

    fn remove(&mut self, endpoint: EndpointId, hash: EngineHash) {
        let Some(known) = self.endpoints.get_mut(&endpoint) else { return };
        let Some((name, n_copies)) = known.blocks.get_mut(&hash) else { return };
        let name = *name;
        *n_copies -= 1;
        if *n_copies == 0 {
            known.blocks.remove(&hash);
            self.n_stored -= 1;
        }
        self.subtract(name, endpoint, 1);
    }

    fn clear(&mut self, endpoint: EndpointId) {
        let Some(known) = self.endpoints.get_mut(&endpoint) else { return };
        let blocks = std::mem::take(&mut known.blocks);
        self.n_stored -= blocks.len();
        for (name, n_copies) in blocks.into_values() {
            self.subtract(name, endpoint, n_copies);
        }
    }

    /// Tokens in a block of a reliable endpoint; `pool_block_size` if it has stored nothing yet.
    fn block_size_of(&self, endpoint: EndpointId, pool_block_size: Option<u32>) -> Option<u32> {
        let known = self.endpoints.get(&endpoint).filter(|known| known.is_live)?;
        known.block_size.or(pool_block_size)
    }

    /// Number of blocks, from the first on, that each of `alike` holds; `alike` are positions in `endpoints`.
    fn held_from_the_start(
        &self,
        names: &[u64],
        endpoints: &[EndpointId],
        mut alike: Vec<usize>,
    ) -> Vec<(usize, usize)> {
        let mut held = Vec::with_capacity(alike.len());
        let n_slots = alike.iter().map(|idx| endpoints[*idx].slot() as usize + 1).max().unwrap_or(0);
        // By slot: the generation that was last seen there, and at which block.
        let mut seen: Vec<(u32, usize)> = vec![(0, usize::MAX); n_slots];
        for (n_blocks, name) in names.iter().enumerate() {
            let holders = self.holders.get(name).map(SmallVec::as_slice).unwrap_or_default();
            for (holder, _) in holders {
                if let Some(seen) = seen.get_mut(holder.slot() as usize) {
                    *seen = (holder.generation(), n_blocks);
                }
            }
            alike.retain(|idx| {
                let endpoint = endpoints[*idx];
                let holds = seen[endpoint.slot() as usize] == (endpoint.generation(), n_blocks);
                if !holds {
                    held.push((*idx, n_blocks));
                }
                holds
            });
            if alike.is_empty() {
                return held;
            }
        }
        held.extend(alike.into_iter().map(|idx| (idx, names.len())));
        held
    }

    fn add(&mut self, name: u64, endpoint: EndpointId) {
        let holders = self.holders.entry(name).or_default();
        match holders.iter_mut().find(|(id, _)| *id == endpoint) {
            Some((_, n_copies)) => *n_copies += 1,
            None => holders.push((endpoint, 1)),
        }
    }

    fn subtract(&mut self, name: u64, endpoint: EndpointId, n: u32) {
        let Some(holders) = self.holders.get_mut(&name) else { return };
        if let Some(position) = holders.iter().position(|(id, _)| *id == endpoint) {
            let n_copies = &mut holders[position].1;
            *n_copies = n_copies.saturating_sub(n);
            if *n_copies == 0 {
                holders.swap_remove(position);
            }
        }
        if holders.is_empty() {
            self.holders.remove(&name);
        }
    }
}

/// The name of the block after the one named `parent`; `parent` is 0 at the start of a text.
fn name_of<'a>(
    parent: u64,
    tokens: &[u32],
    adapter: Option<&'a str>,
    others: impl Iterator<Item = &'a str>,
) -> u64 {
    let mut bytes: SmallVec<[u8; 128]> = SmallVec::new();
    for token in tokens {
        bytes.extend_from_slice(&token.to_le_bytes());
    }
    for part in adapter.into_iter().chain(others) {
        bytes.push(SEPARATOR);
        bytes.extend_from_slice(part.as_bytes());
    }
    xxh3_64_with_seed(&bytes, parent)
}
