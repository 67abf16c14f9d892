//! The lengths of blocks: `block(o) = max(8, 2^floor(log2(o/64)))` bytes at offset `o`.
//!
//! Boundaries depend only on the offset, so equal prefixes have equal blocks. A match is at most one block too short:

/// Bytes of each block below [`FIRST_DOUBLING`].
const MIN_BLOCK: u64 = 8;
/// bytes in the first kilobyte, and after that at most 1/64 of the offset. 128 KiB are 576 blocks, 64 MiB are 1152.
const BLOCKS_PER_DOUBLING: u32 = 64;
/// First offset at which blocks are longer than [`MIN_BLOCK`]: `2^floor(log2(1024/64)) = 16`.
const FIRST_DOUBLING: u64 = 1024;
/// Number of blocks below [`FIRST_DOUBLING`].
const MIN_BLOCKS: u32 = 128;

/// Bytes in block number `block_idx` (from 0).
#[must_use]
pub const fn block_len(block_idx: u32) -> u64 {
    match block_idx.checked_sub(MIN_BLOCKS) {
        None => MIN_BLOCK,
        Some(past) => (2 * MIN_BLOCK) << (past / BLOCKS_PER_DOUBLING),
    }
}

/// Number of the first block after `block_idx` that is longer.
#[must_use]
pub(crate) const fn next_longer(block_idx: u32) -> u32 {
    match block_idx.checked_sub(MIN_BLOCKS) {
        None => MIN_BLOCKS,
        Some(past) => MIN_BLOCKS + (past / BLOCKS_PER_DOUBLING + 1) * BLOCKS_PER_DOUBLING,
    }
}

/// Bytes in the first `n_blocks` blocks: the offset at which block number `n_blocks` starts.
#[must_use]
pub const fn bytes_in_blocks(n_blocks: u32) -> u64 {
    match n_blocks.checked_sub(MIN_BLOCKS) {
        None => MIN_BLOCK * n_blocks as u64,
        Some(past) => {
            let doublings = past / BLOCKS_PER_DOUBLING;
            let rest = (past % BLOCKS_PER_DOUBLING) as u64;
            (FIRST_DOUBLING << doublings) + rest * ((2 * MIN_BLOCK) << doublings)
        }
    }
}

/// Number of full blocks in the first `n_bytes` bytes.
///
/// # Panics
/// If there are 2^32: block lengths double, so no text has as many.
#[must_use]
pub fn blocks_within(n_bytes: u64) -> u32 {
    let n_blocks = match (n_bytes / FIRST_DOUBLING).checked_ilog2() {
        None => n_bytes / MIN_BLOCK,
        Some(doublings) => {
            let rest = n_bytes - (FIRST_DOUBLING << doublings);
            let whole = u64::from(MIN_BLOCKS + doublings * BLOCKS_PER_DOUBLING);
            whole + rest / ((2 * MIN_BLOCK) << doublings)
        }
    };
    u32::try_from(n_blocks).expect("block lengths double, so no text has 2^32 blocks")
}
