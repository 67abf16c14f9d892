//! The tokens of a request for a pool that uses KV events, and the engine that provides them.

use std::sync::Arc;

use picking::request::TokenPrompts;
use prefix_index::blocks::{BlockIndex, TokenPrompt};
use scheduling::candidate::AdapterState;

use super::{Director, model};
use crate::datastore::{LiveEndpoint, LivePool};
use ext_proc::body::Api;
use ext_proc::pick_request::{Content, PickRequest, PromptTokens};

/// An engine that provides the token ids of a request.
#[derive(Debug)]
pub struct TokenSource {
    pub endpoint: Arc<LiveEndpoint>,
    /// The API that the request is for.
    pub api: Api,
    /// The engine's name for the request's model, if the pool has another.
    pub target_model: Option<String>,
}

impl LivePool {
    /// The name of the adapter for requests for `target_model`, if it is an adapter.
    pub(super) fn adapter(&self, target_model: &str) -> Option<String> {
        let is_adapter = |endpoint: &Arc<LiveEndpoint>| {
            endpoint.state.adapter_state(target_model) != AdapterState::Irrelevant
        };
        self.endpoints.iter().any(is_adapter).then(|| target_model.to_owned())
    }

    /// The tokens that engines look up in their caches for a request for `target_model`, or the reason why they are
    /// unknown. Neither in a pool that does not use KV events.
    pub(super) fn token_prompts(
        &self,
        tokens: PromptTokens,
        target_model: Option<&str>,
        salt: Option<String>,
        blocks: &BlockIndex,
    ) -> (Option<TokenPrompts>, Option<String>) {
        match tokens {
            PromptTokens::Known(prompts) if self.pool.goes_by_events() => {
                let adapter = target_model.and_then(|target_model| self.adapter(target_model));
                let with_adapter =
                    |prompt| TokenPrompt { adapter: adapter.clone(), salt: salt.clone(), ..prompt };
                let prompts = prompts.into_iter().map(with_adapter).collect();
                // The block size of the whole pool, even if the request may go only to a part of it.
                let block_size = blocks.block_size(self.endpoints.iter().map(|endpoint| endpoint.state.id()));
                (Some(TokenPrompts { prompts, block_size }), None)
            }
            PromptTokens::Unknown(reason) if self.pool.goes_by_events() => (None, Some(reason)),
            PromptTokens::Unasked | PromptTokens::Known(_) | PromptTokens::Unknown(_) => (None, None),
        }
    }
}

impl Director {
    /// The engine to ask for the token ids of `request` before it is decided, which is the least busy one of a pool
    /// that uses KV events. `None` if the decision needs no ids, because the pool uses no events or the request will be
    /// refused.
    #[must_use]
    pub fn needs_tokens(&self, request: &PickRequest) -> Option<TokenSource> {
        let Content::Body(body) = &request.content else { return None };
        let model = body.model.as_ref().ok().map(|model| model.name.as_str());
        let datastore = self.datastore.load();
        let pool = request.pool.as_ref().or(self.options.pool.as_ref());
        let live_pool = model::choose_pool(&datastore, pool, model).ok()?;
        let live_pool = Some(live_pool).filter(|live_pool| live_pool.pool.goes_by_events())?;
        self.options.compat.check(body, !live_pool.pool.models.is_empty()).ok()?;
        // The ids are the same for all targets.
        let rewritten = model.and_then(|model| live_pool.pool.rewrites.targets(model).first());
        let rewritten = rewritten.map(|target| target.name.as_str());
        let found = match rewritten.or(model) {
            Some(model) => model::find(&live_pool.pool, model).ok()?,
            None => None,
        };
        let endpoints = live_pool.endpoints.iter().filter(|endpoint| endpoint.state.is_reachable());
        let endpoint = endpoints.min_by_key(|endpoint| endpoint.state.in_flight())?;
        let target = found.and_then(|found| found.targets.first()).map(|target| target.name.as_str());
        Some(TokenSource {
            endpoint: Arc::clone(endpoint),
            api: body.api,
            target_model: target.or(rewritten).map(str::to_owned),
        })
    }
}
