//! The estimate against the truth: what an answer says of the cache corrects what the index believes.
//!
//! Engines evict what was used longest ago. When an endpoint turns out to have lost a text, it has lost whatever it used no
//! later than that text; when its cache is known to be smaller than what the index holds for it, it has lost the oldest.

use prefix_index::chain::Chain;
use prefix_index::endpoint::EndpointId;
use prefix_index::usage::Use;
use scheduling::affinity::Affinity;
use tracing::debug;

use super::Director;
use crate::body::Lookup;
use crate::cache_facts::Insertion;
use crate::candidates::{Cache, Member};
use crate::response::Usage;

/// A shortfall within this many tokens is no evidence: engines cache blocks of 16, and compute the last one in any case.
const TOLERATED_TOKENS: f64 = 32.0;
/// Nor is one within this share of what was predicted: texts have more bytes per token here than there.
const TOLERATED_SHARE: f64 = 0.1;

/// What was believed when an endpoint was picked for a prompt.
#[derive(Clone, Copy, Debug)]
pub(super) struct Estimate {
    pub(super) endpoint: EndpointId,
    /// Bytes of the prompt that were believed to be cached, as past picks tell.
    pub(super) predicted_bytes: u64,
    /// Tokens of it that the engine said it had.
    pub(super) saved_tokens: Option<u64>,
    /// All bytes of the prompt.
    pub(super) n_bytes: u64,
    pub(super) lookup: Lookup,
    /// When the endpoint used the predicted part before, if it had computed it by then.
    pub(super) evidence: Option<Use>,
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
}

impl Director {
    /// Notes in the index that `member` gets `chains`. Returns the insertions, and when the endpoint used the prefix of the
    /// last chain before, if it had computed it by then.
    pub(super) fn note_sent(&self, chains: &[Chain], member: &Member) -> (Vec<Insertion>, Option<Use>) {
        let endpoint = member.id();
        let (mut insertions, mut previous) = (Vec::with_capacity(chains.len()), None);
        for chain in chains {
            let Some(inserted) = self.index.insert(chain, endpoint) else { continue };
            let insertion = Insertion { endpoint, at: inserted.at };
            member.facts.note_sent(insertion);
            previous =
                inserted.previous.filter(|at| member.facts.is_computed(Insertion { endpoint, at: *at }));
            insertions.push(insertion);
        }
        (insertions, previous)
    }

    /// Follows what a scrape found out about the cache of `member`.
    pub fn note_scrape(&self, member: &Member, cache: Cache) {
        if cache == Cache::Lost {
            self.forget(member);
        }
        self.bound(member);
    }

    /// An answer of `member` came. Returns how many tokens had been predicted to be cached.
    pub(super) fn learn(&self, member: &Member, estimate: &Estimate, usage: Usage) -> Option<f64> {
        let n_tokens = usage.prompt_tokens.filter(|n_tokens| *n_tokens > 0)?;
        let predicted = estimate.predicted_tokens(n_tokens);
        if member.id() != estimate.endpoint {
            // Another process by now: its predecessor's answer says nothing of it.
            return Some(predicted);
        }
        let n_bytes = match estimate.lookup {
            Lookup::Text | Lookup::Skipped => estimate.n_bytes,
            Lookup::Beside(_) => 0,
        };
        let cached = member.facts.note_answer(n_bytes, n_tokens, usage.cached_tokens);
        self.bound(member);
        let Some(cached) = cached.map(f64::from) else { return Some(predicted) };
        self.metrics.prefix_estimate_error.observe((cached - predicted) / f64::from(n_tokens));
        let estimated = estimate.estimated_tokens(n_tokens);
        let tolerated = TOLERATED_TOKENS.max(TOLERATED_SHARE * estimated);
        if let Some(last) = estimate.evidence
            && estimate.lookup == Lookup::Text
            && usage.completion_tokens != Some(0)
            && estimated - cached > tolerated
        {
            let n_blocks = self.index.forget_until(estimate.endpoint, last);
            self.metrics.prefix_corrections.inc();
            self.metrics.prefix_corrected_blocks.inc_by(n_blocks);
            debug!(endpoint = %member.destination, estimated, cached, n_blocks, "Correcting the estimate");
        }
        Some(predicted)
    }

    fn bound(&self, member: &Member) {
        if let Some(max_bytes) = member.facts.new_bound(Affinity::BYTES_PER_TOKEN) {
            debug!(endpoint = %member.destination, max_bytes, "Bounding the prefixes by the cache's size");
            self.index.limit_bytes(member.id(), max_bytes);
        }
    }
}
