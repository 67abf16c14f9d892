//! Decisions of the engine, request by request: hits, chunks, seats, preemption, aborts.

use crate::fixtures::{ROUND1, cached_tokens, engine, prompt, request, run};
use std::sync::Arc;
use vllm_engine::config::{ConfigError, EngineConfig, SchedulingPolicy};
use vllm_engine::engine::Engine;
use vllm_engine::event::KvEvent;
use vllm_engine::request::{AddError, CacheReading, EngineRequest, FinishReason, LoraAdapter, RequestId};
use vllm_engine::step::{Origin, ScheduledRequest, StepOutput};

/// Runs one step and returns which requests compute how many tokens.
fn step(engine: &mut Engine) -> Vec<(u64, u32)> {
    let scheduled = engine
        .schedule()
        .map(|plan| plan.scheduled.iter().map(|scheduled| (scheduled.id.0, scheduled.n_new_tokens)).collect())
        .unwrap_or_default();
    engine.complete(&mut StepOutput::default());
    scheduled
}

/// Makes a follow-up: all of an earlier request, its output included, and `n_new` other tokens.
fn follow_up(id: u64, earlier: &EngineRequest, n_new: u32) -> EngineRequest {
    let tokens: Vec<u32> =
        earlier.prompt.iter().chain(&*earlier.output).copied().chain(50_000..50_000 + n_new).collect();
    request(id, &tokens, 3)
}

#[test]
fn a_second_round_hits_the_first_with_its_answer() {
    let mut engine = engine(|_| {});
    let round1 = request(1, &ROUND1, 24);
    let round2 = follow_up(2, &round1, 79);
    assert_eq!((round1.prompt.len(), round2.prompt.len()), (127, 230));
    assert_eq!(cached_tokens(&mut engine, round1), 0);
    // 127 + 24 tokens without the last, whose KV was never written, are 9 full blocks.
    assert_eq!(cached_tokens(&mut engine, round2), 144);
    let stats = engine.stats();
    assert_eq!((stats.prefix_cache_queries, stats.prefix_cache_hits), (357, 144));
}

#[test]
fn without_prefix_caching_nothing_hits() {
    let mut engine = engine(|config| {
        config.prefix_caching = false;
        config.kv_events = true;
    });
    let round1 = request(1, &ROUND1, 24);
    let round2 = follow_up(2, &round1, 79);
    assert_eq!(cached_tokens(&mut engine, round1), 0);
    assert_eq!(cached_tokens(&mut engine, round2), 0);
    let stats = engine.stats();
    assert_eq!((stats.prefix_cache_queries, stats.prefix_cache_hits), (0, 0));
    assert_eq!(engine.take_events(), []);
    assert_eq!(stats.free_blocks, 6_225);
}

#[test]
fn the_last_token_is_always_computed() {
    let mut engine = engine(|_| {});
    assert_eq!(cached_tokens(&mut engine, request(1, &prompt(128), 1)), 0);
    assert_eq!(cached_tokens(&mut engine, request(2, &prompt(128), 1)), 112);
    assert_eq!(cached_tokens(&mut engine, request(3, &prompt(129), 1)), 128);
    assert_eq!(cached_tokens(&mut engine, request(4, &prompt(15), 1)), 0);
}

#[test]
fn salts_and_adapters_keep_prefixes_apart() {
    let mut engine = engine(|_| {});
    let mut id = 0;
    let mut cached = |salt: Option<&str>, lora: Option<&str>| {
        id += 1;
        let lora =
            lora.map(|name| Arc::new(LoraAdapter { id: 1, name: name.to_owned(), path: "/p".to_owned() }));
        let request =
            EngineRequest { cache_salt: salt.map(Into::into), lora, ..request(id, &prompt(100), 1) };
        cached_tokens(&mut engine, request)
    };
    for (salt, lora) in
        [(None, None), (Some("a"), None), (Some("b"), None), (None, Some("x")), (Some("a"), Some("x"))]
    {
        assert_eq!(cached(salt, lora), 0, "{salt:?} {lora:?} is new");
        assert_eq!(cached(salt, lora), 96, "{salt:?} {lora:?} is known");
    }
}

#[test]
fn a_request_that_must_not_read_the_cache_fills_it_all_the_same() {
    let mut engine = engine(|_| {});
    let unread = |id| EngineRequest { cache_reading: CacheReading::Skip, ..request(id, &prompt(100), 1) };
    assert_eq!(cached_tokens(&mut engine, unread(1)), 0);
    assert_eq!(cached_tokens(&mut engine, unread(2)), 0);
    assert_eq!(cached_tokens(&mut engine, request(3, &prompt(100), 1)), 96);
    let stats = engine.stats();
    assert_eq!((stats.prefix_cache_queries, stats.prefix_cache_hits), (100, 96));
}

