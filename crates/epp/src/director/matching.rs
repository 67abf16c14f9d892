//! How much of a request's prompt each endpoint holds: as its engine says, or else as past picks make believe.

use std::cell::RefCell;
use std::sync::Arc;

use inference_api::object::ObjectKey;
use prefix_index::blocks::{BlockIndex, TokenPrompt};
use prefix_index::chain::Chain;
use prefix_index::endpoint::EndpointId;
use prefix_index::matches::Matches;
use scheduling::candidate::AdapterState;

use super::{Director, model};
use crate::candidates::{Member, Roll};
use crate::inquiry::PromptTokens;

/// Shorter matches save nothing: vLLM's prefix cache holds blocks of 16 tokens, of about four bytes each. Without this
/// bound, all prompts of a few words would match each other's first block and go to one pod.
const MIN_MATCHED_BYTES: u64 = 64;

thread_local! {
    /// Memory of a lookup's answer, used again by the next lookup of the thread.
    static MATCHES: RefCell<Matches> = RefCell::new(Matches::new());
}

/// What an endpoint holds of a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Matched {
    /// Of the prompts' chains: what the policy goes by.
    pub(super) bytes: u64,
    /// The same as past picks make believe.
    pub(super) estimated_bytes: u64,
    /// Tokens of it that the engine says it has; `None` where that is not known.
    pub(super) saved_tokens: Option<u64>,
}

/// A request's prompts in tokens, for a pool that goes by events.
#[derive(Debug)]
pub(super) struct TokenPrompts {
    pub(super) prompts: Vec<TokenPrompt>,
    /// Tokens of a block of the pool's engines, once one of them has stored any.
    pub(super) block_size: Option<u32>,
}

impl Roll {
    /// The name of the adapter that requests for `target_model` get, if it is one.
    pub(super) fn adapter(&self, target_model: &str) -> Option<String> {
        let is_adapter =
            |member: &Arc<Member>| member.adapter_state(target_model) != AdapterState::Irrelevant;
        self.members.iter().any(is_adapter).then(|| target_model.to_owned())
    }

    /// What engines look for in their caches when a request for `target_model` comes, or why that is not known. Neither in a
    /// pool that does not go by events.
    pub(super) fn told(
        &self,
        tokens: PromptTokens,
        target_model: Option<&str>,
        salt: Option<String>,
        blocks: &BlockIndex,
    ) -> (Option<TokenPrompts>, Option<String>) {
        match tokens {
            PromptTokens::Known(prompts) if self.pool.goes_by_events() => {
                let adapter = target_model.and_then(|target_model| self.adapter(target_model));
                let told = |prompt| TokenPrompt { adapter: adapter.clone(), salt: salt.clone(), ..prompt };
                let prompts = prompts.into_iter().map(told).collect();
                // Those of the whole pool, also when the request may go to a part of it only.
                let block_size = blocks.block_size(self.members.iter().map(|member| member.id()));
                (Some(TokenPrompts { prompts, block_size }), None)
            }
            PromptTokens::Unknown(reason) if self.pool.goes_by_events() => (None, Some(reason)),
            PromptTokens::Unasked | PromptTokens::Known(_) | PromptTokens::Unknown(_) => (None, None),
        }
    }
}

impl Director {
    /// By member. Where an engine tells what it holds, its word counts.
    pub(super) fn matched(
        &self,
        chains: &[Chain],
        tokens: Option<&TokenPrompts>,
        members: &[&Arc<Member>],
    ) -> Vec<Matched> {
        let mut estimated = vec![Matched::default(); members.len()];
        MATCHES.with_borrow_mut(|matches| {
            for chain in chains {
                self.index.longest_match(chain, matches);
                for (matched, member) in estimated.iter_mut().zip(members) {
                    let bytes = matches.bytes(member.id());
                    if bytes >= MIN_MATCHED_BYTES {
                        matched.bytes += bytes;
                        matched.estimated_bytes += bytes;
                    }
                }
            }
        });
        let Some(tokens) = tokens else { return estimated };
        let endpoints: Vec<EndpointId> = members.iter().map(|member| member.id()).collect();
        let TokenPrompts { prompts, block_size } = tokens;
        let saved = self.blocks.saved_tokens(prompts, &endpoints, *block_size);
        let n_tokens = prompts.iter().map(|prompt| prompt.tokens.len() as u64).sum::<u64>().max(1);
        let total_bytes: u64 = chains.iter().map(Chain::total_bytes).sum();
        let precise = |(estimate, saved_tokens): (Matched, Option<u64>)| Matched {
            bytes: saved_tokens.map_or(estimate.bytes, |saved| saved * total_bytes / n_tokens),
            saved_tokens,
            ..estimate
        };
        estimated.into_iter().zip(saved).map(precise).collect()
    }

    /// The endpoint to ask for a prompt's token ids: the least busy of a pool that goes by events; and its name for `model`,
    /// if that is another. `None` for requests of other pools.
    #[must_use]
    pub fn tokenizing_member(
        &self,
        pool: Option<&ObjectKey>,
        model: Option<&str>,
    ) -> Option<(Arc<Member>, Option<String>)> {
        let roster = self.roster.load();
        let roll = model::choose_pool(&roster, pool.or(self.options.pool.as_ref()), model).ok()?;
        let roll = Some(roll).filter(|roll| roll.pool.goes_by_events())?;
        let members = roll.members.iter().filter(|member| member.is_reachable());
        let member = members.min_by_key(|member| member.in_flight())?;
        // The ids are the same for all targets.
        let target = model.and_then(|model| roll.pool.models.get(model)?.targets.first());
        Some((Arc::clone(member), target.map(|target| target.name.clone())))
    }
}
