//! `logprobs` and `prompt_logprobs` of answers.

use super::{Api, push};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use std::ops::Range;
use vllm_text::reply::scores::{Score, Scorer};

/// Form in which one request wants the log probabilities of its tokens.
#[derive(Clone, Debug)]
pub(crate) struct LogprobsWriter {
    pub(crate) scorer: Scorer,
    pub(crate) api: Api,
    /// Tokens per place.
    pub(crate) n_top: usize,
    /// `return_tokens_as_token_ids`: write `token_id:5` instead of the text.
    pub(crate) as_ids: bool,
}

/// Tokens of a choice whose log probabilities are written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScoredTokens<'a> {
    /// Tokens of the prompt if it is echoed; the first one has no log probability.
    pub(crate) prompt: &'a [u32],
    pub(crate) generated: &'a [u32],
}

#[derive(Serialize)]
struct ChatLogprobs {
    content: Vec<ChatPlace>,
}

#[derive(Serialize)]
struct ChatPlace {
    #[serde(flatten)]
    token: ChatToken,
    top_logprobs: Vec<ChatToken>,
}

#[derive(Serialize)]
struct ChatToken {
    token: String,
    logprob: f64,
    bytes: Vec<u8>,
}

#[derive(Default, Serialize)]
struct CompletionLogprobs {
    text_offset: Vec<usize>,
    token_logprobs: Vec<Option<f64>>,
    tokens: Vec<String>,
    top_logprobs: Vec<Option<Top>>,
}

/// Map from text to log probability, in order.
struct Top(Vec<(String, f64)>);

/// Map from token id to score, in order.
struct PromptPlace(Vec<Score>);

#[derive(Serialize)]
struct PromptScore<'a> {
    logprob: f64,
    rank: u32,
    decoded_token: &'a str,
}

// === impl LogprobsWriter ===

impl LogprobsWriter {
    /// Writes `logprobs` of the generated tokens in `range`, after those of the prompt if there are any, as JSON. For
    /// completions `text_offset` is the place of the first token in the text, in characters; it is moved behind the
    /// last token.
    pub(crate) fn write(
        &self,
        tokens: ScoredTokens<'_>,
        range: Range<usize>,
        text_offset: &mut usize,
    ) -> Vec<u8> {
        let mut out = Vec::new();
        match self.api {
            Api::Chat => {
                let places = range.map(|idx| self.chat_place(&tokens.generated[..=idx]));
                push(&mut out, &ChatLogprobs { content: places.collect() });
            }
            Api::Completion => push(&mut out, &self.completion(tokens, range, text_offset)),
        }
        out
    }

    fn chat_place(&self, context: &[u32]) -> ChatPlace {
        let scores = self.scorer.scores(context, self.n_top);
        let token = |score: &Score| ChatToken {
            token: self.spelled(score),
            logprob: score.logprob,
            bytes: self.spelled(score).into_bytes(),
        };
        let top_logprobs = scores.iter().take(self.n_top).map(token).collect();
        let sampled = &scores[0];
        let bytes = sampled.text.clone().into_bytes();
        ChatPlace { token: ChatToken { bytes, ..token(sampled) }, top_logprobs }
    }

    fn completion(
        &self,
        tokens: ScoredTokens<'_>,
        range: Range<usize>,
        text_offset: &mut usize,
    ) -> CompletionLogprobs {
        let ScoredTokens { prompt, generated } = tokens;
        let mut told = CompletionLogprobs::default();
        let mut tell = |token: String, scores: Option<&[Score]>| {
            told.text_offset.push(*text_offset);
            *text_offset += token.chars().count();
            told.tokens.push(token);
            told.token_logprobs.push(scores.map(|scores| scores[0].logprob));
            told.top_logprobs.push(scores.map(|scores| {
                Top(scores.iter().map(|score| (self.spelled(score), score.logprob)).collect())
            }));
        };
        for idx in 0..prompt.len() {
            let scores = self.scorer.scores(&prompt[..=idx], self.n_top);
            tell(self.spelled(&scores[0]), (idx > 0).then_some(&scores));
        }
        for idx in range {
            let scores = self.scorer.scores(&generated[..=idx], self.n_top);
            tell(self.spelled(&scores[0]), Some(&scores));
        }
        told
    }

    fn spelled(&self, score: &Score) -> String {
        if self.as_ids { format!("token_id:{}", score.id) } else { score.text.clone() }
    }
}

/// Writes `prompt_logprobs` as JSON: nothing for the first token, then the `n_top` likeliest tokens of each place.
pub(crate) fn prompt_logprobs(scorer: &Scorer, prompt: &[u32], n_top: usize) -> Vec<u8> {
    let place = |idx: usize| (idx > 0).then(|| PromptPlace(scorer.scores(&prompt[..=idx], n_top)));
    let places: Vec<_> = (0..prompt.len()).map(place).collect();
    let mut out = Vec::new();
    push(&mut out, &places);
    out
}

// === impl Top ===

impl Serialize for Top {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(text, logprob)| (text, logprob)))
    }
}

// === impl PromptPlace ===

impl Serialize for PromptPlace {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for Score { id, logprob, rank, text } in &self.0 {
            map.serialize_entry(&id, &PromptScore { logprob: *logprob, rank: *rank, decoded_token: text })?;
        }
        map.end()
    }
}
