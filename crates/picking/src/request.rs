//! The properties of a request that picks depend on.

use std::num::NonZeroUsize;

use prefix_index::blocks::TokenPrompt;
use prefix_index::chain::Chain;
use scheduling::pick::Policy;

use crate::estimate::CacheReading;

/// A request that needs an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub policy: Policy,
    /// Most endpoints to return: the picked one and its fallbacks.
    pub n_endpoints: NonZeroUsize,
    /// The name of the model in the engines, if it is known.
    pub target_model: Option<&'a str>,
    /// Hash chain of each prompt; empty if prefixes do not count.
    pub chains: &'a [Chain],
    /// The prompts as tokens, for a pool that uses KV events.
    pub tokens: Option<&'a TokenPrompts>,
    /// Length of the text of the chains, in bytes.
    pub prompt_bytes: u64,
    pub reading: CacheReading,
}

/// A request's prompts as tokens, for a pool that uses KV events.
#[derive(Debug)]
pub struct TokenPrompts {
    pub prompts: Vec<TokenPrompt>,
    /// Tokens in a block of the pool's engines, known after one of them has stored any.
    pub block_size: Option<u32>,
}

impl Request<'_> {
    /// Bytes in full blocks of the prompts, with which matches are compared.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.chains.iter().map(Chain::total_bytes).sum()
    }
}
