//! What the mock answers: decided when the request arrives, from the prompt alone, so that the engine only spends time on it.

pub mod scripted;
pub mod synthetic;

use crate::engine::request::FinishReason;
use crate::tokens::Tokenizer;
use scripted::Script;
use std::sync::Arc;
use synthetic::Synthesizer;

/// Answers by the script where it knows the prompt, else with made-up text of real tokens.
#[derive(Debug)]
pub struct Replier {
    script: Arc<Script>,
    synthesizer: Synthesizer,
    eos: u32,
}

/// What the reply depends on.
#[derive(Clone, Debug)]
pub struct Prompt<'a> {
    pub ids: &'a [u32],
    /// Content of the last message of role `user`; for a completion the whole prompt when it was given as text.
    pub last_user_text: Option<&'a str>,
    pub limits: &'a Limits,
}

/// When a reply ends, beside its own end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Tokens, at least 1.
    pub max_tokens: u32,
    /// No EOS and no stop token before this many tokens.
    pub min_tokens: u32,
    pub ignore_eos: bool,
    pub stop_token_ids: Vec<u32>,
    /// The request's own `seed`, beside the server's.
    pub seed: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// At least one; the last is the EOS or the stop token when it stops by one.
    pub tokens: Arc<[u32]>,
    pub finish: FinishReason,
    /// The stop token of the request that ended it, for `stop_reason`.
    pub stop_token: Option<u32>,
}

// === impl Replier ===

impl Replier {
    pub fn new(script: impl Into<Arc<Script>>, tokenizer: &Tokenizer, seed: u64) -> Self {
        Self { script: script.into(), synthesizer: Synthesizer::new(tokenizer, seed), eos: tokenizer.eos() }
    }

    pub fn reply(&self, prompt: &Prompt<'_>) -> Reply {
        let Prompt { ids, last_user_text, limits } = prompt;
        let scripted = last_user_text.and_then(|text| self.script.find(text)).map(<[u32]>::to_vec);
        let never_stops = limits.ignore_eos && limits.stop_token_ids.is_empty();
        let n_at_least = if never_stops { limits.max_tokens } else { limits.min_tokens };
        let mut tokens = scripted.unwrap_or_default();
        if tokens.is_empty() || tokens.len() < n_at_least as usize {
            let n_more = n_at_least.saturating_sub(u32::try_from(tokens.len()).unwrap_or(u32::MAX));
            tokens.extend(self.synthesizer.tokens(ids, limits.seed, n_more, limits.max_tokens));
        }
        self.cut(tokens, limits)
    }

    fn cut(&self, mut tokens: Vec<u32>, limits: &Limits) -> Reply {
        let max_tokens = limits.max_tokens.max(1) as usize;
        if !limits.ignore_eos {
            tokens.push(self.eos);
        }
        let stop = tokens.iter().enumerate().take(max_tokens).position(|(token_idx, token)| {
            let early = token_idx + 1 < limits.min_tokens as usize;
            !early && limits.stop_token_ids.contains(token)
        });
        if let Some(stop_idx) = stop {
            let stop_token = tokens[stop_idx];
            tokens.truncate(stop_idx + 1);
            let stop_token = (stop_token != self.eos || limits.ignore_eos).then_some(stop_token);
            return Reply { tokens: tokens.into(), finish: FinishReason::Stop, stop_token };
        }
        let finish = if tokens.len() > max_tokens || limits.ignore_eos {
            FinishReason::Length
        } else {
            FinishReason::Stop
        };
        tokens.truncate(max_tokens);
        Reply { tokens: tokens.into(), finish, stop_token: None }
    }
}
