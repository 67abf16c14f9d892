//! Made-up log probabilities of a reply's tokens: well formed, and equal for equal seed, place and token. The token
//! itself is the likeliest, the others follow in order, and all together leave something for the rest of the
//! vocabulary.

use crate::tokens::{SpecialTokens, Tokenizer};
use rand::seq::index;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

/// Range of the token's own probability.
const TOP_PROBABILITY: std::ops::Range<f64> = 0.4..0.98;
/// Share of the remaining probability that each other token leaves to those after it.
const TAIL: std::ops::Range<f64> = 0.5..0.8;
/// Character that replaces bytes of an incomplete character.
const REPLACEMENT: char = '\u{fffd}';
/// Most tokens of one character.
const MAX_CONTEXT: usize = 4;

/// Source of log probabilities; cheap to clone.
#[derive(Clone, Debug)]
pub struct Scorer {
    tokenizer: Tokenizer,
    /// Tokens of different words, which the model might have chosen instead.
    alternatives: Arc<[u32]>,
    seed: u64,
}

/// A token that may take a place.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    pub id: u32,
    pub logprob: f64,
    /// Rank, from 1.
    pub rank: u32,
    pub text: String,
}

// === impl Scorer ===

impl Scorer {
    pub(super) fn new(tokenizer: &Tokenizer, alternatives: impl Iterator<Item = u32>, seed: u64) -> Self {
        let mut alternatives: Vec<u32> = alternatives.collect();
        alternatives.sort_unstable();
        alternatives.dedup();
        Self { tokenizer: tokenizer.clone(), alternatives: alternatives.into(), seed }
    }

    /// Returns the last token of `context` and `n - 1` others, the likeliest first; that token alone if `n` is 0.
    pub fn scores(&self, context: &[u32], n: usize) -> Vec<Score> {
        let Some(token) = context.last() else { return Vec::new() };
        let mut rng = self.rng(context.len(), *token);
        let top = rng.random_range(TOP_PROBABILITY);
        let tail = rng.random_range(TAIL);
        let score = |id: u32, probability: f64, rank: usize, text: String| {
            // The sampler's numbers have single precision.
            #[expect(clippy::cast_possible_truncation, reason = "that precision is meant")]
            let logprob = f64::from(probability.ln() as f32);
            Score { id, logprob, rank: u32::try_from(rank).unwrap_or(u32::MAX), text }
        };
        let mut scores = vec![score(*token, top, 1, self.text(context))];
        let n_others = n.saturating_sub(1).min(self.alternatives.len());
        let mut left = 1.0 - top;
        // One more than needed, because the token itself may be among them.
        let n_drawn = (n_others + 1).min(self.alternatives.len());
        let drawn = index::sample(&mut rng, self.alternatives.len(), n_drawn);
        let others = drawn.into_iter().map(|idx| self.alternatives[idx]).filter(|id| id != token);
        for (id, other_idx) in others.take(n_others).zip(2..) {
            scores.push(score(id, left * (1.0 - tail), other_idx, self.text(&[id])));
            left *= tail;
        }
        scores
    }

    /// Returns the text of the last token of `context`, like vLLM's `_correct_decoded_token`: the whole character for a
    /// token that completes it, and nothing for a token that only begins it.
    pub fn text(&self, context: &[u32]) -> String {
        let decode = |ids: &[u32]| self.tokenizer.decode(ids, SpecialTokens::Show);
        let [before @ .., token] = context else { return String::new() };
        let alone = decode(&[*token]);
        if !alone.ends_with(REPLACEMENT) {
            return alone;
        }
        for n_before in 1..=MAX_CONTEXT.min(before.len()) {
            let ids = &context[before.len() - n_before..];
            let whole = decode(ids);
            if whole.ends_with(REPLACEMENT) {
                continue;
            }
            let n_clean = ids.len()
                - 1
                - ids[..ids.len() - 1]
                    .iter()
                    .rev()
                    .take_while(|id| decode(&[**id]).ends_with(REPLACEMENT))
                    .count();
            return whole.strip_prefix(&decode(&ids[..n_clean])).unwrap_or_default().to_owned();
        }
        String::new()
    }

    fn rng(&self, place: usize, token: u32) -> ChaCha8Rng {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.seed.to_le_bytes());
        seed[8..16].copy_from_slice(&(place as u64).to_le_bytes());
        seed[16..20].copy_from_slice(&token.to_le_bytes());
        ChaCha8Rng::from_seed(seed)
    }
}
