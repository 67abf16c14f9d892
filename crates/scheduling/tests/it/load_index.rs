//! After any history of the fleet, its load index picks the same endpoint as a look at every endpoint.

use std::num::NonZeroUsize;

use prefix_index::endpoint::EndpointId;
use proptest::collection::{btree_map, vec};
use proptest::prelude::{BoxedStrategy, Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
use proptest::sample::select;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use scheduling::affinity::Affinity;
use scheduling::candidate::{AdapterState, Candidate, Load};
use scheduling::load_index::{CurrentLoad, LoadIndex, RankedPick};
use scheduling::pick::{Ask, Policy, pick};

/// More endpoints than fit into one word of a set.
const MOST_ENDPOINTS: usize = 150;

#[derive(Clone, Debug)]
enum Event {
    Set(usize, CurrentLoad),
    Request { total_bytes: u64, matches: Vec<(usize, u64)> },
}

fn any_affinity() -> impl Strategy<Value = Affinity> {
    let weights = (
        select(vec![0.0, 0.5, 1.0]),
        select(vec![0.0, 256.0]),
        select(vec![0.0, 0.1, 3.0]),
        select(vec![0.0, 4096.0, 1e9]),
        select(vec![0.0, 1024.0, f64::INFINITY]),
    );
    weights.prop_map(|(threshold, queue_bytes, stall, kv_bytes, spill_bytes)| Affinity {
        queue_bytes,
        stall,
        kv_bytes,
        spill_bytes,
        ..Affinity::new(threshold)
    })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    prop_oneof![
        Just(Policy::Default),
        Just(Policy::PrefixCache(Affinity::new(0.5))),
        any_affinity().prop_map(Policy::PrefixCache),
    ]
}

fn any_load() -> impl Strategy<Value = CurrentLoad> {
    let uncached_bytes = prop_oneof![
        4 => select(vec![0, 1024, 2048, 1 << 60, (1 << 60) + 1]),
        1 => 0..5000_u64,
    ];
    let kv_usage = select(vec![-0.0, 0.0, 0.25, 0.5, 0.9, 0.95, 0.987_654_321, 1.0]);
    let in_flight = prop_oneof![9 => 0..3_u32, 1 => Just(u32::MAX)];
    (0..2_u32, in_flight, uncached_bytes, kv_usage).prop_map(
        |(waiting, in_flight, uncached_bytes, kv_usage)| CurrentLoad {
            waiting,
            kv_usage,
            in_flight,
            uncached_bytes,
        },
    )
}

/// Loads of 4096 bytes by default: a full cache counts 4096, and half of it from 0.95 on. They are equal except for
/// rounding.
fn any_load_of_4096_bytes() -> impl Strategy<Value = CurrentLoad> {
    (0..=32_u32, 0..2_u32).prop_map(|(share, in_flight)| CurrentLoad {
        waiting: 0,
        kv_usage: 0.9 + 0.1 * f64::from(share) / 32.0,
        in_flight,
        uncached_bytes: u64::from(32 - share) * 128,
    })
}

fn any_request(n_endpoints: usize) -> impl Strategy<Value = Event> {
    let share = select(vec![0, 200, 500, 501, 800, 1000, 1100]);
    let matches = btree_map(0..n_endpoints, share, 0..8);
    (prop_oneof![Just(0), Just(1024), 0..1_000_000_u64], matches).prop_map(|(total_bytes, matches)| {
        let bytes = |(idx, share)| (idx, total_bytes * share / 1000);
        Event::Request { total_bytes, matches: matches.into_iter().map(bytes).rev().collect() }
    })
}

/// Histories in which every endpoint gets a load first; some begin with an idle fleet.
fn any_history() -> impl Strategy<Value = (usize, Vec<Event>)> {
    prop_oneof![1..6_usize, 1..MOST_ENDPOINTS].prop_flat_map(|n_endpoints| {
        let events = |load: BoxedStrategy<CurrentLoad>| {
            let first = proptest::option::weighted(0.8, vec(load.clone(), n_endpoints));
            let set = (0..n_endpoints, load).prop_map(|(idx, load)| Event::Set(idx, load));
            let later = vec(prop_oneof![set, any_request(n_endpoints)], 1..40);
            (first, later).prop_map(|(first, later)| {
                let first = first.into_iter().flatten().enumerate().map(|(idx, load)| Event::Set(idx, load));
                first.chain(later).collect()
            })
        };
        let events = prop_oneof![events(any_load().boxed()), events(any_load_of_4096_bytes().boxed())];
        (Just(n_endpoints), events)
    })
}

fn linear(
    policy: &Policy,
    loads: &[CurrentLoad],
    (total_bytes, matches): (u64, &[(usize, u64)]),
    rng: &mut ChaCha8Rng,
) -> RankedPick {
    let candidate = |(idx, load): (usize, &CurrentLoad)| {
        let CurrentLoad { waiting, kv_usage, in_flight, uncached_bytes } = *load;
        let load = Load { waiting, running: 0, kv_usage, in_flight, uncached_bytes, age: None, fresh: true };
        let matched = matches.iter().find(|(holder, _)| *holder == idx).map_or(0, |(_, matched)| *matched);
        let endpoint = EndpointId::new(u32::try_from(idx).expect("few endpoints"), 0);
        Candidate { endpoint, load, adapter: AdapterState::Irrelevant, matched_bytes: matched }
    };
    let candidates: Vec<Candidate> = loads.iter().enumerate().map(candidate).collect();
    let ask = Ask { total_bytes, n_endpoints: NonZeroUsize::MIN };
    let decision = pick(policy, &candidates, ask, rng).expect("there are candidates");
    let endpoint_idx = decision.candidate_idx;
    RankedPick {
        endpoint_idx,
        reason: decision.reason,
        uncached_bytes: decision.scores[endpoint_idx].uncached_bytes,
    }
}

proptest! {
    // It takes some hundreds of cases to find two costs that differ only by rounding.
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn load_index_picks_what_a_look_at_everyone_does(
        policy in any_policy(),
        (n_endpoints, events) in any_history(),
        seed in any::<u64>(),
    ) {
        let mut load_index = LoadIndex::new(policy, n_endpoints);
        let mut loads = vec![CurrentLoad::default(); n_endpoints];
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut rng_of_linear = rng.clone();
        for event in events {
            match event {
                Event::Set(idx, load) => {
                    load_index.set(idx, load);
                    loads[idx] = load;
                }
                Event::Request { total_bytes, matches } => {
                    let expected = linear(&policy, &loads, (total_bytes, &matches), &mut rng_of_linear);
                    assert_eq!(load_index.pick(total_bytes, &matches, &mut rng), Some(expected));
                    assert_eq!(rng, rng_of_linear, "as much was drawn");
                }
            }
        }
    }
}

#[test]
fn nobody_is_picked_of_nobody() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    assert_eq!(LoadIndex::new(Policy::Default, 0).pick(1000, &[], &mut rng), None);
}
