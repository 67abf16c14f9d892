//! The estimate against the truth: what an answer says of the cache corrects what the index believes.
//!
//! Engines evict what was used longest ago. When an endpoint turns out to have lost a text, it has lost whatever it used no
//! later than that text; when its cache is known to be smaller than what the index holds for it, it has lost the oldest.

use prefix_index::chain::Chain;
use prefix_index::endpoint::EndpointId;
use prefix_index::index::PrefixIndex;
use prefix_index::usage::Use;
use scheduling::affinity::Affinity;

use crate::cache_facts::Insertion;
use crate::endpoint::Endpoint;

/// A shortfall within this many tokens is no evidence: engines cache blocks of 16, and compute the last one in any case.
const TOLERATED_TOKENS: f64 = 32.0;
/// Nor is one within this share of what was predicted: texts have more bytes per token here than there.
const TOLERATED_SHARE: f64 = 0.1;

/// How the engine's prefix cache stands to the text that the chains are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheReading {
    /// The engine looks for the text's tokens: how many it finds is evidence of what it holds.
    Text,
    /// The engine looks for tokens that the text does not tell all of: that it finds few of them is no evidence.
    Beside,
    /// The engine computes every token of the request.
    Skipped,
}

/// The usage that a complete response reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub prompt_tokens: Option<u32>,
    pub completion_tokens: Option<u32>,
    pub cached_tokens: Option<u32>,
}

/// What an answer taught.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Learned {
    /// How many tokens were predicted to be cached.
    pub predicted_tokens: f64,
    /// Share of the prompt by which more tokens were cached than predicted, if the engine told how many.
    pub error: Option<f64>,
    /// How much text the endpoint is believed to hold at most from now on, in bytes, if that has changed.
    pub bound: Option<u64>,
    pub correction: Option<Correction>,
}

/// The endpoint had lost what it was believed to hold.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Correction {
    pub estimated_tokens: f64,
    pub cached_tokens: f64,
    /// Blocks that it is not believed to hold any more.
    pub n_blocks: u64,
}

/// What was believed when an endpoint was picked for a prompt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Estimate {
    pub(crate) endpoint: EndpointId,
    /// Bytes of the prompt that were believed to be cached, as past picks tell.
    pub(crate) predicted_bytes: u64,
    /// Tokens of it that the engine said it had.
    pub(crate) saved_tokens: Option<u64>,
    /// All bytes of the prompt.
    pub(crate) n_bytes: u64,
    pub(crate) reading: CacheReading,
    /// When the endpoint used the predicted part before, if it had computed it by then.
    pub(crate) evidence: Option<Use>,
}

impl Estimate {
    /// In tokens, for a prompt of `n_tokens`.
    #[expect(clippy::cast_precision_loss, reason = "prompts are far below 2^53 bytes")]
    fn estimated_tokens(&self, n_tokens: u32) -> f64 {
        let share = self.predicted_bytes as f64 / self.n_bytes.max(1) as f64;
        share * f64::from(n_tokens)
    }

    /// What was gone by, in tokens.
    #[expect(clippy::cast_precision_loss, reason = "prompts are far below 2^53 tokens")]
    fn predicted_tokens(&self, n_tokens: u32) -> f64 {
        self.saved_tokens.map_or_else(|| self.estimated_tokens(n_tokens), |tokens| tokens as f64)
    }

    /// An answer of `endpoint` came to the request that this was believed of.
    pub(crate) fn learn(&self, answer: Answer, endpoint: &Endpoint, index: &PrefixIndex) -> Option<Learned> {
        let n_tokens = answer.prompt_tokens.filter(|n_tokens| *n_tokens > 0)?;
        let predicted_tokens = self.predicted_tokens(n_tokens);
        let mut learned = Learned { predicted_tokens, error: None, bound: None, correction: None };
        if endpoint.id() != self.endpoint {
            // Another process by now: its predecessor's answer says nothing of it.
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

/// Notes in the index that `endpoint` gets `chains`. Returns the insertions, and when the endpoint used the prefix of the
/// last chain before, if it had computed it by then.
pub(crate) fn note_sent(
    chains: &[Chain],
    endpoint: &Endpoint,
    index: &PrefixIndex,
) -> (Vec<Insertion>, Option<Use>) {
    let id = endpoint.id();
    let (mut insertions, mut previous) = (Vec::with_capacity(chains.len()), None);
    for chain in chains {
        let Some(inserted) = index.insert(chain, id) else { continue };
        let insertion = Insertion { endpoint: id, at: inserted.at };
        endpoint.facts.note_sent(insertion);
        let is_computed = |at: &Use| endpoint.facts.is_computed(Insertion { endpoint: id, at: *at });
        previous = inserted.previous.filter(is_computed);
        insertions.push(insertion);
    }
    (insertions, previous)
}

/// Bounds the text that `endpoint` is believed to hold by the size of its cache; returns the bound if it has changed.
pub(crate) fn bound(endpoint: &Endpoint, index: &PrefixIndex) -> Option<u64> {
    let max_bytes = endpoint.facts.new_bound(Affinity::BYTES_PER_TOKEN)?;
    index.limit_bytes(endpoint.id(), max_bytes);
    Some(max_bytes)
}
