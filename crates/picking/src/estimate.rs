//! Corrects the estimate: compares the cached tokens of an answer with what the index predicted.
//!
//! Engines evict what was used longest ago. If an endpoint turns out to have lost a text, it has also lost everything
//! that it used no later than that text. If its cache turns out to be smaller than the text that the index holds for
//! it, it has lost the oldest part.

use prefix_index::chain::Chain;
use prefix_index::endpoint::EndpointId;
use prefix_index::index::PrefixIndex;
use prefix_index::usage::Use;
use scheduling::affinity::Affinity;

use crate::cache_facts::InsertedPrompt;
use crate::endpoint::EndpointState;

/// A difference within this many tokens is no evidence: engines cache blocks of 16, and always compute the last one.
const TOLERATED_TOKENS: f64 = 32.0;
/// A difference within this share of the prediction is no evidence: bytes per token vary within a text.
const TOLERATED_SHARE: f64 = 0.1;

/// Relation of the engine's lookup in its prefix cache to the text of the chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheReading {
    /// The engine looks up the tokens of the text, so the number of cached tokens is evidence of what it holds.
    Text,
    /// The engine looks up tokens that the text does not fully determine: if it finds few of them, that is no evidence.
    Beside,
    /// The engine computes every token of the request.
    Skipped,
}

/// The usage in a complete response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportedUsage {
    pub prompt_tokens: Option<u32>,
    pub completion_tokens: Option<u32>,
    pub cached_tokens: Option<u32>,
}

/// Result of learning from an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Learned {
    /// Number of tokens that were predicted to be cached.
    pub predicted_tokens: f64,
    /// Share of the prompt by which more tokens were cached than predicted, if the engine reports cached tokens.
    pub error: Option<f64>,
    /// New bound of the text that the endpoint is assumed to hold, in bytes, if it has changed.
    pub bound: Option<u64>,
    pub correction: Option<Correction>,
}

/// A correction of the index: the endpoint had lost what it was assumed to hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Correction {
    pub estimated_tokens: f64,
    pub cached_tokens: f64,
    /// Number of blocks that it is not assumed to hold any more.
    pub n_blocks: u64,
}

/// The prediction for a prompt when an endpoint was picked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Estimate {
    pub(crate) endpoint: EndpointId,
    /// Bytes of the prompt that were assumed to be cached, from past picks.
    pub(crate) predicted_bytes: u64,
    /// Cached tokens of the prompt according to KV events.
    pub(crate) saved_tokens: Option<u64>,
    /// All bytes of the prompt.
    pub(crate) n_bytes: u64,
    pub(crate) reading: CacheReading,
    /// Last use of the predicted part by the endpoint, if it had computed the part by then.
    pub(crate) evidence: Option<Use>,
}

impl Estimate {
    /// The estimate in tokens, for a prompt of `n_tokens`.
    #[expect(clippy::cast_precision_loss, reason = "prompts are far below 2^53 bytes")]
    fn estimated_tokens(&self, n_tokens: u32) -> f64 {
        let share = self.predicted_bytes as f64 / self.n_bytes.max(1) as f64;
        share * f64::from(n_tokens)
    }

    /// The prediction that was used, in tokens.
    #[expect(clippy::cast_precision_loss, reason = "prompts are far below 2^53 tokens")]
    fn predicted_tokens(&self, n_tokens: u32) -> f64 {
        self.saved_tokens.map_or_else(|| self.estimated_tokens(n_tokens), |tokens| tokens as f64)
    }

    /// Learns from the answer of `endpoint` to the request of this estimate.
    pub(crate) fn learn(
        &self,
        answer: ReportedUsage,
        endpoint: &EndpointState,
        index: &PrefixIndex,
    ) -> Option<Learned> {
        let n_tokens = answer.prompt_tokens.filter(|n_tokens| *n_tokens > 0)?;
        let predicted_tokens = self.predicted_tokens(n_tokens);
        let mut learned = Learned { predicted_tokens, error: None, bound: None, correction: None };
        if endpoint.id() != self.endpoint {
            // Another process serves there now: the answer of the earlier one says nothing about it.
            return Some(learned);
        }
        let n_bytes = match self.reading {
            CacheReading::Text | CacheReading::Skipped => self.n_bytes,
            CacheReading::Beside => 0,
        };
        let cached = endpoint.facts.note_answer(n_bytes, n_tokens, answer.cached_tokens);
        learned.bound = bound(endpoint, index);
        let Some(cached_tokens) = cached.map(f64::from) else { return Some(learned) };
        learned.error = Some((cached_tokens - predicted_tokens) / f64::from(n_tokens));
        let estimated_tokens = self.estimated_tokens(n_tokens);
        let tolerated = TOLERATED_TOKENS.max(TOLERATED_SHARE * estimated_tokens);
        if let Some(last) = self.evidence
            && self.reading == CacheReading::Text
            && answer.completion_tokens != Some(0)
            && estimated_tokens - cached_tokens > tolerated
        {
            let n_blocks = index.forget_until(self.endpoint, last);
            learned.correction = Some(Correction { estimated_tokens, cached_tokens, n_blocks });
        }
        Some(learned)
    }
}

/// Notes in the index that `endpoint` gets `chains`. Returns the insertions, and the endpoint's last use of the last
/// chain's prefix, if it had computed that by then.
pub(crate) fn note_sent(
    chains: &[Chain],
    endpoint: &EndpointState,
    index: &PrefixIndex,
) -> (Vec<InsertedPrompt>, Option<Use>) {
    let id = endpoint.id();
    let (mut insertions, mut previous) = (Vec::with_capacity(chains.len()), None);
    for chain in chains {
        let Some(inserted) = index.insert(chain, id) else { continue };
        let insertion = InsertedPrompt { endpoint: id, at: inserted.at };
        endpoint.facts.note_sent(insertion);
        let is_computed = |at: &Use| endpoint.facts.is_computed(InsertedPrompt { endpoint: id, at: *at });
        previous = inserted.previous.filter(is_computed);
        insertions.push(insertion);
    }
    (insertions, previous)
}

/// Bounds the text that `endpoint` is assumed to hold by the size of its cache. Returns the bound if it has changed.
pub(crate) fn bound(endpoint: &EndpointState, index: &PrefixIndex) -> Option<u64> {
    let max_bytes = endpoint.facts.new_bound(Affinity::BYTES_PER_TOKEN)?;
    index.limit_bytes(endpoint.id(), max_bytes);
    Some(max_bytes)
}
