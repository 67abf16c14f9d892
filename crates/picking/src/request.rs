//! A request as far as picks depend on it.

use std::num::NonZeroUsize;

use prefix_index::blocks::TokenPrompt;
use prefix_index::chain::Chain;
use scheduling::pick::Policy;

use crate::estimate::CacheReading;

/// A request that needs an endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub policy: Policy,
    /// Most endpoints to name: the picked one and its fallbacks.
    pub n_endpoints: NonZeroUsize,
    /// The name that engines are asked for, if it is known.
    pub target_model: Option<&'a str>,
    /// The hash chain of each prompt; none if prefixes do not count.
    pub chains: &'a [Chain],
    /// The same in tokens, for a pool that goes by events.
    pub tokens: Option<&'a TokenPrompts>,
    /// Length of the text that the chains are made of.
    pub prompt_bytes: u64,
    pub reading: CacheReading,
}

/// A request's prompts in tokens, for a pool that goes by events.
#[derive(Debug)]
pub struct TokenPrompts {
    pub prompts: Vec<TokenPrompt>,
    /// Tokens of a block of the pool's engines, once one of them has stored any.
    pub block_size: Option<u32>,
}

impl Request<'_> {
    /// Bytes of the prompts that lie in full blocks, which matches are measured against.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.chains.iter().map(Chain::total_bytes).sum()
    }
}
