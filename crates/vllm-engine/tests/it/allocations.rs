//! In steady state a decode step allocates nothing, whether it fills blocks, hashes or evicts.

use crate::fixtures::{engine, request};
use vllm_engine::engine::Engine;
use vllm_engine::event::KvEvent;
use vllm_engine::step::StepOutput;

const BATCH: u32 = 64;
const N_STEPS: u32 = 200;

/// Makes an engine in which `BATCH` requests decode, after a first round that filled the pool with blocks to evict.
fn decoding(kv_events: bool) -> (Engine, StepOutput) {
    let mut engine = engine(|config| {
        config.kv_events = kv_events;
        config.n_blocks = 64 * 24 + 1;
        config.max_model_len = 1_024;
    });
    let mut output = StepOutput::default();
    for round in 0..2 {
        while engine.schedule().is_some() {
            engine.complete(&mut output);
        }
        for idx in 0..BATCH {
            let start = (round * BATCH + idx) * 1_000;
            let prompt: Vec<u32> = (start..start + 64).collect();
            engine.add(request(u64::from(start), &prompt, 300)).unwrap();
        }
    }
    while engine.schedule().is_some_and(|plan| plan.scheduled.iter().any(|scheduled| scheduled.is_prefill)) {
        engine.complete(&mut output);
    }
    engine.complete(&mut output);
    (engine, output)
}

fn decode(engine: &mut Engine, output: &mut StepOutput) {
    for _ in 0..N_STEPS {
        assert_eq!(engine.schedule().unwrap().n_tokens(), BATCH);
        engine.complete(output);
    }
}

#[test]
fn decoding_allocates_nothing() {
    let (mut engine, mut output) = decoding(false);
    let allocations = allocation_counter::measure(|| decode(&mut engine, &mut output));
    assert_eq!(allocations.count_total, 0);
}

#[test]
fn what_is_recorded_for_subscribers_is_seen_by_the_counter() {
    let (mut engine, mut output) = decoding(true);
    engine.take_events();
    let allocations = allocation_counter::measure(|| decode(&mut engine, &mut output));
    assert!(allocations.count_total > u64::from(BATCH * N_STEPS / 16));
    let evicts = |event: &KvEvent| matches!(event, KvEvent::BlockRemoved { .. });
    assert!(engine.take_events().iter().any(evicts), "the steps that are counted evict");
}
