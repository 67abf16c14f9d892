//! The bounds of the index of engines' blocks, with more blocks than it may hold.

use std::collections::BTreeSet;
use std::slice::from_ref;
use std::sync::Arc;

use prefix_index::blocks::{BlockEvent, BlockIndex, Bounds, EngineHash, Stored, TokenPrompt};
use prefix_index::endpoint::EndpointId;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const WIDE: Bounds = Bounds { endpoint: 1 << 20, stored: 1 << 20, expected: 1 << 20 };

fn endpoint(slot: u32) -> EndpointId {
    EndpointId::new(slot, slot + 1)
}

fn live(bounds: Bounds, slots: u32) -> Arc<BlockIndex> {
    let index = Arc::new(BlockIndex::new(bounds));
    (0..slots).for_each(|slot| index.reset(endpoint(slot), true));
    index
}

/// A text with one token per block; the hashes of its blocks are its tokens.
fn text(tokens: impl IntoIterator<Item = u32>) -> TokenPrompt {
    TokenPrompt { tokens: tokens.into_iter().collect(), ..TokenPrompt::default() }
}

fn hash(token: u32) -> EngineHash {
    EngineHash::of_integer(token.into())
}

fn stored(tokens: impl IntoIterator<Item = u32>, parent: Option<u32>) -> BlockEvent {
    let tokens: Vec<u32> = tokens.into_iter().collect();
    let hashes = tokens.iter().copied().map(hash).collect();
    let parent = parent.map(hash);
    BlockEvent::Stored(Stored { hashes, parent, tokens, block_size: 1, ..Stored::default() })
}

fn removed(tokens: impl IntoIterator<Item = u32>) -> BlockEvent {
    BlockEvent::Removed(tokens.into_iter().map(hash).collect())
}

/// Cached tokens of the text `tokens` in each of `slots`, without the last one, which is always computed.
fn saved(index: &BlockIndex, tokens: impl IntoIterator<Item = u32>, slots: u32) -> Vec<u64> {
    let endpoints: Vec<EndpointId> = (0..slots).map(endpoint).collect();
    let saved = index.saved_tokens(&[text(tokens)], &endpoints, None);
    saved.into_iter().map(|saved| saved.expect("every endpoint is live")).collect()
}

/// The blocks have 16 tokens each, and are so many that half of each table is empty.
#[test]
fn a_block_takes_170_bytes_at_most() {
    let index = live(WIDE, 2);
    let n_blocks = 60_000;
    let taken = allocation_counter::measure(|| {
        for text in 0..n_blocks / 100 {
            let hashes = (text * 100..(text + 1) * 100).map(hash).collect();
            let tokens = (0..1600).map(|token| text * 1600 + token).collect();
            let stored = Stored { hashes, tokens, block_size: 16, ..Stored::default() };
            index.apply(endpoint(text % 2), vec![BlockEvent::Stored(stored)]);
        }
    });
    assert_eq!(index.stats().n_blocks, n_blocks.into());
    let per_block = taken.bytes_current / i64::from(n_blocks);
    assert!((40..170).contains(&per_block), "{per_block} bytes");
}

#[test]
fn an_endpoint_has_a_million_blocks_at_most() {
    if test_skips::skips_slow() {
        return;
    }
    let bound = 1 << 20;
    let index = BlockIndex::default();
    index.reset(endpoint(0), true);
    let n_refused = index.apply(endpoint(0), vec![stored(0..bound + 1000, None)]);
    assert_eq!((index.held_blocks(endpoint(0)), n_refused), (Some(bound.into()), 1000));
    let stats = index.stats();
    assert_eq!((stats.n_blocks, stats.n_refused, stats.n_orphans), (bound.into(), 1000, 0));
    // A removed block makes room for another.
    assert_eq!(index.apply(endpoint(0), vec![removed([7]), stored([bound + 1, bound + 2], None)]), 1);
    assert_eq!(index.held_blocks(endpoint(0)), Some(bound.into()));
}

#[test]
fn endpoints_share_the_room_equally_when_there_is_not_enough() {
    let index = live(Bounds { endpoint: 8, stored: 12, expected: 0 }, 1);
    // A single endpoint may hold all stored blocks.
    assert_eq!(index.apply(endpoint(0), vec![stored(0..20, None)]), 12);
    (1..4).for_each(|slot| index.reset(endpoint(slot), true));
    assert_eq!(index.apply(endpoint(1), vec![stored(0..20, None)]), 17);
    // The first endpoint has more than a quarter, so there is no room for another endpoint, or for new blocks of its
    // own.
    assert_eq!(index.apply(endpoint(2), vec![stored(0..20, None)]), 19);
    assert_eq!(index.apply(endpoint(0), vec![removed(6..8), stored(6..8, Some(5))]), 2);
    assert_eq!(index.apply(endpoint(3), vec![stored(0..20, None)]), 18);
    assert_eq!(saved(&index, 0..20, 4), [6, 3, 1, 2]);
    // A block that is held is not a new one.
    assert_eq!(index.apply(endpoint(0), vec![stored(0..6, None)]), 0);
    // The blocks of a removed endpoint make room for the others: a third for each.
    index.remove_endpoint(endpoint(0));
    assert_eq!(index.apply(endpoint(3), vec![stored(2..3, Some(1)), stored(3..5, Some(2))]), 1);
    index.reset(endpoint(0), true);
    assert_eq!(saved(&index, 0..20, 4), [0, 3, 1, 4]);
}

