//! Small engines and requests for the tests of the engine.

use std::sync::Arc;
use vllm_engine::config::EngineConfig;
use vllm_engine::engine::Engine;
use vllm_engine::request::{CacheReading, EngineRequest, FinishReason, RequestId};
use vllm_engine::step::{OutputToken, StepOutput};

/// The tutorial's first request with Qwen2.5's template: 127 tokens.
pub(crate) const ROUND1: [u32; 127] = [
    151644, 8948, 198, 2610, 525, 1207, 16948, 11, 3465, 553, 54364, 14817, 13, 1446, 525, 264, 10950, 17847,
    13, 151645, 198, 151644, 872, 198, 13048, 11, 1588, 594, 1045, 1849, 9934, 25, 15588, 15588, 15588,
    15588, 15588, 15588, 15588, 15588, 15588, 15588, 26676, 1196, 220, 18, 11, 1588, 525, 1045, 1008, 2266,
    25, 15588, 15588, 15588, 15588, 15588, 15588, 15588, 15588, 15588, 15588, 15588, 15588, 15588, 15588,
    15588, 15588, 15588, 15588, 15588, 15588, 2447, 1035, 1075, 311, 1273, 697, 11229, 13, 369, 419, 7428,
    358, 1035, 1075, 498, 311, 1486, 1147, 669, 13, 498, 646, 16282, 448, 279, 1809, 553, 19496, 304, 11293,
    13, 358, 686, 4637, 1493, 11293, 311, 279, 1809, 323, 943, 304, 894, 2033, 13, 525, 498, 5527, 30,
    151645, 198, 151644, 77091, 198,
];

/// Length of the system turn that Qwen2.5's template puts first and Qwen3's does not.
pub(crate) const N_SYSTEM_TURN: usize = 21;

pub(crate) fn engine(change: impl FnOnce(&mut EngineConfig)) -> Engine {
    let mut config = EngineConfig::default();
    change(&mut config);
    Engine::try_new(config).unwrap()
}

/// Makes a request that stops after `n_output` tokens (1000, 1001, …).
pub(crate) fn request(id: u64, prompt: &[u32], n_output: u32) -> EngineRequest {
    EngineRequest {
        id: RequestId(id),
        prompt: prompt.into(),
        output: (1000..1000 + n_output).collect::<Arc<[u32]>>(),
        finish: FinishReason::Stop,
        cache_salt: None,
        cache_reading: CacheReading::Read,
        lora: None,
        priority: 0,
    }
}

/// Makes `n` different tokens.
pub(crate) fn prompt(n: u32) -> Vec<u32> {
    (0..n).collect()
}

/// Steps until nothing is left to do, and returns all tokens in order.
pub(crate) fn run(engine: &mut Engine) -> Vec<OutputToken> {
    let mut tokens = Vec::new();
    let mut output = StepOutput::default();
    while engine.schedule().is_some() {
        engine.complete(&mut output);
        tokens.extend_from_slice(&output.tokens);
    }
    tokens
}

/// Adds a request, runs it to its end and returns how many of its prompt tokens were cached.
pub(crate) fn cached_tokens(engine: &mut Engine, request: EngineRequest) -> u32 {
    engine.add(request).unwrap();
    run(engine).last().unwrap().cached_tokens
}
