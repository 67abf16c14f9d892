//! Readers and writers at the same time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use prefix_index::endpoint::EndpointId;
use prefix_index::matches::Matches;

use crate::fixtures::{chain, endpoint, index, matched, noise};

/// Writers insert, evict and remove while readers check that no answer contains what was never inserted: endpoint n
/// only ever gets texts whose first block is its own, or the shared text.
#[test]
fn answers_stay_true_while_the_index_changes() {
    const N_WRITERS: u32 = 3;
    let index = index(2_000);
    let shared = noise(4096, 0);
    let own = |slot: u32| noise(4096, 1000 + u64::from(slot));
    index.insert(&chain(&shared), endpoint(N_WRITERS));
    let done = AtomicBool::new(false);
    let n_lookups: u64 = thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let (shared, others) = (chain(&shared), [0, 1, 2].map(|slot| chain(own(slot))));
                    let mut matches = Matches::new();
                    let mut n_lookups = 0;
                    while !done.load(Ordering::Relaxed) || n_lookups < 100 {
                        index.longest_match(&shared, &mut matches);
                        assert_eq!(matches.bytes(endpoint(N_WRITERS)), 4096, "nobody touches this one");
                        for (slot, other) in (0..).zip(&others) {
                            index.longest_match(other, &mut matches);
                            assert!(
                                matches
                                    .iter()
                                    .all(|(endpoint, bytes)| endpoint.slot() == slot && bytes <= 4096)
                            );
                        }
                        n_lookups += 4;
                    }
                    n_lookups
                })
            })
            .collect();
        let writers: Vec<_> = (0..N_WRITERS)
            .map(|slot| {
                let (index, shared) = (&index, &shared);
                scope.spawn(move || {
                    for generation in 0..20 {
                        let endpoint = EndpointId::new(slot, generation);
                        for round in 0..12u16 {
                            index.insert(&chain(own(slot)), endpoint);
                            index.insert(&chain(&shared[..256 * (1 + usize::from(round))]), endpoint);
                            let unique = noise(
                                2048,
                                1_000_000 * u64::from(slot + 1)
                                    + u64::from(generation) * 100
                                    + u64::from(round),
                            );
                            index.insert(&chain([&own(slot)[..1024], &unique].concat()), endpoint);
                        }
                        index.remove_endpoint(endpoint);
                    }
                })
            })
            .collect();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        done.store(true, Ordering::Relaxed);
        readers.into_iter().map(|reader| reader.join().unwrap()).sum()
    });
    assert!(n_lookups >= 200);
    let stats = index.stats();
    let n_shared = u64::from(chain(&shared).n_blocks());
    assert_eq!((stats.n_endpoints, stats.n_blocks, stats.n_held_blocks), (1, n_shared, n_shared));
    assert_eq!(matched(&index, &shared, endpoint(N_WRITERS)), 4096);
}
