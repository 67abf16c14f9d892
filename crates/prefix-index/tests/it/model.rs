//! The index against a naive model, which keeps a set of full prefixes per endpoint.

use std::collections::BTreeSet;

use prefix_index::chain::Chain;
use prefix_index::endpoint::EndpointId;
use prefix_index::matches::Matches;
use proptest::prelude::{Just, Strategy, prop_oneof, proptest};

use crate::fixtures::{chain, endpoint, index, matched, noise};

const N_SLOTS: u32 = 8;

#[derive(Clone, Debug)]
enum Step {
    Insert { text: Vec<u8>, slot: u32 },
    Match { text: Vec<u8> },
    Remove { slot: u32 },
}

/// Texts of few different letters, each eight times, so that many prefixes are equal.
fn text() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(b'c')], 0..14)
        .prop_map(|letters| letters.into_iter().flat_map(|letter| [letter; 8]).collect())
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (text(), 0..N_SLOTS).prop_map(|(text, slot)| Step::Insert { text, slot }),
        4 => text().prop_map(|text| Step::Match { text }),
        1 => (0..N_SLOTS).prop_map(|slot| Step::Remove { slot }),
    ]
}

/// Every full-block prefix that was inserted for one endpoint.
#[derive(Default)]
struct NaiveEndpoint {
    generation: u32,
    prefixes: BTreeSet<Vec<u8>>,
}

impl NaiveEndpoint {
    fn matched(&self, text: &[u8]) -> u64 {
        let held = (1..=text.len() / 8).take_while(|n| self.prefixes.contains(&text[..n * 8])).count();
        held as u64 * 8
    }

    fn insert(&mut self, text: &[u8]) {
        self.prefixes.extend((1..=text.len() / 8).map(|n| text[..n * 8].to_vec()));
    }
}

fn lookup(matches: &Matches, slot: u32, naive: &NaiveEndpoint) -> u64 {
    matches.bytes(EndpointId::new(slot, naive.generation))
}

