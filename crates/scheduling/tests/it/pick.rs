//! Each rule as a table, and properties that hold for all candidates.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use prefix_index::endpoint::EndpointId;
use proptest::prelude::{Strategy, any, proptest};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use scheduling::affinity::Affinity;
use scheduling::candidate::{AdapterState, Candidate, Load};
use scheduling::pick::{Ask, Decision, PickError, Policy, Reason, pick};

const PREFIX_CACHE: Policy = Policy::PrefixCache(Affinity::new(0.5));
/// Bytes of the request in every test.
const TOTAL: u64 = 1000;
const ASK: Ask = Ask { total_bytes: TOTAL, n_endpoints: NonZeroUsize::MIN };

fn idle() -> Load {
    Load { fresh: true, ..Load::default() }
}

fn busy(in_flight: u32) -> Load {
    Load { in_flight, ..idle() }
}

/// Candidates with slots 0, 1, 2, ….
fn candidates(loads: &[(Load, u64)]) -> Vec<Candidate> {
    let candidate = |(slot, &(load, matched_bytes)): (u32, &(Load, u64))| Candidate {
        endpoint: EndpointId::new(slot, 0),
        load,
        adapter: AdapterState::Irrelevant,
        matched_bytes,
    };
    (0..).zip(loads).map(candidate).collect()
}

fn decide(policy: &Policy, candidates: &[Candidate], seed: u64) -> Decision {
    pick(policy, candidates, ASK, &mut ChaCha8Rng::seed_from_u64(seed)).expect("there are candidates")
}

/// Asserts which slots are drawn over many seeds, each of them for `reason`.
fn check(policy: &Policy, loads: &[(Load, u64)], expected: (&[u32], Reason)) {
    let (expected_slots, expected_reason) = expected;
    let candidates = candidates(loads);
    let mut slots = BTreeSet::new();
    for seed in 0..200 {
        let decision = decide(policy, &candidates, seed);
        assert_eq!(decision.reason, expected_reason);
        assert_eq!(decision.endpoint, candidates[decision.candidate_idx].endpoint);
        slots.insert(decision.endpoint.slot());
    }
    assert_eq!(slots.into_iter().collect::<Vec<_>>(), expected_slots);
}

#[test]
fn load_is_queue_then_kv_usage_then_a_draw() {
    let waiting = |waiting| Load { waiting, ..idle() };
    let kv = |kv_usage| Load { kv_usage, ..idle() };
    for (loads, slots) in [
        (vec![idle(), idle(), idle()], vec![0, 1, 2]),
        (vec![busy(1), busy(0), busy(2)], vec![1]),
        (vec![waiting(3), waiting(1), waiting(1)], vec![1, 2]),
        (vec![Load { waiting: 2, ..busy(0) }, busy(1), Load { waiting: 1, ..busy(1) }], vec![1]),
        (vec![kv(0.3), kv(0.0), kv(1.0)], vec![1]),
        (vec![Load { kv_usage: 0.9, ..busy(0) }, busy(1)], vec![0]),
        (vec![kv(f64::NAN), kv(0.1), kv(0.2)], vec![0, 1, 2]),
        (vec![Load { running: 9, ..idle() }, idle()], vec![0, 1]),
        (vec![Load { waiting: u32::MAX, ..busy(u32::MAX) }, busy(u32::MAX - 1)], vec![1]),
    ] {
        let loads: Vec<_> = loads.into_iter().map(|load| (load, 0)).collect();
        check(&Policy::Default, &loads, (&slots, Reason::Load));
        check(&PREFIX_CACHE, &loads, (&slots, Reason::Load));
    }
}

#[test]
fn the_longest_match_above_the_threshold_wins() {
    for (loads, slots) in [
        (vec![(idle(), 0), (busy(2), 600), (idle(), 0)], vec![1]),
        (vec![(busy(2), 700), (idle(), 600)], vec![0]),
        (vec![(busy(2), 600), (busy(1), 600), (idle(), 599)], vec![1]),
        (vec![(idle(), 1000), (idle(), 1000), (idle(), 0)], vec![0, 1]),
        (vec![(busy(1), 501), (idle(), 500)], vec![0]),
    ] {
        check(&PREFIX_CACHE, &loads, (&slots, Reason::Prefix));
        // Negative control: the same candidates, placed only by load.
        let least = loads.iter().map(|(load, _)| load.in_flight).min();
        let by_load = decide(&Policy::Default, &candidates(&loads), 1);
        assert_eq!(Some(loads[by_load.candidate_idx].0.in_flight), least);
        assert_eq!(by_load.reason, Reason::Load);
    }
}

