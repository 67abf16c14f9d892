//! Memory that the index allocates.

use prefix_index::matches::Matches;

use crate::fixtures::{chain, endpoint, index, noise};

const LEN: usize = 128 << 10;

#[test]
fn lookups_allocate_nothing() {
    let index = index(1_000_000);
    let text = noise(LEN, 1);
    for slot in 0..200 {
        let mut own = text[..600 * slot as usize].to_vec();
        own.extend(noise(1000, 100 + u64::from(slot)));
        index.insert(&chain(&own), endpoint(slot));
    }
    let chain = chain(&text);
    let mut matches = Matches::new();
    // Negative control: the first answer allocates its memory.
    let first = allocation_counter::measure(|| index.longest_match(&chain, &mut matches));
    assert!(first.count_total > 0);
    let second = allocation_counter::measure(|| index.longest_match(&chain, &mut matches));
    assert_eq!(second.count_total, 0);
    assert_eq!(matches.iter().count(), 199, "slot 0 shares no block with the text");
}

#[test]
fn a_128_kib_prompt_takes_under_16_kib() {
    let index = index(1_000_000);
    let chains: Vec<_> = (0..50).map(|seed| chain(noise(LEN, seed))).collect();
    let taken = allocation_counter::measure(|| {
        for (chain, n) in chains.iter().zip(0..) {
            index.insert(chain, endpoint(n % 10));
        }
    });
    let per_prompt = taken.bytes_current / 50;
    assert!((576 * 8..16 << 10).contains(&per_prompt), "{per_prompt} bytes");
}

/// A fortieth of ten million blocks takes a fortieth of a gigabyte: prompts leave a shared start after 2 KiB and add 2
/// KiB of their own, 64 blocks each.
#[test]
fn a_quarter_million_blocks_take_under_25_mb() {
    let index = index(1_000_000);
    let shared = noise(2048, 0);
    let mut n = 0u32;
    let taken = allocation_counter::measure(|| {
        while index.stats().n_blocks < 250_000 {
            let text = [&shared[..], &noise(2048, 1 + u64::from(n))].concat();
            index.insert(&chain(text), endpoint(n % 50));
            n += 1;
        }
    });
    assert!((2_000_000..25_000_000).contains(&taken.bytes_current), "{} bytes", taken.bytes_current);
}

#[test]
fn a_full_endpoint_stays_in_its_memory() {
    let index = index(20_000);
    let fill = |from: u64| {
        for seed in from..from + 300 {
            index.insert(&chain(noise(8192, seed)), endpoint(0));
        }
    };
    let filled = allocation_counter::measure(|| fill(0));
    let later = allocation_counter::measure(|| fill(1000));
    assert!(filled.bytes_current > 100_000);
    assert!(later.bytes_current < filled.bytes_current / 10, "{} more bytes", later.bytes_current);
}

/// The worst case in the documentation of the capacity: each text adds one block to a shared start.
#[test]
fn a_block_of_its_own_takes_under_150_bytes() {
    let index = index(1_000_000);
    let shared = noise(80, 0);
    let taken = allocation_counter::measure(|| {
        for n in 0..100_000u64 {
            index.insert(&chain([&shared[..], &n.to_le_bytes()].concat()), endpoint(0));
        }
    });
    assert_eq!(index.stats().n_nodes, 100_001);
    let per_block = taken.bytes_current / 100_000;
    assert!((8..150).contains(&per_block), "{per_block} bytes");
}
