//! KV events: what a pool tells subscribers about its cached blocks.

use crate::hash::BlockHash;
use crate::request::LoraAdapter;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvEvent {
    /// The blocks that one request filled in one step, in order.
    BlockStored {
        block_hashes: Vec<BlockHash>,
        /// Hash of the block before the first; `None` for a request's first block.
        parent: Option<BlockHash>,
        /// The tokens of all the blocks, `block_hashes.len() * block_size`.
        token_ids: Vec<u32>,
        block_size: u32,
        lora: Option<Arc<LoraAdapter>>,
        /// The salt, when the first of these blocks is the first of its request.
        cache_salt: Option<Arc<str>>,
    },
    BlockRemoved {
        block_hash: BlockHash,
    },
    AllBlocksCleared,
}
