//! The part of a request's prompt that each endpoint holds: from KV events, or else from past picks.

use std::borrow::Borrow;
use std::sync::Arc;

use prefix_index::blocks::BlockIndex;
use prefix_index::endpoint::EndpointId;
use prefix_index::index::PrefixIndex;
use prefix_index::matches::Matches;

use crate::endpoint::EndpointState;
use crate::estimate::CacheReading;
use crate::request::{Request, TokenPrompts};

/// Shortest match that counts. Shorter ones save nothing: vLLM's prefix cache holds blocks of 16 tokens, of about four
/// bytes each. Without this bound, all prompts of a few words would match each other's first block and go to one pod.
const MIN_MATCHED_BYTES: u64 = 64;

/// The part of a prompt that an endpoint holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Matched {
    /// Bytes of the prompts' chains, which the policy uses.
    pub bytes: u64,
    /// Bytes of the prompts' chains according to past picks.
    pub estimated_bytes: u64,
    /// Cached tokens of the prompt according to KV events; `None` if they are unknown.
    pub saved_tokens: Option<u64>,
}

/// The part of the request that each endpoint holds. KV events, if there are any, override the estimate.
pub(crate) fn matched<E: Borrow<EndpointState>>(
    request: &Request<'_>,
    endpoints: &[&Arc<E>],
    (index, blocks): (&PrefixIndex, &BlockIndex),
    matches: &mut Matches,
) -> Vec<Matched> {
    let mut estimated = vec![Matched::default(); endpoints.len()];
    if request.reading == CacheReading::Skipped {
        return estimated;
    }
    let id = |endpoint: &&Arc<E>| -> EndpointId { (***endpoint).borrow().id() };
    for chain in request.chains {
        index.longest_match(chain, matches);
        for (matched, endpoint) in estimated.iter_mut().zip(endpoints) {
            let bytes = counted(matches.bytes(id(endpoint)));
            matched.bytes += bytes;
            matched.estimated_bytes += bytes;
        }
    }
    let Some(tokens) = request.tokens else { return estimated };
    let ids: Vec<EndpointId> = endpoints.iter().map(id).collect();
    let TokenPrompts { prompts, block_size } = tokens;
    let saved = blocks.saved_tokens(prompts, &ids, *block_size);
    let n_tokens = prompts.iter().map(|prompt| prompt.tokens.len() as u64).sum::<u64>();
    let total_bytes = request.total_bytes();
    let precise = |(estimate, saved_tokens): (Matched, Option<u64>)| Matched {
        bytes: saved_tokens.map_or(estimate.bytes, |saved| bytes_of_tokens(saved, n_tokens, total_bytes)),
        saved_tokens,
        ..estimate
    };
    estimated.into_iter().zip(saved).map(precise).collect()
}

/// Bytes that a match counts as.
pub(crate) fn counted(matched_bytes: u64) -> u64 {
    if matched_bytes >= MIN_MATCHED_BYTES { matched_bytes } else { 0 }
}

/// Bytes of a prompt of `n_tokens` and `total_bytes` of which an engine saves so many tokens.
fn bytes_of_tokens(saved_tokens: u64, n_tokens: u64, total_bytes: u64) -> u64 {
    saved_tokens * total_bytes / n_tokens.max(1)
}