#[test]
fn what_requests_will_compute_is_bounded_too() {
    let index = live(Bounds { expected: 10, ..WIDE }, 2);
    let text = text(0..8);
    let first = index.expect(from_ref(&text), endpoint(0), Some(1)).unwrap();
    let second = index.expect(from_ref(&text), endpoint(1), Some(1)).unwrap();
    index.apply(endpoint(0), vec![stored([99], None)]);
    index.apply(endpoint(1), vec![stored([99], None)]);
    assert_eq!(saved(&index, 0..9, 2), [8, 2]);
    assert_eq!((index.stats().n_refused, index.stats().n_blocks), (6, 9));
    drop(first);
    let third = index.expect(from_ref(&text), endpoint(1), Some(1)).unwrap();
    drop(second);
    assert_eq!(saved(&index, 0..9, 2), [0, 8]);
    drop(third);
    assert_eq!((index.stats().n_refused, index.stats().n_blocks), (6, 1));
}

/// Random events of engines with more blocks than there is room for, compared with sets of prefixes.
#[test]
fn a_full_index_predicts_too_little_and_never_too_much() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut n_lower = [0, 0];
    for round in 0..100 {
        let is_narrow = round % 2 == 0;
        let bounds = if is_narrow { Bounds { endpoint: 9, stored: 16, expected: 0 } } else { WIDE };
        let index = live(bounds, 3);
        let mut held = [const { BTreeSet::<u32>::new() }; 3];
        for _ in 0..200 {
            let slot = rng.random_range(0..3_u32);
            let own = &mut held[slot as usize];
            // Ten texts, whose tokens are numbers from a multiple of 10 on.
            let (start, len) = (rng.random_range(0..10) * 10, rng.random_range(1..10));
            if rng.random_bool(0.6) {
                let from = (start..start + len).take_while(|token| own.contains(token)).count();
                let new = start + u32::try_from(from).unwrap()..start + len;
                if new.clone().any(|token| own.contains(&token)) {
                    continue;
                }
                let parent = (from > 0).then(|| new.start - 1);
                index.apply(endpoint(slot), vec![stored(new.clone(), parent)]);
                own.extend(new);
            } else {
                let gone: Vec<u32> = (start..start + len).filter(|token| own.remove(token)).collect();
                index.apply(endpoint(slot), vec![removed(gone)]);
            }
            for (slot, saved) in saved(&index, start..start + 10, 3).into_iter().enumerate() {
                let really = (start..start + 9).take_while(|token| held[slot].contains(token)).count() as u64;
                assert!(saved <= really, "{saved} tokens instead of {really}");
                n_lower[usize::from(is_narrow)] += usize::from(saved < really);
            }
        }
        for (slot, held) in (0..).zip(held) {
            index.apply(endpoint(slot), vec![removed(held)]);
        }
        assert_eq!(index.stats().n_blocks, 0);
        // There is room again.
        assert_eq!(index.apply(endpoint(0), vec![stored(0..5, None)]), 0);
        assert_eq!(saved(&index, 0..6, 1), [5]);
    }
    let [wide, narrow] = n_lower;
    assert_eq!(wide, 0, "with room for all, all are known");
    assert!(narrow > 1000, "{narrow}: the index was hardly ever full");
}

#[test]
fn a_hash_that_names_another_block_has_let_go_of_the_first() {
    let index = live(WIDE, 1);
    let other = Stored { hashes: vec![hash(1)], tokens: vec![7], block_size: 1, ..Stored::default() };
    index.apply(endpoint(0), vec![stored([1], None), stored([1], None), BlockEvent::Stored(other)]);
    assert_eq!((saved(&index, [1, 2], 1), saved(&index, [7, 2], 1)), (vec![0], vec![1]));
    index.apply(endpoint(0), vec![removed([1])]);
    assert_eq!((saved(&index, [7, 2], 1), index.stats().n_blocks), (vec![0], 0));
}

#[test]
fn a_fresh_endpoint_has_blocks_as_large_as_those_of_its_pool() {
    for n_others in 1..20 {
        let index = live(WIDE, 2 + n_others);
        let pool = [endpoint(0), endpoint(1)];
        // Engines of other pools have other block sizes.
        for slot in 2..2 + n_others {
            let tokens = vec![0; slot as usize];
            let event = Stored { hashes: vec![hash(1)], tokens, block_size: slot, ..Stored::default() };
            index.apply(endpoint(slot), vec![BlockEvent::Stored(event)]);
        }
        assert_eq!(index.block_size(pool), None);
        assert!(index.expect(&[text(0..20)], endpoint(0), index.block_size(pool)).is_none());
        let of_64 =
            Stored { hashes: vec![hash(1)], tokens: vec![0; 64], block_size: 64, ..Stored::default() };
        index.apply(endpoint(1), vec![BlockEvent::Stored(of_64)]);
        assert_eq!(index.block_size(pool), Some(64));
        let prompt = text(0..200);
        let expected = index.expect(from_ref(&prompt), endpoint(0), index.block_size(pool)).unwrap();
        assert_eq!(
            index.saved_tokens(from_ref(&prompt), &pool, index.block_size(pool)),
            [Some(192), Some(0)]
        );
        // The endpoint's own block size comes first.
        index.apply(endpoint(0), vec![stored(0..5, None)]);
        assert_eq!(index.saved_tokens(from_ref(&prompt), &pool, index.block_size(pool)), [Some(5), Some(0)]);
        drop(expected);
    }
}