#[test]
fn the_threshold_itself_is_not_enough() {
    check(&PREFIX_CACHE, &[(busy(1), 500), (idle(), 0)], (&[1], Reason::Load));
    check(&PREFIX_CACHE, &[(busy(1), 501), (idle(), 0)], (&[0], Reason::Prefix));
    let decision = decide(&PREFIX_CACHE, &candidates(&[(idle(), 500), (busy(1), 0)]), 1);
    assert_eq!((decision.ratio, decision.reason), (0.5, Reason::Load));
    let low = Policy::PrefixCache(Affinity::new(0.0));
    check(&low, &[(busy(1), 1), (idle(), 0)], (&[0], Reason::Prefix));
    check(&low, &[(busy(1), 0), (idle(), 0)], (&[1], Reason::Load));
    let never = Policy::PrefixCache(Affinity::new(1.0));
    check(&never, &[(busy(1), 1000), (idle(), 0)], (&[1], Reason::Load));
}

#[test]
fn a_single_candidate_says_so() {
    check(&Policy::Default, &[(busy(3), 900)], (&[0], Reason::OnlyCandidate));
    check(&PREFIX_CACHE, &[(busy(3), 400)], (&[0], Reason::OnlyCandidate));
    check(&PREFIX_CACHE, &[(busy(3), 900)], (&[0], Reason::Prefix));
}

/// The picked slot and its fallbacks, in order.
fn ranked(policy: &Policy, loads: &[(Load, u64)], n_endpoints: usize) -> Vec<u32> {
    let candidates = candidates(loads);
    let ask = Ask { n_endpoints: NonZeroUsize::new(n_endpoints).expect("at least one"), ..ASK };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let decision = pick(policy, &candidates, ask, &mut rng).expect("there are candidates");
    let order = std::iter::once(decision.candidate_idx).chain(decision.fallbacks);
    order.map(|idx| candidates[idx].endpoint.slot()).collect()
}

#[test]
fn fallbacks_are_what_would_be_picked_without_those_before() {
    let loads =
        [(busy(3), 0), (busy(1), 0), (busy(4), 900), (busy(2), 600), (Load { fresh: false, ..idle() }, 0)];
    assert_eq!(ranked(&Policy::Default, &loads, 9), [1, 3, 0, 2, 4]);
    assert_eq!(ranked(&PREFIX_CACHE, &loads, 9), [2, 3, 1, 0, 4]);
    assert_eq!(ranked(&PREFIX_CACHE, &loads, 2), [2, 3]);
    assert_eq!(ranked(&PREFIX_CACHE, &loads, 1), [2]);
}

#[test]
fn no_candidates_is_an_error() {
    for policy in [Policy::Default, PREFIX_CACHE] {
        let picked = pick(&policy, &[], ASK, &mut ChaCha8Rng::seed_from_u64(1));
        assert_eq!(picked, Err(PickError::NoCandidates));
    }
}

#[test]
fn a_request_without_a_full_block_goes_by_load() {
    let candidates = candidates(&[(busy(1), 0), (idle(), 0)]);
    let decision =
        pick(&PREFIX_CACHE, &candidates, Ask { total_bytes: 0, ..ASK }, &mut ChaCha8Rng::seed_from_u64(1))
            .unwrap();
    assert_eq!((decision.endpoint.slot(), decision.reason, decision.ratio), (1, Reason::Load, 0.0));
}

#[test]
fn stale_endpoints_come_last() {
    let stale = |load: Load| Load { fresh: false, ..load };
    // A dead pod reports an empty queue forever, and still holds its prefixes.
    check(&Policy::Default, &[(stale(idle()), 0), (busy(5), 0)], (&[1], Reason::Load));
    check(&PREFIX_CACHE, &[(stale(idle()), 900), (busy(5), 0)], (&[1], Reason::Load));
    check(&PREFIX_CACHE, &[(stale(idle()), 900), (busy(2), 600), (idle(), 0)], (&[1], Reason::Prefix));
    // If no metrics are fresh, the old numbers do not count, but requests in flight and prefixes do.
    let full = Load { waiting: 9, kv_usage: 1.0, ..idle() };
    check(&Policy::Default, &[(stale(full), 0), (stale(idle()), 0)], (&[0, 1], Reason::Load));
    check(&Policy::Default, &[(stale(full), 0), (stale(busy(1)), 0)], (&[0], Reason::Load));
    check(&PREFIX_CACHE, &[(stale(full), 900), (stale(idle()), 0)], (&[0], Reason::Prefix));
}