proptest! {
    #[test]
    fn unbounded_index_matches_the_model(steps in proptest::collection::vec(step(), 0..80)) {
        let index = index(u32::MAX);
        let mut naive: Vec<NaiveEndpoint> = (0..N_SLOTS).map(|_| NaiveEndpoint::default()).collect();
        let mut matches = Matches::new();
        for step in steps {
            match step {
                Step::Insert { text, slot } => {
                    let naive = &mut naive[slot as usize];
                    index.insert(&chain(&text), EndpointId::new(slot, naive.generation));
                    naive.insert(&text);
                }
                Step::Match { text } => {
                    index.longest_match(&chain(&text), &mut matches);
                    let holders = naive.iter().filter(|naive| naive.matched(&text) > 0).count();
                    assert_eq!(matches.iter().count(), holders);
                    for (slot, naive) in (0..).zip(&naive) {
                        assert_eq!(lookup(&matches, slot, naive), naive.matched(&text));
                    }
                }
                Step::Remove { slot } => {
                    let naive = &mut naive[slot as usize];
                    index.remove_endpoint(EndpointId::new(slot, naive.generation));
                    *naive = NaiveEndpoint { generation: naive.generation + 1, prefixes: BTreeSet::new() };
                }
            }
            let distinct: BTreeSet<_> = naive.iter().flat_map(|naive| &naive.prefixes).collect();
            let stats = index.stats();
            assert_eq!(stats.n_blocks, distinct.len() as u64);
            assert_eq!(stats.n_held_blocks, naive.iter().map(|naive| naive.prefixes.len() as u64).sum::<u64>());
            assert_eq!(stats.n_endpoints, naive.iter().filter(|naive| !naive.prefixes.is_empty()).count() as u64);
            assert_eq!(stats.n_evicted_blocks, 0);
        }
        for (slot, naive) in (0..).zip(&naive) {
            index.remove_endpoint(EndpointId::new(slot, naive.generation));
        }
        let stats = index.stats();
        assert_eq!((stats.n_blocks, stats.n_held_blocks, stats.n_nodes, stats.n_endpoints), (0, 0, 0, 0));
    }

    /// An endpoint with a bound holds exactly its capacity after it was exceeded, always as full prefixes, and always
    /// its last insertion; it never holds what was not inserted.
    #[test]
    fn bounded_index_keeps_what_is_hot(steps in proptest::collection::vec((text(), 0..3u32), 1..80), capacity in 1..40u32) {
        let index = index(capacity);
        let mut naive: Vec<NaiveEndpoint> = (0..3).map(|_| NaiveEndpoint::default()).collect();
        let mut n_held = [0u64; 3];
        for (text, slot) in steps {
            let new = text.len() as u64 - matched(&index, &text, endpoint(slot));
            index.insert(&chain(&text), endpoint(slot));
            naive[slot as usize].insert(&text);
            let held = &mut n_held[slot as usize];
            *held = (*held + new / 8).min(u64::from(capacity));
            assert_eq!(index.held_blocks(endpoint(slot)), *held);
            assert_eq!(matched(&index, &text, endpoint(slot)), (text.len() as u64).min(u64::from(capacity) * 8));
            for slot in 0..3 {
                assert!(matched(&index, &text, endpoint(slot)) <= naive[slot as usize].matched(&text));
            }
        }
        assert_eq!(index.stats().n_held_blocks, n_held.iter().sum::<u64>());
        (0..3).for_each(|slot| index.remove_endpoint(endpoint(slot)));
        assert_eq!((index.stats().n_blocks, index.stats().n_nodes), (0, 0));
    }

    /// A bound in bytes works like one in blocks if all blocks have eight bytes.
    #[test]
    fn a_bound_in_bytes_equals_one_in_blocks(
        steps in proptest::collection::vec((text(), 0..3u32), 1..60), capacity in 1..40u32,
    ) {
        let (by_blocks, by_bytes) = (index(capacity), index(u32::MAX));
        (0..3).for_each(|slot| by_bytes.limit_bytes(endpoint(slot), u64::from(capacity) * 8));
        for (text, slot) in &steps {
            by_blocks.insert(&chain(text), endpoint(*slot));
            by_bytes.insert(&chain(text), endpoint(*slot));
        }
        for (text, slot) in &steps {
            assert_eq!(matched(&by_blocks, text, endpoint(*slot)), matched(&by_bytes, text, endpoint(*slot)));
            assert_eq!(by_blocks.held_bytes(endpoint(*slot)), by_blocks.held_blocks(endpoint(*slot)) * 8);
            assert_eq!(by_blocks.held_bytes(endpoint(*slot)), by_bytes.held_bytes(endpoint(*slot)));
        }
    }
}

#[test]
fn a_bound_in_bytes_knows_that_later_blocks_are_longer() {
    let index = index(u32::MAX);
    let texts: Vec<Vec<u8>> = (0..3).map(|seed| noise(64 << 10, seed)).collect();
    for text in &texts {
        index.insert(&chain(text), endpoint(0));
    }
    let all = texts.iter().map(|text| chain(text).total_bytes()).sum::<u64>();
    assert_eq!(index.held_bytes(endpoint(0)), all);
    // Half of the first text, cut at the end of a block: its last blocks have 512 bytes.
    index.limit_bytes(endpoint(0), all - (32 << 10) - 1);
    let held: Vec<u64> = texts.iter().map(|text| matched(&index, text, endpoint(0))).collect();
    assert_eq!(held, [(32 << 10) - 256, 64 << 10, 64 << 10]);
    assert_eq!(index.held_bytes(endpoint(0)), held.iter().sum::<u64>());
    // Another endpoint has its own bound, and the next owner of the slot has none.
    for text in &texts {
        index.insert(&chain(text), endpoint(1));
    }
    assert_eq!(index.held_bytes(endpoint(1)), all);
    index.remove_endpoint(endpoint(0));
    let next = EndpointId::new(0, 1);
    for text in &texts {
        index.insert(&chain(text), next);
    }
    assert_eq!((index.held_bytes(next), index.held_bytes(endpoint(0))), (all, 0));
    index.limit_bytes(endpoint(0), 1);
    assert_eq!(index.held_bytes(next), all, "a bound for an endpoint that is gone");
}

