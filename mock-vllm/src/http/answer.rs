//! The parts of an answer beside its choices' text, decided when the request arrives: head, prompts and counts.

use super::choices::{Choice, Choices, Event};
use super::error::ApiError;
use super::shape::{Delivered, finish_reason};
use super::wire::logprobs::{LogprobsWriter, ScoredTokens};
use super::wire::plain::{self, ChoiceContent, PlainChoice, PlainPrompt};
use super::wire::usage::{PromptTokensDetails, Usage};
use super::wire::{Api, Envelope, Finish};
use crate::structured::tools::ToolChoice;
use crate::structured::tools::reply::{ToolMessage, ToolReply};
use std::num::NonZeroU32;
use std::ops::Range;
use std::sync::Arc;
use vllm_engine::request::FinishReason;

#[derive(Clone, Debug)]
pub(super) struct AnswerPlan {
    pub(super) envelope: Envelope,
    /// Prompts in the order of the request; at least one.
    pub(super) prompts: Vec<AnsweredPrompt>,
    pub(super) details: DetailsMode,
    /// Most tokens of each choice: the request's own limit, or the room that the last prompt leaves.
    pub(super) max_tokens: u32,
    /// `return_token_ids`
    pub(super) token_ids: bool,
    pub(super) reply: ReplyMode,
    /// Calls that each choice's reply is made of, by choice.
    pub(super) calls: Vec<Option<Arc<ToolReply>>>,
    /// True if vLLM's parser of tool calls reads the replies before the client does.
    pub(super) is_parsed: bool,
    pub(super) logprobs: Option<LogprobsWriter>,
}

#[derive(Clone, Debug)]
pub(super) struct AnsweredPrompt {
    pub(super) ids: Arc<[u32]>,
    /// Text that goes before each reply.
    pub(super) echo: Option<String>,
    /// `return_prompt_text`
    pub(super) text: Option<String>,
    /// `prompt_logprobs`, as JSON.
    pub(super) logprobs: Option<Vec<u8>>,
}

/// Visibility of the replies. A completion with `echo` and `max_tokens: 0` shows the prompt alone, although vLLM
/// generates one token for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyMode {
    Shown,
    Hidden,
}

/// `--enable-prompt-tokens-details`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DetailsMode {
    Off,
    /// `block_size` is that of `cached_blocks`; `None` without a prefix cache, which then creates no blocks either.
    On {
        block_size: Option<NonZeroU32>,
    },
}

// === impl AnswerPlan ===

impl AnswerPlan {
    /// Waits for all choices and returns the body.
    ///
    /// # Errors
    /// Fails if one of the choices fails.
    pub(super) async fn body(&self, mut choices: Choices) -> Result<Vec<u8>, ApiError> {
        let n_choices = choices.as_slice().len();
        let mut texts = vec![String::new(); n_choices];
        let mut finishes: Vec<Option<Finish>> = vec![None; n_choices];
        loop {
            match choices.next().await {
                Event::Piece(piece) => {
                    if self.reply == ReplyMode::Shown {
                        texts[piece.choice_idx].push_str(&piece.text);
                    }
                    finishes[piece.choice_idx] = piece.finish.or(finishes[piece.choice_idx].take());
                }
                Event::End => break,
                Event::Failed(error) => return Err(error),
            }
        }
        let replies = texts.into_iter().zip(finishes).zip(&self.calls);
        let whole = choices.as_slice().iter().zip(replies).map(|(choice, ((text, finish), calls))| {
            let prompt = self.prompt(choice);
            let finish = finish.unwrap_or(Finish { reason: FinishReason::Abort.as_str(), stop_reason: None });
            let (mut content, finish) = self.message(text, finish, calls.as_deref());
            if let Some(echo) = &prompt.echo {
                content = content.after(echo);
            }
            PlainChoice {
                content,
                finish,
                logprobs: self.choice_logprobs(choice, 0..choice.n_generated, &mut 0),
                token_ids: self.token_ids.then(|| choice.generated().to_vec()),
                prompt: PlainPrompt {
                    logprobs: prompt.logprobs.clone(),
                    token_ids: self.token_ids.then(|| prompt.ids.to_vec()),
                    text: prompt.text.clone(),
                },
            }
        });
        let whole: Vec<_> = whole.collect();
        Ok(plain::body(&self.envelope, &whole, self.plain_usage(choices.as_slice())))
    }