/// The bytes that the request would wait for, here and elsewhere, decide whether it stays with its prefix.
#[test]
fn a_busy_holder_lets_go() {
    let computing = |uncached_bytes| Load { uncached_bytes, ..busy(1) };
    // 100 bytes × 1.1, 256 for the request ahead, and the work in flight; against 1000 bytes elsewhere and a margin of
    // 1024.
    for (loads, expected) in [
        (vec![(computing(1000), 900), (idle(), 0)], (0, Reason::Prefix)),
        (vec![(computing(1658), 900), (idle(), 0)], (0, Reason::Prefix)),
        (vec![(computing(1659), 900), (idle(), 0)], (1, Reason::Spill)),
        // Another holder is just as good: the request stays with its prefix.
        (vec![(computing(9000), 900), (idle(), 0), (idle(), 800)], (2, Reason::Prefix)),
        (vec![(computing(9000), 900), (computing(9000), 0)], (0, Reason::Prefix)),
        // Requests that are being answered also count, but less.
        (vec![(busy(3), 900), (idle(), 0)], (0, Reason::Prefix)),
        (vec![(busy(9), 900), (idle(), 0)], (1, Reason::Spill)),
        // A cache that is nearly full has no room for the answer.
        (vec![(Load { kv_usage: 0.9, ..idle() }, 900), (idle(), 0)], (0, Reason::Prefix)),
        (vec![(Load { kv_usage: 0.99, ..idle() }, 900), (idle(), 0)], (1, Reason::Spill)),
    ] {
        check(&PREFIX_CACHE, &loads, (&[expected.0], expected.1));
    }
    // Negative control: with an infinite margin the prefix always wins.
    let stubborn = Policy::PrefixCache(Affinity { spill_bytes: f64::INFINITY, ..Affinity::new(0.5) });
    check(&stubborn, &[(computing(1_000_000), 900), (idle(), 0)], (&[0], Reason::Prefix));
}

#[test]
fn without_a_prefix_the_least_work_wins() {
    let computing = |uncached_bytes| Load { uncached_bytes, ..busy(1) };
    check(&PREFIX_CACHE, &[(computing(600), 0), (computing(500), 0)], (&[1], Reason::Load));
    check(&PREFIX_CACHE, &[(computing(900), 0), (busy(3), 0)], (&[1], Reason::Load));
    // Negative control: the default policy counts only requests.
    check(&Policy::Default, &[(computing(900), 0), (busy(3), 0)], (&[0], Reason::Load));
    // A match that does not count saves nothing, so it decides nothing.
    check(&PREFIX_CACHE, &[(busy(1), 500), (idle(), 0)], (&[1], Reason::Load));
    check(&PREFIX_CACHE, &[(idle(), 500), (idle(), 0)], (&[0, 1], Reason::Load));
}

/// Arrivals between two scrapes see the same metrics; only the requests in flight differ.
#[test]
fn simultaneous_arrivals_spread() {
    let spread = |assume_load: bool| {
        let mut candidates = candidates(&[(idle(), 0); 4]);
        candidates[2].load.kv_usage = 0.5;
        candidates[0].load.waiting = 1;
        let mut n_picked = [0; 4];
        for seed in 0..19 {
            let decision = decide(&Policy::Default, &candidates, seed);
            n_picked[decision.candidate_idx] += 1;
            candidates[decision.candidate_idx].load.in_flight += u32::from(assume_load);
        }
        n_picked
    };
    assert_eq!(spread(true), [4, 5, 5, 5]);
    // Negative control: without requests in flight two endpoints get everything.
    let herd = spread(false);
    assert_eq!((herd[0], herd[2], herd[1] + herd[3]), (0, 0, 19));
}

#[test]
fn ties_are_drawn_evenly_and_repeatably() {
    let candidates = candidates(&[(idle(), 0); 5]);
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut n_picked = [0u32; 5];
    for _ in 0..10_000 {
        n_picked[pick(&Policy::Default, &candidates, ASK, &mut rng).unwrap().candidate_idx] += 1;
    }
    // 2,000 expected, standard deviation 40.
    assert!(n_picked.iter().all(|n| (1_800..2_200).contains(n)), "{n_picked:?}");
    assert_eq!(decide(&Policy::Default, &candidates, 3), decide(&Policy::Default, &candidates, 3));
}

#[test]
fn scores_follow_the_order_of_candidates() {
    let loads = [
        (Load { waiting: 2, kv_usage: 0.25, ..busy(3) }, 250),
        (Load { fresh: false, waiting: 2, kv_usage: 0.25, ..busy(3) }, 1000),
    ];
    let decision = decide(&Policy::Default, &candidates(&loads), 1);
    let scores: Vec<_> =
        decision.scores.iter().map(|score| (score.ratio, score.queue, score.kv_usage)).collect();
    assert_eq!(scores, [(0.25, 5, Some(0.25)), (1.0, 3, None)]);
}

