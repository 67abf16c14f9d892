//! The index that KV events fill.

use std::collections::{BTreeMap, BTreeSet};
use std::slice::from_ref;
use std::sync::Arc;

use prefix_index::blocks::{BlockEvent, BlockIndex, EngineHash, Stored, TokenPrompt};
use prefix_index::endpoint::EndpointId;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const SIZE: u32 = 4;

fn endpoint(slot: u32) -> EndpointId {
    EndpointId::new(slot, slot + 1)
}

fn prompt(tokens: impl IntoIterator<Item = u32>) -> TokenPrompt {
    TokenPrompt { tokens: tokens.into_iter().collect(), ..TokenPrompt::default() }
}

fn hash(number: u64) -> EngineHash {
    EngineHash::of_integer(number)
}

/// Event that stores blocks with the names `hashes` after `parent`, for the tokens of `text` from `from` on.
fn stored(hashes: &[u64], parent: Option<u64>, text: &TokenPrompt, from: usize) -> BlockEvent {
    let tokens = text.tokens[from..from + hashes.len() * SIZE as usize].to_vec();
    BlockEvent::Stored(Stored {
        hashes: hashes.iter().copied().map(hash).collect(),
        parent: parent.map(hash),
        tokens,
        block_size: SIZE,
        ..Stored::default()
    })
}

fn live(slots: u32) -> Arc<BlockIndex> {
    let index = Arc::new(BlockIndex::default());
    (0..slots).for_each(|slot| index.reset(endpoint(slot), true));
    index
}

#[test]
fn a_prompt_is_held_up_to_the_first_block_that_is_missing() {
    let index = live(3);
    let text = prompt(0..20);
    index.apply(endpoint(0), vec![stored(&[1, 2, 3], None, &text, 0), stored(&[4, 5], Some(3), &text, 12)]);
    index.apply(endpoint(1), vec![stored(&[7, 8], None, &text, 0)]);
    let all = [endpoint(0), endpoint(1), endpoint(2)];
    // The last token is computed again, and so is the fifth block.
    assert_eq!(index.saved_tokens(from_ref(&text), &all, None), [Some(16), Some(8), Some(0)]);
    assert_eq!(index.saved_tokens(&[prompt(0..21)], &all, None), [Some(20), Some(8), Some(0)]);
    index.apply(endpoint(0), vec![BlockEvent::Removed(vec![hash(2)])]);
    assert_eq!(index.saved_tokens(from_ref(&text), &all, None), [Some(4), Some(8), Some(0)]);
    index.apply(endpoint(1), vec![BlockEvent::Cleared]);
    assert_eq!(index.saved_tokens(from_ref(&text), &all, None), [Some(4), Some(0), Some(0)]);
}

#[test]
fn a_block_that_is_stored_twice_is_held_until_both_are_gone() {
    let index = live(1);
    let text = prompt(0..8);
    index.apply(endpoint(0), vec![stored(&[1], None, &text, 0), stored(&[1], None, &text, 0)]);
    index.apply(endpoint(0), vec![BlockEvent::Removed(vec![hash(1)])]);
    assert_eq!(index.saved_tokens(from_ref(&text), &[endpoint(0)], None), [Some(4)]);
    index.apply(endpoint(0), vec![BlockEvent::Removed(vec![hash(1), hash(1)])]);
    assert_eq!(index.saved_tokens(from_ref(&text), &[endpoint(0)], None), [Some(0)]);
    assert_eq!(index.stats().n_blocks, 0);
}

#[test]
fn salts_and_adapters_set_caches_apart() {
    let index = live(1);
    let text = prompt(0..12);
    let salted = TokenPrompt { salt: Some("s".to_owned()), ..text.clone() };
    let adapted = TokenPrompt { adapter: Some("a".to_owned()), ..text.clone() };
    let both = TokenPrompt { salt: Some("s".to_owned()), ..adapted.clone() };
    let all = [&text, &salted, &adapted, &both];
    for (number, held) in all.iter().enumerate() {
        let event = Stored {
            hashes: vec![hash(1), hash(2), hash(3)],
            tokens: (0..12).collect(),
            block_size: SIZE,
            // An engine reports an adapter twice.
            extras: (0..3)
                .map(|block| {
                    let salt = held.salt.iter().filter(|_| block == 0);
                    held.adapter.iter().chain(salt).cloned().collect()
                })
                .collect(),
            adapter: held.adapter.clone(),
            parent: None,
        };
        index.apply(endpoint(0), vec![BlockEvent::Cleared, BlockEvent::Stored(event)]);
        let saved: Vec<_> = all
            .iter()
            .flat_map(|prompt| index.saved_tokens(from_ref(prompt), &[endpoint(0)], None))
            .collect();
        let expected: Vec<_> = (0..4).map(|other| Some(if other == number { 8 } else { 0 })).collect();
        assert_eq!(saved, expected);
    }
}

