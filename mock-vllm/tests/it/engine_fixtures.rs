//! Small engines and requests, for tests of the code around the engine.

use crate::tutorial;
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Duration;
use vllm_engine::config::EngineConfig;
use vllm_engine::engine::Engine;
use vllm_engine::request::{CacheReading, EngineRequest, FinishReason, RequestId};
use vllm_engine::step::StepOutput;
use vllm_text::tokens::Tokenizer;
use vllm_text::tokens::chat::{Chat, ChatMessage};
use vllm_text::tokens::chat_template::{ChatTemplate, ChatTemplateConfig};

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

/// Steps until nothing is left to do.
pub(crate) fn run(engine: &mut Engine) {
    let mut output = StepOutput::default();
    while engine.schedule().is_some() {
        engine.complete(&mut output);
    }
}

/// Returns the tutorial's first request with Qwen2.5's template: 127 tokens.
pub(crate) fn round1_ids() -> Vec<u32> {
    let body: Value = serde_json::from_str(tutorial::ROUND1).unwrap();
    let message = ChatMessage::new("user", body["messages"][0]["content"].as_str().unwrap());
    let variables = Map::from_iter([("add_generation_prompt".to_owned(), Value::from(true))]);
    let chat = Chat { messages: vec![message], variables, ..Chat::default() };
    let config = ChatTemplateConfig::default();
    ChatTemplate::try_new(Tokenizer::qwen25(), config, || Duration::ZERO).unwrap().encode(&chat).unwrap()
}
