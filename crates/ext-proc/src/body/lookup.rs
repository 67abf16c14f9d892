//! Relation of the hashed text to the lookup in the engine's prefix cache.

use super::fields::{Field, Fields};
use super::prompts::Prompts;
use super::source::{BodySource, ValueKind};
use super::{Api, Literal};

/// The engine's lookup in its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The engine looks up the tokens of the hashed text, so the number of cached tokens is evidence of what it holds.
    Text,
    /// The engine looks up tokens that the text does not fully determine, or in an order that the picker does not know.
    /// If it finds few of them, that is no evidence.
    Beside(Unseen),
    /// The engine looks up nothing: the request wants the log probabilities of its prompt, or the output for each of
    /// its tokens, so the engine computes all of them.
    Skipped,
}

/// Reason why the engine does not look up the hashed text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// No prompt was read.
    NoPrompt,
    /// The prompt is one of several, for which an answer reports one number of cached tokens.
    SeveralPrompts,
    /// There are also prompts in `prompt_embeds`.
    PromptEmbeds,
    /// The engine cuts the prompt to a number of tokens.
    Truncated,
    /// The conversation continues one that the engine keeps.
    StoredResponse,
    /// The request has its own chat template, or values for the engine's.
    Template,
    /// Documents of a chat, which some templates show.
    Documents,
    /// The template decides whether and where the reasoning effort is shown.
    ReasoningEffort,
    /// Images, sounds and videos are hashed by their URL or data; only the engine knows how many tokens they are.
    Media,
    /// There is a line that some engines leave out of the prompt.
    BillingLine,
    /// Answers to pooling requests do not report cached tokens.
    Pooling,
    /// Not all engines report cached tokens in the Messages API.
    MessagesUsage,
}

pub(super) fn of(source: &BodySource<'_>, api: Api, fields: &Fields, prompts: &Prompts) -> Lookup {
    if skips_the_cache(source, api, fields) {
        return Lookup::Skipped;
    }
    let is_set = |field| fields.get(field).is_some();
    let has_options = fields.get(Field::ChatTemplateKwargs).is_some_and(|kwargs| {
        let mut has_options = false;
        // These two only change what follows the last message.
        source.fields(kwargs, |key, _| has_options |= !matches!(key, b"enable_thinking" | b"thinking"));
        has_options
    });
    let n_prompts = prompts.texts.as_ref().map_or(0, Vec::len);
    let unseen = [
        (n_prompts == 0, Unseen::NoPrompt),
        (n_prompts > 1, Unseen::SeveralPrompts),
        (is_set(Field::PromptEmbeds), Unseen::PromptEmbeds),
        (is_set(Field::TruncatePromptTokens), Unseen::Truncated),
        (is_set(Field::PreviousResponseId), Unseen::StoredResponse),
        (is_set(Field::ChatTemplate) || has_options, Unseen::Template),
        (is_set(Field::Documents), Unseen::Documents),
        (is_set(Field::ReasoningEffort) || is_set(Field::Reasoning), Unseen::ReasoningEffort),
        (prompts.has_media, Unseen::Media),
        (prompts.has_billing_line, Unseen::BillingLine),
        (api == Api::Pooling, Unseen::Pooling),
        (api == Api::Messages, Unseen::MessagesUsage),
    ];
    unseen.into_iter().find(|(is_so, _)| *is_so).map_or(Lookup::Text, |(_, unseen)| Lookup::Beside(unseen))
}

/// vLLM's `skip_reading_prefix_cache`: true if log probabilities of the prompt are wanted (which `echo` implies if
/// those of the reply are wanted), or the pooling of each token.
fn skips_the_cache(source: &BodySource<'_>, api: Api, fields: &Fields) -> bool {
    let is_set = |field| fields.get(field).is_some();
    let echoes =
        fields.get(Field::Echo).is_some_and(|echo| source.kind(echo) == ValueKind::Literal(Literal::True));
    // A chat's `top_logprobs` are 0 by default, not absent.
    let is_chat = api == Api::Chat || is_set(Field::Messages) && !is_set(Field::Prompt);
    let mut has_prompt_logprobs = is_set(Field::PromptLogprobs);
    if let Some(params) = fields.get(Field::SamplingParams) {
        source.fields(params, |key, span| {
            has_prompt_logprobs |=
                key == b"prompt_logprobs" && source.kind(&span) != ValueKind::Literal(Literal::Null);
        });
    }
    let pools_tokens = api == Api::Pooling
        && fields
            .get(Field::Task)
            .is_some_and(|task| matches!(source.word(task).as_bytes(), b"token_embed" | b"token_classify"));
    has_prompt_logprobs || echoes && (is_chat || is_set(Field::Logprobs)) || pools_tokens
}
