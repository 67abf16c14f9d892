//! The lengths of blocks; chunks make no difference.

use prefix_index::chain::{ChainBuilder, ChainSeed};
use prefix_index::schedule::{block_len, blocks_within, bytes_in_blocks};
use proptest::prelude::{any, proptest};

use crate::fixtures::{SEED, chain, noise, seeded_chain};

/// The formula of the design.
fn block_at(offset: u64) -> u64 {
    match offset / 64 {
        0 => 8,
        quotient => (1 << quotient.ilog2()).max(8),
    }
}

#[test]
fn blocks_follow_the_formula() {
    let mut offset = 0;
    for block_idx in 0..1300 {
        assert_eq!(bytes_in_blocks(block_idx), offset, "start of block {block_idx}");
        assert_eq!(block_len(block_idx), block_at(offset), "length of block {block_idx}");
        assert_eq!(blocks_within(offset), block_idx);
        offset += block_at(offset);
        assert_eq!(blocks_within(offset - 1), block_idx, "block {block_idx} is not full");
    }
}

#[test]
fn number_of_blocks_grows_with_the_logarithm() {
    let n_blocks = |len: usize| chain(vec![b'x'; len]).n_blocks();
    assert_eq!(n_blocks(7), 0);
    assert_eq!(n_blocks(8), 1);
    assert_eq!(n_blocks(1024), 128);
    assert_eq!(n_blocks(1039), 128);
    assert_eq!(n_blocks(1040), 129);
    assert_eq!(n_blocks(128 << 10), 576);
    assert_eq!(n_blocks(1 << 20), 768);
}

#[test]
fn total_is_the_end_of_the_last_full_block() {
    assert_eq!(chain(noise(731, 1)).total_bytes(), 728);
    assert_eq!(chain(noise(1500, 1)).total_bytes(), 1488);
    assert_eq!(chain("").total_bytes(), 0);
}

proptest! {
    #[test]
    fn chunks_make_no_difference(len in 0..9000usize, seed in any::<u64>(), cuts in proptest::collection::vec(0..9000usize, 0..20)) {
        let text = noise(len, seed);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(len)).chain([0, len]).collect();
        cuts.sort_unstable();
        let mut builder = ChainBuilder::new();
        for range in cuts.windows(2) {
            builder.push(&text[range[0]..range[1]]);
        }
        assert_eq!(builder.finish(&SEED), chain(&text));
    }

    #[test]
    fn hashes_agree_exactly_on_the_common_prefix(len in 16..6000usize, seed in any::<u64>(), at in 0..6000usize) {
        let text = noise(len, seed);
        let mut other = text.clone();
        let at = at % len;
        other[at] ^= 1;
        let (a, b) = (chain(&text), chain(&other));
        let n_common = a.hashes().iter().zip(b.hashes()).take_while(|(a, b)| a == b).count();
        let n_equal = a.hashes().iter().zip(b.hashes()).filter(|(a, b)| a == b).count();
        assert_eq!(n_equal, n_common, "after the first difference all blocks differ");
        let n_common = u32::try_from(n_common).unwrap();
        let ends_after = if n_common < a.n_blocks() { bytes_in_blocks(n_common + 1) } else { len as u64 };
        assert!(bytes_in_blocks(n_common) <= at as u64 && (at as u64) < ends_after);
    }
}

#[test]
fn every_part_of_the_seed_counts() {
    let seed = |target_model, adapter, cache_salt| ChainSeed { target_model, adapter, cache_salt };
    let seeds = [
        seed("a", None, None),
        seed("b", None, None),
        seed("a", Some("b"), None),
        seed("a", None, Some("b")),
        seed("a", Some("b"), Some("c")),
        seed("a", Some("bc"), Some("")),
        seed("ab", None, Some("")),
        seed("ab", Some(""), None),
        seed("", Some("a"), Some("b")),
    ];
    let chains: Vec<_> = seeds.iter().map(|seed| seeded_chain("one block of text", seed)).collect();
    for (idx, chain) in chains.iter().enumerate() {
        assert_eq!(chains.iter().position(|other| other == chain), Some(idx));
    }
    assert_eq!(chains[3], seeded_chain("one block of text", &seeds[3]));
}