    /// Makes the message of a whole text, as the parser of tool calls does.
    pub(super) fn message(
        &self,
        text: String,
        finish: Finish,
        calls: Option<&ToolReply>,
    ) -> (ChoiceContent, Finish) {
        let Some(reply) = calls else { return (ChoiceContent::Text(text), finish) };
        let ToolMessage { content, tool_calls } = reply.message(&text);
        let choice = (!tool_calls.is_empty()).then(|| reply.choice());
        let reason = finish_reason(self.envelope.version, Delivered::Whole, choice, finish.reason);
        let content = match reply.choice() {
            ToolChoice::Auto => content,
            ToolChoice::Required | ToolChoice::Named { .. } => Some(content.unwrap_or_default()),
        };
        (ChoiceContent::Calls { content, tool_calls }, Finish { reason, ..finish })
    }

    /// Returns the log probabilities of the choice's tokens in `range`, as JSON. Those of an echoed prompt go before
    /// the first ones.
    pub(super) fn choice_logprobs(
        &self,
        choice: &Choice,
        range: Range<usize>,
        text_offset: &mut usize,
    ) -> Option<Vec<u8>> {
        let writer = self.logprobs.as_ref()?;
        let AnsweredPrompt { ids, echo, .. } = self.prompt(choice);
        let is_echoed = echo.is_some() && self.envelope.api == Api::Completion && range.start == 0;
        let range = match self.reply {
            ReplyMode::Shown => range,
            ReplyMode::Hidden => 0..0,
        };
        let prompt = if is_echoed { ids } else { [].as_slice() };
        Some(writer.write(ScoredTokens { prompt, generated: choice.generated() }, range, text_offset))
    }

    pub(super) fn n_first_prompt_tokens(&self) -> usize {
        self.prompts.first().map_or(0, |prompt| prompt.ids.len())
    }

    pub(super) fn prompt(&self, choice: &Choice) -> &AnsweredPrompt {
        &self.prompts[choice.prompt_idx]
    }

    /// Sums up the choices of a plain answer. vLLM takes the details of the last prompt here.
    fn plain_usage(&self, choices: &[Choice]) -> Usage {
        Usage { details: choices.last().and_then(|choice| self.details(choice)), ..self.counts(choices) }
    }

    /// Sums up the choices of a stream. vLLM takes the details of the first prompt here.
    pub(super) fn stream_usage(&self, choices: &[Choice]) -> Usage {
        Usage { details: choices.first().and_then(|choice| self.details(choice)), ..self.counts(choices) }
    }

    /// Counts before the first token of a prompt's choices.
    pub(super) fn prompt_usage(&self, prompt_idx: usize) -> Usage {
        Usage { prompt_tokens: self.prompts[prompt_idx].ids.len(), completion_tokens: 0, details: None }
    }

    /// Counts of one choice so far.
    pub(super) fn choice_usage(&self, choice: &Choice) -> Usage {
        Usage { completion_tokens: choice.n_generated, ..self.prompt_usage(choice.prompt_idx) }
    }

    /// Sums up the tokens: each prompt counts once, however many choices it has.
    fn counts(&self, choices: &[Choice]) -> Usage {
        Usage {
            prompt_tokens: self.prompts.iter().map(|prompt| prompt.ids.len()).sum(),
            completion_tokens: choices.iter().map(|choice| choice.n_generated).sum(),
            details: None,
        }
    }

    /// Returns what the prompt found in the cache, and what it adds to it in whole blocks.
    fn details(&self, choice: &Choice) -> Option<PromptTokensDetails> {
        let DetailsMode::On { block_size } = self.details else { return None };
        let cached_tokens = choice.cached_tokens;
        let created = created_tokens(self.prompt(choice).ids.len(), cached_tokens, block_size);
        let created_cache_tokens = match self.envelope.api {
            Api::Chat => Some(created),
            Api::Completion => None,
        };
        Some(PromptTokensDetails { cached_tokens, created_cache_tokens })
    }
}

/// Counts the tokens of a prompt that are new in the prefix cache, in whole blocks. `block_size` is `None` without a
/// cache.
pub(super) fn created_tokens(
    n_prompt_tokens: usize,
    cached_tokens: u32,
    block_size: Option<NonZeroU32>,
) -> u32 {
    let Some(block_size) = block_size else { return 0 };
    let block_size = block_size.get() as usize;
    let n_in_blocks = n_prompt_tokens / block_size * block_size;
    u32::try_from(n_in_blocks).unwrap_or(u32::MAX).saturating_sub(cached_tokens)
}
