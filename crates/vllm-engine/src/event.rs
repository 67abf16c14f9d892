//! KV events: what a pool reports to subscribers about its cached blocks.

use crate::hash::BlockHash;
use crate::request::LoraAdapter;
use std::sync::Arc;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvEvent {
    /// Blocks that one request filled in one step, in order.
    BlockStored {
        block_hashes: Vec<BlockHash>,
        /// Hash of the block before the first; `None` for a request's first block.
        parent: Option<BlockHash>,
        /// Tokens of all the blocks: `block_hashes.len() * block_size`.
        token_ids: Vec<u32>,
        block_size: u32,
        lora: Option<Arc<LoraAdapter>>,
        /// Salt of the request, if the first of these blocks is its first.
        cache_salt: Option<Arc<str>>,
    },
    BlockRemoved {
        block_hash: BlockHash,
    },
    AllBlocksCleared,
}
