//! How the engine's prefix cache stands to the text that is hashed.

use super::fields::{Field, Fields};
use super::prompts::Prompts;
use super::source::{Kind, Source};
use super::{Api, Literal};

/// What the engine looks for in its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// The tokens of the hashed text: how many it finds is evidence of what it holds.
    Text,
    /// Tokens that the text does not tell all of, or in an order that the picker does not know: that it finds few of them is
    /// no evidence.
    Beside(Unseen),
    /// None: the request wants the log probabilities of its prompt, or the output for each of its tokens, so that the engine
    /// computes all of them.
    Skipped,
}

/// Why the hashed text is not what the engine looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// No prompt was read.
    NoPrompt,
    /// What an answer says of the cache is one number for all prompts.
    SeveralPrompts,
    /// `prompt_embeds` are prompts besides.
    PromptEmbeds,
    /// The engine cuts the prompt to a number of tokens.
    Truncated,
    /// The conversation goes on from one that the engine keeps.
    StoredResponse,
    /// The request has a chat template of its own, or values for the engine's.
    Template,
    /// Documents of a chat, which some templates show.
    Documents,
    /// What effort is shown, and where, the template decides.
    ReasoningEffort,
    /// Images, sounds and videos are known by their URL or data; how many tokens they are, the engine knows.
    Media,
    /// A line that some engines leave out of the prompt.
    BillingLine,
    /// Pooling answers do not tell of the cache.
    Pooling,
    /// Answers of the Messages API do not tell of the cache in all engines.
    MessagesUsage,
}

pub(super) fn of(source: &Source<'_>, api: Api, fields: &Fields, prompts: &Prompts) -> Lookup {
    if skips_the_cache(source, api, fields) {
        return Lookup::Skipped;
    }
    let is_set = |field| fields.get(field).is_some();
    let has_options = fields.get(Field::ChatTemplateKwargs).is_some_and(|kwargs| {
        let mut has_options = false;
        // What these say stands behind the last message.
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

/// vLLM's `skip_reading_prefix_cache`: with log probabilities of the prompt, which `echo` asks for too where it asks for those
/// of the reply, and for the pooling of each token.
fn skips_the_cache(source: &Source<'_>, api: Api, fields: &Fields) -> bool {
    let is_set = |field| fields.get(field).is_some();
    let echoes =
        fields.get(Field::Echo).is_some_and(|echo| source.kind(echo) == Kind::Literal(Literal::True));
    // `top_logprobs` of a chat are 0 by default, and not absent.
    let is_chat = api == Api::Chat || is_set(Field::Messages) && !is_set(Field::Prompt);
    let mut has_prompt_logprobs = is_set(Field::PromptLogprobs);
    if let Some(params) = fields.get(Field::SamplingParams) {
        source.fields(params, |key, span| {
            has_prompt_logprobs |=
                key == b"prompt_logprobs" && source.kind(&span) != Kind::Literal(Literal::Null);
        });
    }
    let pools_tokens = api == Api::Pooling
        && fields
            .get(Field::Task)
            .is_some_and(|task| matches!(source.word(task).as_bytes(), b"token_embed" | b"token_classify"));
    has_prompt_logprobs || echoes && (is_chat || is_set(Field::Logprobs)) || pools_tokens
}
