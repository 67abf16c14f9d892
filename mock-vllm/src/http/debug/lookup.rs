//! Finds the part of a prompt that the prefix cache would have if the prompt were admitted now.

use super::super::Pod;
use super::super::body::Fields;
use super::super::error::ApiError;
use super::super::ground_truth::PrefixHit;
use super::super::prompt::PromptInput;
use super::super::request::TextRequest;
use super::super::wire::Api;
use bytes::Bytes;
use serde::Serialize;
use std::sync::Arc;
use vllm_engine::block_pool::BlockIdx;
use vllm_engine::prefix::{PromptPrefix, cached_prefix};
use vllm_engine::request::CacheReading;
use vllm_engine::vllm_version::VllmVersion;

#[derive(Debug, Serialize)]
pub(super) struct Lookup {
    pod: String,
    #[serde(flatten)]
    hit: PrefixHit,
    /// Blocks in order of position, with the numbers of `/debug/cache`.
    blocks: Vec<BlockIdx>,
}

/// Prompt that the body asks about.
#[derive(Debug)]
struct Question {
    model: Option<String>,
    prompt: PromptInput,
    cache_salt: Option<String>,
    cache_reading: CacheReading,
}

/// Looks a prompt up. `body` is the body of a chat or of a completion, or `{"prompt_token_ids": [..]}`, optionally with
/// `model` and `cache_salt`.
///
/// # Errors
/// Fails for what the request's endpoint rejects before it counts the prompt's tokens, and if the engine is dead.
pub(super) async fn look_up(pod: Arc<Pod>, body: Bytes) -> Result<Lookup, ApiError> {
    let dead = |_dead| ApiError::engine_dead();
    let config = pod.driver.inspect(|view| view.engine.config().clone()).await.map_err(dead)?;
    let asked = pod.clone();
    let hash = move || {
        let Question { model, prompt, cache_salt, cache_reading } =
            Question::parse(asked.config.version, &body)?;
        let model = asked.resolve_model(model.as_deref())?;
        let tokens = asked.prompt_ids(&prompt)?;
        let (lora, cache_salt) = (model.lora.as_deref(), cache_salt.as_deref());
        let prefix = PromptPrefix { tokens: &tokens, lora, cache_salt, cache_reading };
        Ok((tokens.len(), prefix.hashes(&config)))
    };
    let hashed = tokio::task::spawn_blocking(hash).await;
    let (n_tokens, hashes) = hashed.map_err(|_panicked| ApiError::engine_dead())??;
    let look = pod.driver.inspect(move |view| cached_prefix(view.engine.block_pool(), &hashes));
    let blocks = look.await.map_err(dead)?;
    let block_size = pod.config.block_size;
    let n_blocks = u32::try_from(blocks.len()).expect("a pool counts its blocks in u32");
    let hit = PrefixHit::new(n_blocks.saturating_mul(block_size.get()), n_tokens, block_size);
    Ok(Lookup { pod: pod.config.pod_name.clone(), hit, blocks })
}

// === impl Question ===

impl Question {
    fn parse(version: VllmVersion, body: &[u8]) -> Result<Self, ApiError> {
        let mut fields = Fields::parse(body)?;
        let api = if fields.has("prompt_token_ids") {
            let ids = fields.integers("prompt_token_ids").unwrap_or_default();
            let model = fields.string("model").filter(|model| !model.is_empty());
            let cache_salt = fields.string("cache_salt");
            fields.finish()?;
            let prompt = PromptInput::TokenIds(ids);
            return Ok(Self { model, prompt, cache_salt, cache_reading: CacheReading::Read });
        } else if fields.has("messages") {
            Api::Chat
        } else {
            Api::Completion
        };
        let TextRequest { model, prompts, cache_salt, logprobs, .. } =
            TextRequest::parse(api, version, body)?;
        let prompt = prompts.into_iter().next().unwrap_or(PromptInput::TokenIds(Vec::new()));
        Ok(Self { model, prompt, cache_salt, cache_reading: logprobs.cache_reading() })
    }
}