#[test]
fn a_twin_admitted_in_the_same_step_hits() {
    let mut engine = engine(|_| {});
    engine.add(request(1, &prompt(100), 2)).unwrap();
    engine.add(request(2, &prompt(100), 2)).unwrap();
    assert_eq!(step(&mut engine), [(1, 100), (2, 4)]);
    assert_eq!(engine.stats().free_blocks, 6_225 - 7 - 1, "six blocks are shared");
}

#[test]
fn decodes_come_first_and_prefill_fills_the_budget() {
    let mut engine = engine(|config| config.max_num_batched_tokens = 100);
    engine.add(request(1, &prompt(50), 10)).unwrap();
    assert_eq!(step(&mut engine), [(1, 50)]);
    engine.add(request(2, &(1_000..1_230).collect::<Vec<_>>(), 2)).unwrap();
    assert_eq!(step(&mut engine), [(1, 1), (2, 99)]);
    assert_eq!(step(&mut engine), [(1, 1), (2, 99)]);
    assert_eq!(step(&mut engine), [(1, 1), (2, 32)]);
    assert_eq!(step(&mut engine), [(1, 1), (2, 1)], "the last chunk gave the first token");
}

#[test]
fn long_prefills_are_capped_when_asked() {
    let mut engine = engine(|config| config.long_prefill_token_threshold = 40);
    engine.add(request(1, &prompt(100), 1)).unwrap();
    assert_eq!([step(&mut engine), step(&mut engine), step(&mut engine)], [[(1, 40)], [(1, 40)], [(1, 20)]]);
}

#[test]
fn without_chunked_prefill_a_prompt_waits_for_a_whole_budget() {
    let mut engine = engine(|config| {
        config.chunked_prefill = false;
        config.max_model_len = 100;
        config.max_num_batched_tokens = 100;
    });
    engine.add(request(1, &prompt(60), 3)).unwrap();
    engine.add(request(2, &(500..560).collect::<Vec<_>>(), 3)).unwrap();
    assert_eq!(step(&mut engine), [(1, 60)], "60 and 60 are more than the budget");
    assert_eq!(step(&mut engine), [(1, 1), (2, 60)]);
}

#[test]
fn seats_are_limited() {
    let mut engine = engine(|config| config.max_num_seqs = 2);
    (1..=3).for_each(|id| engine.add(request(id, &prompt(10), 2)).unwrap());
    assert_eq!(step(&mut engine).len(), 2);
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting), (2, 1));
}

#[test]
fn a_prompt_waits_until_all_of_it_fits() {
    let mut engine = engine(|config| {
        config.n_blocks = 11;
        config.max_model_len = 160;
        config.max_num_batched_tokens = 16;
    });
    engine.add(request(1, &prompt(90), 2)).unwrap();
    engine.add(request(2, &(1_000..1_100).collect::<Vec<_>>(), 2)).unwrap();
    (0..5).for_each(|_| assert_eq!(step(&mut engine), [(1, 16)]));
    // Six tokens of budget and four blocks are left, but the second prompt needs seven in all.
    assert_eq!(step(&mut engine), [(1, 10)]);
    assert_eq!(engine.stats().waiting, 1);
    assert_eq!(run(&mut engine).iter().filter(|token| token.finished.is_some()).count(), 2);
}

/// Makes two requests that outgrow a pool of ten usable blocks.
fn crowded(policy: SchedulingPolicy, priorities: [i32; 2]) -> Engine {
    let mut engine = engine(|config| {
        config.n_blocks = 11;
        config.max_model_len = 160;
        config.policy = policy;
    });
    for (id, priority) in (1..).zip(priorities) {
        let start = u32::try_from(id).unwrap() * 1_000;
        let prompt: Vec<u32> = (start..start + 75).collect();
        engine.add(EngineRequest { priority, ..request(id, &prompt, 60) }).unwrap();
    }
    engine
}

