//! A step has at most `max_loras` adapters: requests for others wait and do not delay anyone else.

use crate::fixtures::{engine, prompt, request};
use proptest::prelude::*;
use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroU32;
use std::sync::Arc;
use vllm_engine::config::{EngineConfig, SchedulingPolicy};
use vllm_engine::engine::Engine;
use vllm_engine::request::{EngineRequest, LoraAdapter, RequestId};
use vllm_engine::step::StepOutput;
use vllm_engine::vllm_version::VllmVersion;

/// Makes a request for adapter `lora`; 0 means none.
fn with_lora(request: EngineRequest, lora: u32) -> EngineRequest {
    let adapter = (lora > 0)
        .then(|| Arc::new(LoraAdapter { id: lora, name: format!("lora-{lora}"), path: "/p".into() }));
    EngineRequest { lora: adapter, ..request }
}

fn limited(config: &mut EngineConfig, max_loras: u32) {
    config.max_loras = NonZeroU32::new(max_loras);
}

/// Runs one step. Returns the requests in it, how many wait, and how many of these are deferred.
fn step(engine: &mut Engine) -> (Vec<u64>, usize, usize) {
    let in_step =
        engine.schedule().map(|plan| plan.scheduled.iter().map(|scheduled| scheduled.id.0).collect());
    let stats = engine.stats();
    engine.complete(&mut StepOutput::default());
    (in_step.unwrap_or_default(), stats.waiting, stats.deferred)
}

#[test]
fn others_pass_a_deferred_request_which_goes_first_once_it_may() {
    let mut engine = engine(|config| limited(config, 1));
    for (id, lora, n_output) in [(1, 1, 2), (2, 2, 1), (3, 3, 1), (4, 1, 1), (5, 0, 1)] {
        engine.add(with_lora(request(id, &prompt(40), n_output), lora)).unwrap();
    }
    assert_eq!(step(&mut engine), (vec![1, 4, 5], 2, 2));
    assert_eq!(step(&mut engine), (vec![1], 2, 2));
    // A later arrival does not overtake those that were deferred before it came.
    engine.add(with_lora(request(6, &prompt(40), 1), 3)).unwrap();
    assert_eq!(step(&mut engine), (vec![2], 2, 2));
    assert_eq!(step(&mut engine), (vec![3, 6], 0, 0));
    assert!(!engine.has_requests());
}

#[test]
fn before_0_33_they_went_back_to_the_one_queue() {
    let order = |version| {
        let mut engine = engine(|config| {
            limited(config, 1);
            config.version = version;
        });
        for (id, lora, n_output) in [(1, 1, 1), (2, 2, 1), (3, 3, 1)] {
            engine.add(with_lora(request(id, &prompt(40), n_output), lora)).unwrap();
        }
        let steps: Vec<_> = (0..3).map(|_| step(&mut engine)).collect();
        assert!(steps.iter().all(|(_, _, n_deferred)| *n_deferred == 0 || version == VllmVersion::V0_33));
        steps.into_iter().map(|(in_step, ..)| in_step[0]).collect::<Vec<_>>()
    };
    assert_eq!(order(VllmVersion::V0_33), [1, 2, 3]);
    assert_eq!(order(VllmVersion::V0_11), [1, 3, 2]);
    assert_eq!(order(VllmVersion::V0_8), [1, 2, 3]);
}

#[test]
fn without_the_limit_nobody_is_deferred() {
    let mut engine = engine(|_| {});
    (1..5).for_each(|id: u32| engine.add(with_lora(request(id.into(), &prompt(40), 1), id)).unwrap());
    assert_eq!(step(&mut engine), (vec![1, 2, 3, 4], 0, 0));
}

#[test]
fn a_more_important_request_is_not_behind_a_deferred_one() {
    let mut engine = engine(|config| {
        limited(config, 1);
        config.policy = SchedulingPolicy::Priority;
        config.max_num_seqs = 2;
    });
    engine.add(with_lora(request(1, &prompt(40), 3), 1)).unwrap();
    engine.add(EngineRequest { priority: 5, ..with_lora(request(2, &prompt(40), 1), 2) }).unwrap();
    assert_eq!(step(&mut engine), (vec![1], 1, 1));
    engine.add(EngineRequest { priority: 1, ..request(3, &prompt(40), 1) }).unwrap();
    engine.add(EngineRequest { priority: 9, ..request(4, &prompt(40), 1) }).unwrap();
    assert_eq!(step(&mut engine), (vec![1, 3], 2, 1));
}

#[test]
fn a_deferred_request_can_be_aborted() {
    let mut engine = engine(|config| limited(config, 1));
    engine.add(with_lora(request(1, &prompt(40), 5), 1)).unwrap();
    engine.add(with_lora(request(2, &prompt(40), 1), 2)).unwrap();
    assert_eq!(step(&mut engine), (vec![1], 1, 1));
    assert!(engine.abort(RequestId(2)));
    assert_eq!(step(&mut engine), (vec![1], 0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// For all arrivals and aborts, no step has more adapters than it may, and every request ends.
    #[test]
    fn the_limit_holds_and_nobody_starves(
        arrivals in prop::collection::vec((0_u32..5, 1_u32..200, 1_u32..20, 0_i32..3, 0_usize..3), 1..40),
        aborted in prop::collection::btree_set(0_u64..40, 0..10),
        max_loras in 1_u32..4,
        by_priority: bool,
    ) {
        let mut engine = engine(|config| {
            limited(config, max_loras);
            config.n_blocks = 60;
            config.max_model_len = 500;
            config.max_num_seqs = 6;
            config.policy = if by_priority { SchedulingPolicy::Priority } else { SchedulingPolicy::Fcfs };
        });
        let mut lora_of = HashMap::new();
        let step = |engine: &mut Engine, lora_of: &HashMap<u64, u32>| {
            let Some(plan) = engine.schedule() else { return 0 };
            let in_step: BTreeSet<u32> =
                plan.scheduled.iter().map(|scheduled| lora_of[&scheduled.id.0]).filter(|lora| *lora > 0).collect();
            assert!(in_step.len() <= max_loras as usize, "{in_step:?}");
            let stats = engine.stats();
            assert!(stats.deferred <= stats.waiting);
            engine.complete(&mut StepOutput::default());
            1
        };
        for (id, (lora, n_prompt, n_output, priority, n_steps)) in (0_u64..).zip(arrivals) {
            lora_of.insert(id, lora);
            let request = with_lora(request(id, &prompt(n_prompt), n_output), lora);
            engine.add(EngineRequest { priority, ..request }).unwrap();
            (0..n_steps).for_each(|_| { step(&mut engine, &lora_of); });
            if aborted.contains(&id) {
                engine.abort(RequestId(id / 2));
            }
        }
        let mut n_steps = 0;
        while engine.has_requests() {
            prop_assert_eq!(step(&mut engine, &lora_of), 1, "requests wait and nothing runs");
            n_steps += 1;
            prop_assert!(n_steps < 5_000);
        }
        prop_assert_eq!(engine.stats().free_blocks, 59);
    }
}
