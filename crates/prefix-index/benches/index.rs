//! Costs of the prefix index, at the sizes that its performance targets name.

use std::num::NonZeroU32;

use divan::{AllocProfiler, Bencher, black_box};
use prefix_index::chain::{Chain, ChainBuilder, ChainSeed};
use prefix_index::endpoint::EndpointId;
use prefix_index::index::PrefixIndex;
use prefix_index::matches::Matches;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[global_allocator]
static ALLOC: AllocProfiler = AllocProfiler::system();

const SEED: ChainSeed<'_> = ChainSeed { target_model: "/model/qwen", adapter: None, cache_salt: None };
const KIB: usize = 1024;

fn main() {
    divan::main();
}

fn text(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ChaCha8Rng::seed_from_u64(seed).fill(&mut bytes[..]);
    bytes
}

fn chain(text: &[u8]) -> Chain {
    let mut builder = ChainBuilder::new();
    builder.push(text);
    builder.finish(&SEED)
}

fn index() -> PrefixIndex {
    PrefixIndex::new(NonZeroU32::new(1_000_000).expect("not zero"))
}

/// Builds the chain of a text that arrives in chunks of 16 KiB.
#[divan::bench(args = [2, 10, 128, 220])]
fn build_chain(bencher: Bencher<'_, '_>, kib: usize) {
    let text = text(kib * KIB, 1);
    bencher.bench(|| {
        let mut builder = ChainBuilder::new();
        for chunk in black_box(&text).chunks(16 * KIB) {
            builder.push(chunk);
        }
        builder.finish(&SEED)
    });
}

/// 1,000 endpoints that all hold a whole text of 128 KiB.
#[divan::bench]
fn match_128k_all_hold_all(bencher: Bencher<'_, '_>) {
    let (index, chain) = (index(), chain(&text(128 * KIB, 1)));
    for slot in 0..1000 {
        index.insert(&chain, EndpointId::new(slot, 0));
    }
    bench_match(bencher, &index, &chain);
}

/// 1,000 endpoints that each leave a text of 128 KiB at another point: the path has as many nodes as the text has
/// blocks.
#[divan::bench]
fn match_128k_each_leaves_elsewhere(bencher: Bencher<'_, '_>) {
    let (index, chain) = each_leaves_elsewhere();
    bench_match(bencher, &index, &chain);
}

/// 1,000 endpoints with a common system prompt of 8 KiB and 10 conversations of 128 KiB each.
#[divan::bench(threads = [1, 2])]
fn match_128k_typical(bencher: Bencher<'_, '_>) {
    let (index, chains) = conversations();
    bench_match(bencher, &index, &chains[4321]);
}

#[divan::bench]
fn insert_128k_new(bencher: Bencher<'_, '_>) {
    let (index, _) = conversations();
    let mut seed = 1_000_000;
    bencher
        .with_inputs(|| {
            seed += 1;
            chain(&text(128 * KIB, seed))
        })
        .bench_local_refs(|chain| index.insert(chain, EndpointId::new(7, 0)));
}

/// Inserts like `insert_128k_new`, into an endpoint that is full.
#[divan::bench]
fn insert_128k_evicting(bencher: Bencher<'_, '_>) {
    let index = PrefixIndex::new(NonZeroU32::new(31_250).expect("not zero"));
    let mut seed = 1_000_000;
    for seed in 0..100 {
        index.insert(&chain(&text(128 * KIB, seed)), EndpointId::new(7, 0));
    }
    bencher
        .with_inputs(|| {
            seed += 1;
            chain(&text(128 * KIB, seed))
        })
        .bench_local_refs(|chain| index.insert(chain, EndpointId::new(7, 0)));
}

/// Inserts the next turn of a conversation that its endpoint holds.
#[divan::bench]
fn insert_128k_again(bencher: Bencher<'_, '_>) {
    let (index, chains) = conversations();
    bencher.bench(|| index.insert(black_box(&chains[4321]), EndpointId::new(321, 0)));
}

/// Inserts the text of `match_128k_each_leaves_elsewhere` into each of its endpoints in turn.
#[divan::bench]
fn insert_128k_across_all_borders(bencher: Bencher<'_, '_>) {
    let (index, chain) = each_leaves_elsewhere();
    let mut slot = 0;
    bencher.bench_local(|| {
        index.insert(black_box(&chain), EndpointId::new(slot, 0));
        slot += 1;
    });
}

/// 10 million blocks of 128 KiB conversations; the table of allocations shows the memory that they take.
#[divan::bench(sample_count = 1, sample_size = 1)]
fn hold_10m_blocks(bencher: Bencher<'_, '_>) {
    bencher.bench_local(|| {
        let index = index();
        let mut n = 0;
        while index.stats().n_held_blocks < 10_000_000 {
            index.insert(
                &chain(&text(128 * KIB, n)),
                EndpointId::new(u32::try_from(n % 100).expect("small"), 0),
            );
            n += 1;
        }
        index
    });
}

fn conversations() -> (PrefixIndex, Vec<Chain>) {
    let index = index();
    let system = text(8 * KIB, 0);
    let chains: Vec<Chain> = (0..10_000u32)
        .map(|n| {
            let mut builder = ChainBuilder::new();
            builder.push(&system).push(&text(120 * KIB, 1 + u64::from(n)));
            let chain = builder.finish(&SEED);
            index.insert(&chain, EndpointId::new(n % 1000, 0));
            chain
        })
        .collect();
    (index, chains)
}

fn each_leaves_elsewhere() -> (PrefixIndex, Chain) {
    let index = index();
    let text_all = text(128 * KIB, 1);
    for slot in 0..1000 {
        let mut own = text_all[..slot as usize * 131].to_vec();
        own.extend(text(4 * KIB, 100 + u64::from(slot)));
        index.insert(&chain(&own), EndpointId::new(slot, 0));
    }
    (index, chain(&text_all))
}

fn bench_match(bencher: Bencher<'_, '_>, index: &PrefixIndex, chain: &Chain) {
    bencher
        .with_inputs(|| {
            let mut matches = Matches::new();
            index.longest_match(chain, &mut matches);
            matches
        })
        .bench_refs(|matches| index.longest_match(black_box(chain), matches));
}
