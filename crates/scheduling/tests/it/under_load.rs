//! The purpose of the policy: it holds up where pure affinity fails, and loses nothing where affinity is best. Each
//! control removes one part of the policy and shows the loss. Only ratios of one simulation are asserted.

use scheduling::affinity::Affinity;
use scheduling::pick::Policy;

use crate::fleet::router::Routing;
use crate::fleet::workload::{self, Workload};
use crate::fleet::{Figures, simulate};

const OURS: Affinity = Affinity::new(0.5);

/// A workload under four policies.
struct Comparison {
    round_robin: Figures,
    least_request: Figures,
    pure_affinity: Figures,
    ours: Figures,
}

#[expect(clippy::print_stdout, reason = "a comparison that fails shows its figures")]
fn compare(workload: &Workload) -> Comparison {
    let comparison = Comparison {
        round_robin: simulate(workload, Routing::RoundRobin),
        least_request: simulate(workload, Routing::LeastRequest),
        pure_affinity: simulate(workload, Routing::PureAffinity),
        ours: simulate(workload, Routing::Picker(Policy::PrefixCache(OURS))),
    };
    let Comparison { round_robin, least_request, pure_affinity, ours } = &comparison;
    println!("{workload:?}");
    println!("round robin {round_robin:?}\nleast request {least_request:?}");
    println!("pure affinity {pure_affinity:?}\nours {ours:?}");
    comparison
}

fn without(affinity: Affinity, workload: &Workload) -> Figures {
    simulate(workload, Routing::Picker(Policy::PrefixCache(affinity)))
}

fn forgetful(workload: &Workload) -> Figures {
    simulate(workload, Routing::ForgetfulPicker(Policy::PrefixCache(OURS)))
}

#[test]
fn affinity_is_above_all_where_caches_thrash() {
    let Comparison { round_robin, least_request, pure_affinity, ours } = compare(&workload::THRASH);
    assert!(ours.ttft < 0.55 * round_robin.ttft && ours.ttft < 0.55 * least_request.ttft);
    assert!(ours.ttft < 0.97 * pure_affinity.ttft && ours.p99 < 0.8 * pure_affinity.p99);
    assert!(ours.hit > pure_affinity.hit - 0.02 && ours.hit > 2.5 * round_robin.hit);
    // Control: the choice that is cheapest for each request alone spoils the caches for all.
    let greedy = Affinity { spill_bytes: 0.0, stall: 0.0, queue_bytes: 0.0, ..OURS };
    assert!(without(greedy, &workload::THRASH).hit < ours.hit - 0.05);
}

#[test]
fn affinity_pays_though_the_caches_are_too_small() {
    let Comparison { round_robin, least_request, pure_affinity, ours } = compare(&workload::OVERCOMMITTED);
    assert!(ours.ttft < 0.75 * round_robin.ttft && ours.ttft < 0.6 * least_request.ttft);
    assert!(ours.ttft < 0.95 * pure_affinity.ttft && ours.hit > 3.0 * round_robin.hit);
}

#[test]
fn long_documents_stay_where_they_were_read() {
    let Comparison { round_robin, least_request, pure_affinity, ours } = compare(&workload::DOCUMENTS);
    assert!(ours.ttft < 0.45 * round_robin.ttft && ours.ttft < 0.45 * least_request.ttft);
    assert!(ours.ttft < 1.02 * pure_affinity.ttft && ours.p99 < 0.95 * pure_affinity.p99);
    assert!(ours.hit > pure_affinity.hit - 0.03);
    let Comparison { round_robin, least_request, pure_affinity, ours } = compare(&workload::FEW_DOCUMENTS);
    assert!(ours.ttft < 0.6 * round_robin.ttft && ours.ttft < 0.6 * least_request.ttft);
    assert!(ours.ttft < 1.05 * pure_affinity.ttft);
}

#[test]
fn a_hot_prefix_spills_before_it_hurts() {
    let Comparison { round_robin, least_request, pure_affinity, ours } = compare(&workload::HOT);
    assert!(ours.ttft < 0.6 * pure_affinity.ttft && ours.ttft < 0.6 * least_request.ttft);
    assert!(ours.tpot < 0.5 * pure_affinity.tpot && ours.tpot < 0.85 * least_request.tpot);
    assert!(ours.ttft < 0.6 * round_robin.ttft && ours.hit > 0.95);
    // Control: with an infinite margin all of it lands on one pod.
    let stubborn = Affinity { spill_bytes: f64::INFINITY, ..OURS };
    assert!(without(stubborn, &workload::HOT).tpot > 2.0 * ours.tpot);
    let Comparison { round_robin, least_request, pure_affinity, ours } = compare(&workload::WARM);
    assert!(ours.ttft < 0.98 * pure_affinity.ttft && ours.tpot < 0.95 * pure_affinity.tpot);
    assert!(ours.ttft < 0.75 * round_robin.ttft && ours.ttft < 0.75 * least_request.ttft);
}

#[test]
fn what_is_cached_everywhere_is_spread_by_requests() {
    if test_skips::skips_slow() {
        return;
    }
    let Comparison { least_request, pure_affinity, ours, .. } = compare(&workload::REPEATED);
    assert!(ours.ttft < 0.85 * pure_affinity.ttft && ours.ttft < 0.6 * least_request.ttft);
    assert!(ours.tpot < 0.6 * pure_affinity.tpot && ours.tpot < 0.85 * least_request.tpot);
    // Control: if requests ahead cost nothing, the first pod is as good as any.
    assert!(without(Affinity { queue_bytes: 0.0, ..OURS }, &workload::REPEATED).tpot > 1.5 * ours.tpot);
}

#[test]
fn nothing_is_lost_where_nothing_is_shared() {
    if test_skips::skips_slow() {
        return;
    }
    let Comparison { round_robin, least_request, pure_affinity, ours } = compare(&workload::UNIQUE);
    assert!(ours.ttft < 0.9 * least_request.ttft && ours.ttft < 0.9 * pure_affinity.ttft);
    assert!(ours.ttft < 1.06 * round_robin.ttft);
    // Control: with scraped metrics alone, pods count as idle long after they are busy.
    assert!(forgetful(&workload::UNIQUE).ttft > 1.2 * ours.ttft);
}

#[test]
fn conversations_stay_and_do_not_collide() {
    let Comparison { round_robin, least_request, pure_affinity, ours } = compare(&workload::CHATS);
    assert!(ours.ttft < 0.6 * round_robin.ttft && ours.ttft < 0.5 * least_request.ttft);
    assert!(ours.p99 < 0.8 * pure_affinity.p99 && ours.hit > pure_affinity.hit - 0.02);
}

#[test]
fn simultaneous_arrivals_are_spread_as_evenly_as_in_turn() {
    let Comparison { round_robin, least_request, ours, .. } = compare(&workload::BURSTS);
    assert!(ours.ttft < 1.01 * round_robin.ttft && ours.ttft < 1.01 * least_request.ttft);
    // Control: without the requests just sent, a burst goes to the pod that looked best before it.
    assert!(forgetful(&workload::BURSTS).ttft > 1.3 * ours.ttft);
}
