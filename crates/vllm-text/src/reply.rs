//! Replies of the mock, decided when the request arrives, from the prompt alone, so that the engine only spends time on
//! them.

pub mod scores;
pub mod scripted;
pub mod synthetic;
pub mod visible_text;
pub mod stop_strings;

use crate::tokens::{SpecialTokens, Tokenizer};
use rand_chacha::ChaCha8Rng;
use scores::Scorer;
use scripted::Script;
use std::sync::Arc;
use stop_strings::StopStrings;
use synthetic::Synthesizer;
use vllm_engine::request::FinishReason;

/// Source of replies: the script if it has the prompt, otherwise made-up text of real tokens.
#[derive(Debug)]
pub struct Replier {
    script: Arc<Script>,
    synthesizer: Synthesizer,
    scorer: Scorer,
    tokenizer: Tokenizer,
    eos: u32,
}

/// Facts that a reply depends on.
#[derive(Clone, Debug)]
pub struct Prompt<'a> {
    pub ids: &'a [u32],
    /// Content of the last message of role `user`; for a completion the whole prompt, if it was given as text.
    pub last_user_text: Option<&'a str>,
    pub limits: &'a Limits,
    /// Index of the request's sample, from 0: each has its own seed.
    pub sample_idx: u32,
    /// Text of the reply, if it is decided already. It ends with the EOS, even if the limits ignore it.
    pub text: Option<&'a str>,
}

/// Limits that end a reply before its own end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Most tokens, at least 1.
    pub max_tokens: u32,
    /// Number of tokens before which no EOS, stop token or stop string ends the reply.
    pub min_tokens: u32,
    pub ignore_eos: bool,
    pub stop_token_ids: Vec<u32>,
    pub stop: StopStrings,
    /// The request's own `seed`, in addition to the server's.
    pub seed: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Tokens, at least one. The last is the EOS or the stop token, if one of them ends the reply.
    pub tokens: Arc<[u32]>,
    pub end: ReplyEnd,
}

/// Reason why a reply ends after its last token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplyEnd {
    Length,
    Eos,
    /// Ended by one of the request's stop tokens.
    StopToken(u32),
    /// Ended by a stop string, which the last token completes.
    StopString {
        text: Arc<str>,
        /// Bytes of the reply's text that the client gets.
        n_visible: usize,
    },
}

// === impl Replier ===

impl Replier {
    pub fn new(script: impl Into<Arc<Script>>, tokenizer: &Tokenizer, seed: u64) -> Self {
        let synthesizer = Synthesizer::new(tokenizer, seed);
        Self {
            script: script.into(),
            scorer: Scorer::new(tokenizer, synthesizer.words(), seed),
            synthesizer,
            tokenizer: tokenizer.clone(),
            eos: tokenizer.eos(),
        }
    }

    /// Returns the scripted text for a prompt.
    pub fn scripted(&self, last_user_text: &str) -> Option<String> {
        let tokens = self.script.find(last_user_text)?;
        Some(self.tokenizer.decode(tokens, SpecialTokens::Show))
    }

    pub fn scorer(&self) -> &Scorer {
        &self.scorer
    }

    /// Returns the generator for everything else that is drawn for a sample.
    pub fn rng(&self, ids: &[u32], seed: Option<i64>, sample_idx: u32) -> ChaCha8Rng {
        self.synthesizer.rng(ids, sample_seed(seed, sample_idx))
    }

    pub fn reply(&self, prompt: &Prompt<'_>) -> Reply {
        let Prompt { ids, last_user_text, limits, sample_idx, text } = prompt;
        if let Some(text) = text {
            let ends_by_itself = Limits { ignore_eos: false, ..(*limits).clone() };
            return self.cut(self.tokenizer.encode(text), &ends_by_itself);
        }
        let scripted = last_user_text.and_then(|text| self.script.find(text)).map(<[u32]>::to_vec);
        let never_stops = limits.ignore_eos && limits.stop_token_ids.is_empty();
        let n_at_least = if never_stops { limits.max_tokens } else { limits.min_tokens };
        let mut tokens = scripted.unwrap_or_default();
        if tokens.is_empty() || tokens.len() < n_at_least as usize {
            let n_more = n_at_least.saturating_sub(u32::try_from(tokens.len()).unwrap_or(u32::MAX));
            let seed = sample_seed(limits.seed, *sample_idx);
            tokens.extend(self.synthesizer.tokens(ids, seed, n_more, limits.max_tokens));
        }
        self.cut(tokens, limits)
    }

    /// Ends `tokens` at the first limit, or with the EOS if they reach none.
    fn cut(&self, mut tokens: Vec<u32>, limits: &Limits) -> Reply {
        let max_tokens = limits.max_tokens.max(1) as usize;
        if !limits.ignore_eos {
            tokens.push(self.eos);
        }
        let stop_token = tokens.iter().enumerate().take(max_tokens).position(|(token_idx, token)| {
            let early = token_idx + 1 < limits.min_tokens as usize;
            !early && limits.stop_token_ids.contains(token)
        });
        let end = match stop_token {
            Some(stop_idx) => {
                let token = tokens[stop_idx];
                tokens.truncate(stop_idx + 1);
                let is_eos = token == self.eos && !limits.ignore_eos;
                if is_eos { ReplyEnd::Eos } else { ReplyEnd::StopToken(token) }
            }
            None if tokens.len() > max_tokens || limits.ignore_eos => ReplyEnd::Length,
            None => ReplyEnd::Eos,
        };
        tokens.truncate(max_tokens);
        // The engine's checks come first, but a string that the last token completes stops too.
        let n_text_tokens = match end {
            ReplyEnd::Length => tokens.len(),
            ReplyEnd::Eos | ReplyEnd::StopToken(_) | ReplyEnd::StopString { .. } => {
                limits.stop.n_visible_tokens(tokens.len())
            }
        };
        let mut detokenizer = self.tokenizer.detokenizer();
        let texts = tokens[..n_text_tokens].iter().map(|token| detokenizer.push(*token));
        match limits.stop.first_match(texts, limits.min_tokens) {
            Some(found) => {
                tokens.truncate(found.n_tokens);
                let end = ReplyEnd::StopString { text: found.text, n_visible: found.n_visible };
                Reply { tokens: tokens.into(), end }
            }
            None => Reply { tokens: tokens.into(), end },
        }
    }
}

// === impl ReplyEnd ===

impl ReplyEnd {
    pub fn finish_reason(&self) -> FinishReason {
        match self {
            Self::Length => FinishReason::Length,
            Self::Eos | Self::StopToken(_) | Self::StopString { .. } => FinishReason::Stop,
        }
    }
}

/// Returns the request's seed plus the index of the sample, as vLLM does.
fn sample_seed(seed: Option<i64>, sample_idx: u32) -> i64 {
    seed.unwrap_or_default().wrapping_add(i64::from(sample_idx))
}
