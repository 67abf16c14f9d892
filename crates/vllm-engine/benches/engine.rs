//! Speed of the engine itself: tokens scheduled at batch 64, blocks hashed, prefixes found.

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher, black_box};
use vllm_engine::config::EngineConfig;
use vllm_engine::engine::Engine;
use vllm_engine::hash::{BlockHash, BlockHasher, DEFAULT_SEED, ExtraKeys, HashAlgorithm};
use vllm_engine::latency::LatencyModel;
use vllm_engine::request::{CacheReading, EngineRequest, FinishReason, RequestId};
use vllm_engine::step::StepOutput;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

const BATCH: u32 = 64;

fn config() -> EngineConfig {
    EngineConfig { n_blocks: 40_000, max_model_len: 40_000, ..EngineConfig::default() }
}

fn request(id: u32, prompt: Vec<u32>, n_output: u32) -> EngineRequest {
    EngineRequest {
        id: RequestId(u64::from(id)),
        prompt: prompt.into(),
        output: vec![7; n_output as usize].into(),
        finish: FinishReason::Length,
        cache_salt: None,
        cache_reading: CacheReading::Read,
        lora: None,
        priority: 0,
    }
}

/// Makes an engine in which `BATCH` requests with a context of 500 tokens decode.
fn decoding(n_steps: u32) -> (Engine, StepOutput) {
    let mut engine = Engine::try_new(config()).expect("the settings are sound");
    let mut output = StepOutput::default();
    for id in 0..BATCH {
        let prompt = (id * 1_000..id * 1_000 + 500).collect();
        engine.add(request(id, prompt, n_steps + BATCH)).expect("the request fits");
    }
    while engine.schedule().is_some_and(|plan| plan.scheduled.iter().any(|scheduled| scheduled.is_prefill)) {
        engine.complete(&mut output);
    }
    engine.complete(&mut output);
    (engine, output)
}

/// Schedules, times and completes 160 decode steps.
#[divan::bench]
fn decode_at_batch_64(bencher: Bencher<'_, '_>) {
    const N_STEPS: u32 = 160;
    let model = LatencyModel::preset("a10-doc").expect("the preset exists");
    bencher.counter(ItemsCount::new(BATCH * N_STEPS)).with_inputs(|| decoding(N_STEPS)).bench_local_refs(
        |(engine, output)| {
            for _ in 0..N_STEPS {
                let plan = engine.schedule().expect("requests decode");
                black_box(model.step_time(plan));
                engine.complete(output);
            }
        },
    );
}

/// Hashes a chain of 128 blocks of 16 tokens; items are tokens.
#[divan::bench(args = [HashAlgorithm::Sha256, HashAlgorithm::Sha256Cbor])]
fn hash_2048_tokens(bencher: Bencher<'_, '_>, algorithm: HashAlgorithm) {
    let tokens: Vec<u32> = (100_000..102_048).collect();
    let mut hasher = BlockHasher::new(algorithm, DEFAULT_SEED);
    bencher.counter(ItemsCount::new(tokens.len())).bench_local(move || {
        tokens.chunks_exact(16).fold(None::<BlockHash>, |parent, tokens| {
            Some(hasher.hash(parent, [tokens, &[]], ExtraKeys::default()))
        })
    });
}

/// Admits a prompt of 32,000 tokens that is cached except for its last block: hashed, found, held and released.
#[divan::bench]
fn admit_a_cached_prompt_of_32000_tokens(bencher: Bencher<'_, '_>) {
    let mut engine = Engine::try_new(config()).expect("the settings are sound");
    let mut output = StepOutput::default();
    let prompt: Vec<u32> = (0..32_000).collect();
    let run = |engine: &mut Engine, output: &mut StepOutput, id| {
        engine.add(request(id, prompt.clone(), 1)).expect("the request fits");
        while engine.schedule().is_some() {
            engine.complete(output);
        }
    };
    run(&mut engine, &mut output, 0);
    bencher.counter(ItemsCount::new(32_000_u32)).bench_local(move || run(&mut engine, &mut output, 1));
}