#[test]
fn fcfs_preempts_the_last_and_it_comes_back_to_its_blocks() {
    let mut engine = crowded(SchedulingPolicy::Fcfs, [9, 0]);
    let mut preempted = Vec::new();
    let mut resumed: Vec<ScheduledRequest> = Vec::new();
    while let Some(plan) = engine.schedule() {
        preempted.extend_from_slice(&plan.preempted);
        resumed.extend(plan.scheduled.iter().filter(|scheduled| scheduled.origin == Origin::Resumed));
        engine.complete(&mut StepOutput::default());
    }
    assert_eq!(preempted, [RequestId(2)]);
    assert_eq!(resumed.len(), 1);
    // The first request needs all ten blocks except one: it evicts the second's from the tail.
    assert_eq!((resumed[0].id, resumed[0].n_computed_before), (RequestId(2), 16));
    let stats = engine.stats();
    assert_eq!((stats.preemptions, stats.preempted_queries, stats.preempted_hits), (1, 81, 16));
    assert_eq!(
        (stats.prefix_cache_queries, stats.prefix_cache_hits),
        (150, 0),
        "coming back is counted apart"
    );
    assert_eq!(stats.free_blocks, 10);
}

#[test]
fn priority_preempts_the_least_important() {
    let mut engine = crowded(SchedulingPolicy::Priority, [9, 0]);
    let preempted = std::iter::from_fn(|| {
        let preempted = engine.schedule()?.preempted.clone();
        engine.complete(&mut StepOutput::default());
        Some(preempted)
    });
    assert_eq!(preempted.flatten().collect::<Vec<_>>(), [RequestId(1)]);
}

#[test]
fn a_victim_gives_back_the_budget_it_had_in_the_step() {
    let mut engine = engine(|config| {
        config.policy = SchedulingPolicy::Priority;
        config.n_blocks = 7;
        config.max_model_len = 96;
        config.max_num_batched_tokens = 32;
        config.long_prefill_token_threshold = 16;
    });
    let arrive = |engine: &mut Engine, id: u64, priority, n_prompt| {
        let start = u32::try_from(id).unwrap() * 1_000;
        let prompt: Vec<u32> = (start..start + n_prompt).collect();
        engine.add(EngineRequest { priority, ..request(id, &prompt, 60) }).unwrap();
    };
    arrive(&mut engine, 1, 9, 16);
    assert_eq!(step(&mut engine), [(1, 16)]);
    arrive(&mut engine, 2, 0, 64);
    arrive(&mut engine, 3, 1, 48);
    assert_eq!(step(&mut engine), [(1, 1), (2, 16), (3, 15)]);
    assert_eq!(step(&mut engine), [(1, 1), (2, 16), (3, 15)]);
    assert_eq!(engine.stats().free_blocks, 0);
    // The first has its token planned when the second finds no block; its token goes to the third.
    assert_eq!(step(&mut engine), [(2, 16), (3, 16)]);
    assert_eq!(engine.stats().preemptions, 1);
}

#[test]
fn priority_admits_by_value_then_arrival() {
    let mut engine = engine(|config| {
        config.policy = SchedulingPolicy::Priority;
        config.max_num_seqs = 1;
    });
    for (id, priority) in [(1, 5), (2, 0), (3, 5), (4, 0)] {
        engine.add(EngineRequest { priority, ..request(id, &prompt(10), 1) }).unwrap();
    }
    let order: Vec<u64> = run(&mut engine).iter().map(|token| token.id.0).collect();
    assert_eq!(order, [2, 4, 1, 3]);
}

#[test]
fn tokens_come_in_order_and_the_last_says_why() {
    let mut engine = engine(|_| {});
    engine.add(request(7, &prompt(20), 3)).unwrap();
    let tokens = run(&mut engine);
    let seen: Vec<_> = tokens.iter().map(|token| (token.output_idx, token.token, token.finished)).collect();
    assert_eq!(seen, [(0, 1000, None), (1, 1001, None), (2, 1002, Some(FinishReason::Stop))]);
    assert!(!engine.has_requests());
}

#[test]
fn max_model_len_cuts_the_output() {
    let mut engine = engine(|config| config.max_model_len = 30);
    engine.add(request(1, &prompt(20), 50)).unwrap();
    let tokens = run(&mut engine);
    assert_eq!(tokens.len(), 10);
    assert_eq!(tokens[9].finished, Some(FinishReason::Length));
}

#[test]
fn an_abort_frees_blocks_and_leaves_the_full_ones_cached() {
    let mut engine = engine(|config| config.max_num_seqs = 1);
    engine.add(request(1, &prompt(100), 50)).unwrap();
    engine.add(request(2, &prompt(100), 50)).unwrap();
    step(&mut engine);
    assert!(engine.abort(RequestId(2)), "a waiting one");
    assert!(engine.abort(RequestId(1)), "a running one");
    assert!(!engine.abort(RequestId(1)), "it is gone");
    assert!(engine.schedule().is_none());
    let stats = engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.free_blocks), (0, 0, 6_225));
    assert_eq!(cached_tokens(&mut engine, request(3, &prompt(100), 1)), 96);
}

