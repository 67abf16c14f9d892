//! An engine that loses some of its blocks.

use crate::fixtures::{cached_tokens, engine, prompt, request, run};
use vllm_engine::event::KvEvent;
use vllm_engine::step::StepOutput;

#[test]
fn reserved_blocks_are_neither_free_nor_cached() {
    let mut engine = engine(|config| {
        config.n_blocks = 513;
        config.kv_events = true;
    });
    let request_1 = request(1, &prompt(160), 1);
    assert_eq!(cached_tokens(&mut engine, request_1), 0);
    engine.take_events();
    engine.set_reserved_blocks(505);
    let stats = engine.stats();
    assert_eq!(stats.free_blocks, 7);
    assert!((stats.kv_usage - 505.0 / 512.0).abs() < 1e-9);
    // 502 blocks never held anything; the other three are the tail of the cached prompt, which is lost first.
    let removed = engine.take_events();
    assert_eq!(removed.len(), 3);
    assert!(removed.iter().all(|event| matches!(event, KvEvent::BlockRemoved { .. })));
    engine.set_reserved_blocks(0);
    assert_eq!(engine.stats().free_blocks, 512);
    assert_eq!(cached_tokens(&mut engine, request(2, &prompt(160), 1)), 112);
    assert!(engine.reset_prefix_cache());
}

#[test]
fn a_reserve_waits_for_requests_to_let_go_and_holds_others_back() {
    let mut engine = engine(|config| config.n_blocks = 513);
    engine.add(request(1, &prompt(160), 40)).unwrap();
    assert!(engine.schedule().is_some());
    engine.complete(&mut StepOutput::default());
    engine.set_reserved_blocks(512);
    assert_eq!(engine.stats().free_blocks, 0);
    assert_eq!(engine.block_pool().n_reserved(), 502);
    // The running request needs an eleventh block, has to give up its ten, and these are taken.
    run(&mut engine);
    assert_eq!(engine.stats().preemptions, 1);
    assert_eq!((engine.stats().waiting, engine.stats().free_blocks), (1, 0));
    assert!(engine.reset_prefix_cache(), "no request holds a block");
    engine.set_reserved_blocks(100);
    assert_eq!(run(&mut engine).last().unwrap().output_idx, 39);
    assert_eq!(engine.stats().free_blocks, 412);
}