#[test]
fn what_is_on_its_way_counts_until_it_is_over() {
    let index = live(2);
    let text = prompt(0..12);
    assert!(index.expect(from_ref(&text), endpoint(0), None).is_none(), "no block size is known yet");
    index.apply(endpoint(1), vec![stored(&[1], None, &text, 0)]);
    let block_size = index.block_size([endpoint(0), endpoint(1)]);
    let expected = index.expect(from_ref(&text), endpoint(0), block_size).unwrap();
    assert_eq!(
        index.saved_tokens(from_ref(&text), &[endpoint(0), endpoint(1)], block_size),
        [Some(8), Some(4)]
    );
    index.apply(endpoint(0), vec![stored(&[1, 2], None, &text, 0)]);
    drop(expected);
    assert_eq!(index.saved_tokens(from_ref(&text), &[endpoint(0), endpoint(1)], None), [Some(8), Some(4)]);
    index.remove_endpoint(endpoint(0));
    index.remove_endpoint(endpoint(1));
    assert_eq!(index.stats().n_blocks, 0);
}

#[test]
fn an_endpoint_that_missed_something_is_not_believed() {
    let index = live(1);
    let text = prompt(0..12);
    index.apply(endpoint(0), vec![stored(&[1], None, &text, 0)]);
    index.set_live(endpoint(0), false);
    assert_eq!(index.saved_tokens(from_ref(&text), &[endpoint(0)], None), [None]);
    assert_eq!(index.held_blocks(endpoint(0)), None);
    index.reset(endpoint(0), true);
    assert_eq!(index.held_blocks(endpoint(0)), Some(0));
    // The parent is unknown.
    index.apply(endpoint(0), vec![stored(&[2], Some(1), &text, 4)]);
    assert_eq!((index.held_blocks(endpoint(0)), index.stats().n_orphans), (Some(0), 1));
    // A later owner of the slot holds nothing, and events for endpoints that were never reset are ignored.
    let successor = EndpointId::new(0, 9);
    index.apply(successor, vec![stored(&[1], None, &text, 0)]);
    assert_eq!(index.saved_tokens(from_ref(&text), &[successor], None), [None]);
}

/// Texts of few symbols, stored and removed at random, against sets of prefixes.
#[test]
fn a_naive_model_agrees() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for _ in 0..50 {
        let index = live(3);
        let mut held: BTreeMap<u32, BTreeSet<Vec<u32>>> = BTreeMap::new();
        let mut names: BTreeMap<Vec<u32>, u64> = BTreeMap::new();
        for _ in 0..200 {
            let slot = rng.random_range(0..3);
            let blocks: Vec<u32> = (0..rng.random_range(1..6)).map(|_| rng.random_range(0..3)).collect();
            let text = prompt(blocks.iter().flat_map(|symbol| [*symbol; SIZE as usize]));
            let own = held.entry(slot).or_default();
            if rng.random_bool(0.6) {
                let from = (1..=blocks.len()).take_while(|n| own.contains(&blocks[..*n])).count();
                let hashes: Vec<u64> = (from + 1..=blocks.len())
                    .map(|n| {
                        let next = names.len() as u64;
                        *names.entry(blocks[..n].to_vec()).or_insert(next)
                    })
                    .collect();
                // An engine also stores again what it already holds, if an earlier block is missing.
                let known = |n: &usize| own.contains(&blocks[..*n]);
                if (from + 1..=blocks.len()).any(|n| known(&n)) {
                    continue;
                }
                let parent = (from > 0).then(|| names[&blocks[..from]]);
                index.apply(endpoint(slot), vec![stored(&hashes, parent, &text, from * SIZE as usize)]);
                own.extend((from + 1..=blocks.len()).map(|n| blocks[..n].to_vec()));
            } else if let Some(victim) = own.iter().nth(rng.random_range(0..own.len().max(1))).cloned() {
                own.remove(&victim);
                index.apply(endpoint(slot), vec![BlockEvent::Removed(vec![hash(names[&victim])])]);
            }
            let query = prompt(text.tokens.iter().copied().chain([9]));
            let saved = index.saved_tokens(from_ref(&query), &[endpoint(0), endpoint(1), endpoint(2)], None);
            for slot in 0..3 {
                let own = held.entry(slot).or_default();
                let n_blocks = (1..=blocks.len()).take_while(|n| own.contains(&blocks[..*n])).count();
                let expected = n_blocks as u64 * u64::from(SIZE);
                assert_eq!(saved[slot as usize], Some(expected), "{blocks:?}");
            }
        }
    }
}
