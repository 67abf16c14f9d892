//! The fields of a body that are read, and the positions of their values.

use super::source::Span;

/// A field of the root object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    Model,
    CacheSalt,
    Messages,
    Prompt,
    Input,
    TokenIds,
    Instructions,
    System,
    Tools,
    /// The first texts of pairs: `text_1`, `query` and the like.
    First,
    /// The second texts of pairs: `text_2`, `documents` of a request for scores, and the like.
    Second,
    /// Documents of a chat or of a request for scores.
    Documents,
    ChatTemplate,
    ChatTemplateKwargs,
    ReasoningEffort,
    Reasoning,
    AddGenerationPrompt,
    ContinueFinalMessage,
    PromptEmbeds,
    PreviousResponseId,
    TruncatePromptTokens,
    PromptLogprobs,
    Echo,
    Logprobs,
    SamplingParams,
    Task,
    /// Any field that is not read.
    Other,
}

/// Positions of the values.
#[derive(Debug, Default)]
pub(super) struct Fields {
    values: [Value; Field::Other as usize],
}

#[derive(Clone, Debug, Default)]
enum Value {
    #[default]
    Absent,
    Null,
    At(Span),
}

// === impl Field ===

impl Field {
    pub(super) fn of(key: &[u8]) -> Self {
        match key {
            b"model" => Self::Model,
            b"cache_salt" => Self::CacheSalt,
            b"messages" => Self::Messages,
            b"prompt" => Self::Prompt,
            b"input" => Self::Input,
            b"token_ids" => Self::TokenIds,
            b"instructions" => Self::Instructions,
            b"system" => Self::System,
            b"tools" => Self::Tools,
            b"text_1" | b"data_1" | b"query" | b"queries" => Self::First,
            b"text_2" | b"data_2" | b"items" => Self::Second,
            b"documents" => Self::Documents,
            b"chat_template" => Self::ChatTemplate,
            b"chat_template_kwargs" => Self::ChatTemplateKwargs,
            b"reasoning_effort" => Self::ReasoningEffort,
            b"reasoning" => Self::Reasoning,
            b"add_generation_prompt" => Self::AddGenerationPrompt,
            b"continue_final_message" => Self::ContinueFinalMessage,
            b"prompt_embeds" => Self::PromptEmbeds,
            b"previous_response_id" => Self::PreviousResponseId,
            b"truncate_prompt_tokens" => Self::TruncatePromptTokens,
            b"prompt_logprobs" => Self::PromptLogprobs,
            b"echo" => Self::Echo,
            b"logprobs" => Self::Logprobs,
            b"sampling_params" => Self::SamplingParams,
            b"task" => Self::Task,
            _ => Self::Other,
        }
    }
}

// === impl Fields ===

impl Fields {
    /// Notes the value of `field`; a later value replaces an earlier one.
    pub(super) fn note(&mut self, field: Field, span: Span, is_null: bool) {
        if let Some(value) = self.values.get_mut(field as usize) {
            *value = if is_null { Value::Null } else { Value::At(span) };
        }
    }

    /// Position of the value; `None` if it is absent or `null`.
    pub(super) fn get(&self, field: Field) -> Option<&Span> {
        match self.values.get(field as usize)? {
            Value::At(span) => Some(span),
            Value::Absent | Value::Null => None,
        }
    }

    pub(super) fn is_null(&self, field: Field) -> bool {
        matches!(self.values.get(field as usize), Some(Value::Null))
    }
}