/// Slots picked over many seeds, with reason and count, for endpoints given as `(adapter, queue)` by slot.
fn by_adapter(policy: &Policy, endpoints: &[(AdapterState, u32)]) -> Vec<(u32, Reason, usize)> {
    let mut candidates =
        candidates(&endpoints.iter().map(|(_, queue)| (busy(*queue), 0)).collect::<Vec<_>>());
    for (candidate, (adapter, _)) in candidates.iter_mut().zip(endpoints) {
        candidate.adapter = *adapter;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut picked: Vec<(u32, Reason, usize)> = Vec::new();
    for _ in 0..20_000 {
        let decision = pick(policy, &candidates, ASK, &mut rng).expect("there are candidates");
        let (slot, reason) = (decision.endpoint.slot(), decision.reason);
        match picked.iter_mut().find(|(seen, because, _)| (*seen, *because) == (slot, reason)) {
            Some((_, _, n)) => *n += 1,
            None => picked.push((slot, reason, 1)),
        }
    }
    picked.sort_by_key(|(_, _, n)| std::cmp::Reverse(*n));
    picked
}

#[test]
fn a_loaded_adapter_goes_before_load_until_the_queue_is_long() {
    use AdapterState::{Full, Irrelevant, Loaded, Room};
    for (endpoints, slot, reason) in [
        (vec![(Full, 0), (Loaded, 9)], 1, Reason::Adapter),
        (vec![(Full, 0), (Room, 9)], 1, Reason::Load),
        (vec![(Full, 0), (Loaded, 128)], 1, Reason::Adapter),
        (vec![(Full, 0), (Loaded, 129)], 0, Reason::Load),
        (vec![(Room, 300), (Loaded, 200), (Loaded, 201)], 1, Reason::Load),
        (vec![(Full, 3), (Full, 2)], 1, Reason::Load),
        (vec![(Loaded, 3), (Loaded, 2)], 1, Reason::Load),
        (vec![(Irrelevant, 3), (Irrelevant, 2)], 1, Reason::Load),
    ] {
        for policy in [Policy::Default, PREFIX_CACHE] {
            let picked = by_adapter(&policy, &endpoints);
            assert_eq!((picked[0].0, picked[0].1, picked[0].2), (slot, reason, 20_000), "{endpoints:?}");
        }
    }
    // If another endpoint has room, one request in a thousand goes there: 20 expected, standard deviation 4.5.
    let picked = by_adapter(&Policy::Default, &[(Loaded, 9), (Room, 0)]);
    assert_eq!((picked[0].0, picked[1].0, picked[1].1), (0, 1, Reason::Load));
    assert!((2..50).contains(&picked[1].2), "{picked:?}");
}

fn any_candidates() -> impl Strategy<Value = Vec<(Load, u64)>> {
    let load = (0..4u32, 0..4u32, 0..4u32, any::<bool>()).prop_map(|(waiting, in_flight, kv, fresh)| Load {
        waiting,
        running: 0,
        kv_usage: f64::from(kv) / 4.0,
        in_flight,
        uncached_bytes: 0,
        age: None,
        fresh,
    });
    proptest::collection::vec((load, 0..=TOTAL), 1..12)
}

proptest! {
    #[test]
    fn no_better_candidate_is_left_behind(loads in any_candidates(), seed in any::<u64>()) {
        let candidates = candidates(&loads);
        let decision = decide(&PREFIX_CACHE, &candidates, seed);
        let picked = candidates[decision.candidate_idx];
        let usable = |candidate: &&Candidate| candidate.load.fresh || candidates.iter().all(|other| !other.load.fresh);
        assert!(usable(&&picked));
        let work = |candidate: &Candidate| {
            let score = decision.scores.iter().find(|score| score.endpoint == candidate.endpoint);
            score.and_then(|score| score.work).expect("those that may be picked are weighed")
        };
        let usable: Vec<Candidate> = candidates.iter().filter(usable).copied().collect();
        let longest = usable.iter().map(|candidate| candidate.matched_bytes).max().unwrap();
        let least = usable.iter().map(work).fold(f64::INFINITY, f64::min);
        let holders = usable.iter().filter(|candidate| candidate.matched_bytes == longest);
        let least_of_holders = holders.map(work).fold(f64::INFINITY, f64::min);
        let expected = match decision.reason {
            Reason::Prefix if picked.matched_bytes == longest => least_of_holders,
            Reason::Prefix | Reason::Spill => {
                assert!(least_of_holders > least + Affinity::new(0.5).spill_bytes);
                least
            }
            Reason::Adapter | Reason::Load | Reason::OnlyCandidate => least,
        };
        assert_eq!(work(&picked), expected);
        assert_eq!(decision.reason == Reason::Prefix, picked.matched_bytes > TOTAL / 2);
        assert_eq!(matches!(decision.reason, Reason::Prefix | Reason::Spill), longest > TOTAL / 2);
    }
}
