//! Differences of vLLM 0.8 and 0.11: order of free blocks, admission, counters, names of blocks.

use crate::fixtures::{ROUND1, cached_tokens, engine, prompt, request};
use vllm_engine::config::{ConfigError, EngineConfig};
use vllm_engine::engine::Engine;
use vllm_engine::hash::{ExtraKeys, HashSeed};
use vllm_engine::request::LoraAdapter;
use vllm_engine::step::StepOutput;
use vllm_engine::vllm_version::VllmVersion;

fn of(version: VllmVersion, n_blocks: u32) -> Engine {
    engine(|config| {
        config.version = version;
        config.n_blocks = n_blocks;
        config.max_model_len = 160;
    })
}

fn step(engine: &mut Engine) -> usize {
    let n_scheduled = engine.schedule().map_or(0, |plan| plan.scheduled.len());
    engine.complete(&mut StepOutput::default());
    n_scheduled
}

#[test]
fn partial_tails_are_reused_first_since_0_33() {
    let order = |version| {
        let mut engine = of(version, 13);
        // Blocks 1..=3, the last of them partly filled; then blocks 4..=5, likewise.
        cached_tokens(&mut engine, request(1, &prompt(40), 1));
        cached_tokens(&mut engine, request(2, &[7; 20], 1));
        engine.block_pool().free_order().collect::<Vec<_>>()
    };
    // The second request takes the first one's partial tail as its head.
    assert_eq!(order(VllmVersion::V0_33), [4, 5, 6, 7, 8, 9, 10, 11, 12, 2, 1, 3]);
    for version in [VllmVersion::V0_8, VllmVersion::V0_11] {
        assert_eq!(order(version), [6, 7, 8, 9, 10, 11, 12, 3, 2, 1, 5, 4]);
    }
}

#[test]
fn the_whole_input_must_fit_since_0_33() {
    // Of 10 blocks the first request holds 5; the second needs 7 in all, and 4 for its first chunk.
    let admitted = |version| {
        let mut engine = engine(|config| {
            config.version = version;
            config.n_blocks = 11;
            config.max_model_len = 160;
            config.max_num_batched_tokens = 130;
            config.long_prefill_token_threshold = 64;
        });
        engine.add(request(1, &[1; 70], 9)).unwrap();
        step(&mut engine);
        engine.add(request(2, &[2; 110], 1)).unwrap();
        step(&mut engine)
    };
    assert_eq!(admitted(VllmVersion::V0_33), 1);
    assert_eq!(admitted(VllmVersion::V0_11), 2);
    assert_eq!(admitted(VllmVersion::V0_8), 2);
}

#[test]
fn a_look_up_that_leads_nowhere_counted_before_0_33() {
    let counted = |version| {
        let mut engine = of(version, 11);
        engine.add(request(1, &[1; 100], 5)).unwrap();
        engine.add(request(2, &[2; 100], 1)).unwrap();
        (0..3).for_each(|_| assert_eq!(step(&mut engine), 1));
        engine.stats().prefix_cache_queries
    };
    assert_eq!(counted(VllmVersion::V0_33), 100);
    assert_eq!(counted(VllmVersion::V0_11), 100 + 3 * 100);
    // The unit is blocks: a 100-token prompt has 6 full ones.
    assert_eq!(counted(VllmVersion::V0_8), 6 + 3 * 6);
}

#[test]
fn the_null_block_counted_in_the_usage_of_0_8() {
    let idle = |version| of(version, 11).stats().kv_usage;
    assert!((idle(VllmVersion::V0_8) - 1.0 / 11.0).abs() < 1e-9);
    assert!(idle(VllmVersion::V0_11).abs() < 1e-9);
    assert!(idle(VllmVersion::V0_33).abs() < 1e-9);
}

/// Digests computed by Python: `sha256(pickle.dumps((none_hash, ids, extra), protocol=5))`, with extra as in vLLM 0.11.
#[test]
fn extra_keys_had_no_names_before_0_33() {
    let lora = LoraAdapter { id: 7, name: "x".to_owned(), path: "/p".to_owned() };
    let digest = |version, lora: Option<&LoraAdapter>, cache_salt: Option<&str>| {
        let config =
            EngineConfig { version, hash_seed: HashSeed::Text("0".to_owned()), ..EngineConfig::default() };
        config.block_hasher().hash(None, [&ROUND1[..16], &[]], ExtraKeys { lora, cache_salt }).to_string()
    };
    let check = |lora, salt, expected: &str| {
        assert_eq!(digest(VllmVersion::V0_11, lora, salt), expected);
        assert_ne!(digest(VllmVersion::V0_33, lora, salt), expected);
    };
    check(Some(&lora), None, "b17e6f414da8e22ba9f0ff3ad199381e44f233bb55d60445d57204d095456a7e");
    check(None, Some("abc"), "d334fd041593a105a2d43936937194e8d082fed6a98cad1d9fa7da519f7ca9b6");
    check(Some(&lora), Some("abc"), "c66e4842f57e3fe0ff2df8d4dd87e062dd7f81bacebd4f8759707d9923e02658");
    let plain = "4f8e8f538053217eee1ea5c8ed9ba0034009b56dd15ea71c37a4fb074f19d0bc";
    assert_eq!(digest(VllmVersion::V0_11, None, None), plain);
    assert_eq!(digest(VllmVersion::V0_33, None, None), plain);
}

#[test]
fn a_random_seed_is_the_parent_of_first_blocks() {
    let config = |byte| EngineConfig { hash_seed: HashSeed::Random([byte; 32]), ..EngineConfig::default() };
    let first = |byte| config(byte).block_hasher().hash(None, [&ROUND1[..16], &[]], ExtraKeys::default());
    assert_eq!(config(3).block_hasher().none_hash().0, [3; 32]);
    assert_ne!(first(3), first(4));
}

#[test]
fn a_watermark_stays_free_at_admission_and_not_after() {
    let with_watermark = |watermark| {
        let mut engine = engine(|config| {
            config.n_blocks = 21;
            config.max_model_len = 160;
            config.watermark = watermark;
        });
        // The first takes 16 of 20 blocks, the second needs 4 in all.
        engine.add(request(1, &[1; 120], 1)).unwrap();
        engine.add(request(2, &[2; 120], 20)).unwrap();
        engine.add(request(3, &[3; 60], 1)).unwrap();
        step(&mut engine)
    };
    assert_eq!(with_watermark(0.0), 3);
    // 10 % of 21 blocks are 2 blocks, which the third request would take.
    assert_eq!(with_watermark(0.1), 2);
    let invalid = EngineConfig { watermark: 1.0, ..EngineConfig::default() };
    assert_eq!(Engine::try_new(invalid).unwrap_err(), ConfigError::Watermark("1".to_owned()));
    let none_fits = EngineConfig { watermark: 0.95, ..EngineConfig::default() };
    assert!(matches!(Engine::try_new(none_fits), Err(ConfigError::PoolTooSmall { .. })));
}