#[test]
fn the_coldest_text_goes_first_and_from_its_end() {
    let texts: Vec<Vec<u8>> = (0..4).map(|seed| noise(800, seed)).collect();
    let index = index(300);
    for text in &texts[..3] {
        index.insert(&chain(text), endpoint(0));
    }
    index.insert(&chain(&texts[0]), endpoint(0));
    index.insert(&chain(&texts[3][..400]), endpoint(0));
    let held: Vec<u64> = texts.iter().map(|text| matched(&index, text, endpoint(0))).collect();
    assert_eq!(held, [800, 400, 800, 400]);
    assert_eq!(index.stats().n_evicted_blocks, 50);
    assert_eq!(matched(&index, &texts[1], endpoint(1)), 0);
}

#[test]
fn a_slot_used_again_inherits_nothing() {
    let index = index(1000);
    let text = noise(800, 1);
    let (old, new) = (EndpointId::new(3, 0), EndpointId::new(3, 1));
    index.insert(&chain(&text), old);
    assert_eq!(matched(&index, &text, old), 800);

    index.remove_endpoint(old);
    index.insert(&chain(&text), old); // A request that was picked before the removal.
    assert_eq!(index.stats().n_stale_insertions, 1);
    assert_eq!((matched(&index, &text, old), matched(&index, &text, new)), (0, 0));

    index.insert(&chain(&text[..80]), new);
    assert_eq!((matched(&index, &text, old), matched(&index, &text, new)), (0, 80));
}

#[test]
fn a_slot_taken_over_without_a_removal_inherits_nothing() {
    let index = index(1000);
    let text = noise(800, 1);
    index.insert(&chain(&text), EndpointId::new(3, 0));
    index.insert(&chain(&text[..80]), EndpointId::new(3, 1));
    index.insert(&chain(&text), EndpointId::new(3, 0));
    index.remove_endpoint(EndpointId::new(3, 0));
    assert_eq!(matched(&index, &text, EndpointId::new(3, 1)), 80);
    assert_eq!(matched(&index, &text, EndpointId::new(3, 0)), 0);
}

#[test]
fn conversations_of_one_endpoint_stay_one_run() {
    let index = index(10_000);
    let text = noise(8000, 1);
    for len in (800..=8000).step_by(800) {
        index.insert(&chain(&text[..len]), endpoint(0));
    }
    assert_eq!(index.stats().n_nodes, 1);
    index.insert(&chain(&text[..400]), endpoint(1));
    assert_eq!(index.stats().n_nodes, 2, "another holder of a part divides the run");
}

#[test]
fn runs_grow_together_again() {
    let index = index(10_000);
    let text = noise(8000, 1);
    index.insert(&chain(&text), endpoint(0));
    for slot in 1..20 {
        index.insert(&chain(&text[..slot as usize * 400]), endpoint(slot));
    }
    assert_eq!(index.stats().n_nodes, 20);
    (1..20).for_each(|slot| index.remove_endpoint(endpoint(slot)));
    index.insert(&chain(&text), endpoint(0));
    assert_eq!(index.stats().n_nodes, 1);
    let total = chain(&text).total_bytes();
    assert_eq!(matched(&index, &text, endpoint(0)), total);
    // Blocks near the end have 64 bytes, blocks at the start of a run 8: a run with a wrong depth would lose too many.
    index.limit_bytes(endpoint(0), total - 640);
    assert_eq!(matched(&index, &text, endpoint(0)), total - 640);
    assert_eq!(index.held_bytes(endpoint(0)), total - 640);
}

/// Checks that the fixture's chains are not empty.
#[test]
fn counts_blocks() {
    let index = index(10_000);
    let chain: Chain = chain(noise(8000, 1));
    index.insert(&chain, endpoint(0));
    assert_eq!(index.stats().n_blocks, u64::from(chain.n_blocks()));
    assert_eq!(index.held_blocks(endpoint(0)), u64::from(chain.n_blocks()));
    assert_eq!(index.held_blocks(endpoint(1)), 0);
}