#[test]
fn an_abort_while_the_step_runs_yields_no_token_even_if_its_place_is_taken() {
    let mut engine = engine(|_| {});
    engine.add(request(1, &prompt(10), 5)).unwrap();
    engine.add(request(2, &prompt(10), 5)).unwrap();
    assert_eq!(engine.schedule().unwrap().scheduled.len(), 2);
    engine.abort(RequestId(1));
    engine.add(request(3, &prompt(10), 5)).unwrap();
    let mut output = StepOutput::default();
    engine.complete(&mut output);
    assert_eq!(output.tokens.iter().map(|token| token.id.0).collect::<Vec<_>>(), [2]);
    assert_eq!(run(&mut engine).len(), 4 + 5);
}

#[test]
fn events_tell_what_is_stored_and_removed() {
    let mut engine = engine(|config| {
        config.kv_events = true;
        config.n_blocks = 5;
        config.max_model_len = 64;
    });
    let salt: Arc<str> = "s".into();
    cached_tokens(
        &mut engine,
        EngineRequest { cache_salt: Some(salt.clone()), ..request(1, &prompt(31), 3) },
    );
    let events = engine.take_events();
    let [first, second] = events.as_slice() else { panic!("{events:?}") };
    let KvEvent::BlockStored { block_hashes, parent: None, token_ids, block_size: 16, cache_salt, .. } =
        first
    else {
        panic!("{first:?}")
    };
    assert_eq!((token_ids, cache_salt), (&prompt(16), &Some(salt)));
    let root = block_hashes[0];
    let KvEvent::BlockStored { parent, token_ids, cache_salt: None, .. } = second else {
        panic!("{second:?}")
    };
    assert_eq!(*parent, Some(root));
    assert_eq!(token_ids.last(), Some(&1000), "the second block ends with the first output token");
    // Four usable blocks, two of them cached: a request of 60 tokens evicts both, the tail first.
    cached_tokens(&mut engine, request(2, &(2_000..2_060).collect::<Vec<_>>(), 1));
    let removed: Vec<_> = engine
        .take_events()
        .into_iter()
        .filter_map(|event| match event {
            KvEvent::BlockRemoved { block_hash } => Some(block_hash),
            KvEvent::BlockStored { .. } | KvEvent::AllBlocksCleared => None,
        })
        .collect();
    assert_eq!(removed.len(), 2);
    assert_eq!(removed[1], root);
}

#[test]
fn reset_forgets_the_cache_unless_blocks_are_held() {
    let mut engine = engine(|config| config.kv_events = true);
    engine.add(request(1, &prompt(100), 5)).unwrap();
    step(&mut engine);
    assert!(!engine.reset_prefix_cache());
    run(&mut engine);
    assert!(engine.reset_prefix_cache());
    assert_eq!(engine.take_events().last(), Some(&KvEvent::AllBlocksCleared));
    assert_eq!(cached_tokens(&mut engine, request(2, &prompt(100), 1)), 0);
}

#[test]
fn impossible_requests_are_refused() {
    let mut engine = engine(|config| config.max_model_len = 100);
    engine.add(request(1, &prompt(10), 1)).unwrap();
    assert_eq!(engine.add(request(1, &prompt(10), 1)), Err(AddError::Duplicate(RequestId(1))));
    assert_eq!(engine.add(request(2, &[], 1)), Err(AddError::EmptyPrompt));
    assert_eq!(engine.add(request(2, &prompt(10), 0)), Err(AddError::EmptyOutput));
    let too_long = AddError::PromptTooLong { n_tokens: 100, max_model_len: 100 };
    assert_eq!(engine.add(request(2, &prompt(100), 1)), Err(too_long));
    assert_eq!(engine.stats().waiting, 1);
}

#[test]
fn impossible_settings_are_refused() {
    let refused = |change: fn(&mut EngineConfig)| {
        let mut config = EngineConfig::default();
        change(&mut config);
        Engine::try_new(config).unwrap_err()
    };
    assert_eq!(refused(|config| config.block_size = 0), ConfigError::Zero("block_size"));
    let too_small = ConfigError::PoolTooSmall { max_model_len: 8_192, needed: 512, usable: 511 };
    assert_eq!(refused(|config| config.n_blocks = 512), too_small);
    let budget = ConfigError::BudgetTooSmall { max_num_batched_tokens: 2_048, max_model_len: 8_192 };
    assert_eq!(refused(|config| config.chunked_prefill = false), budget);
    assert!(Engine::try_new(EngineConfig { n_blocks: 513, ..EngineConfig::default() }).is_ok());
}
