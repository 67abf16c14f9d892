//! `usage` in its places: streams and plain answers write it differently, and each generation has its own fields.

use super::{Api, push};
use serde::Serialize;
use vllm_engine::vllm_version::VllmVersion;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: usize,
    pub(crate) completion_tokens: usize,
    /// Details, only with `--enable-prompt-tokens-details`.
    pub(crate) details: Option<PromptTokensDetails>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PromptTokensDetails {
    pub(crate) cached_tokens: u32,
    /// Tokens of the prompt in whole blocks that were not cached before, for chats only.
    pub(crate) created_cache_tokens: Option<u32>,
}

#[derive(Serialize)]
struct Dump<D: Serialize, C: Serialize> {
    prompt_tokens: usize,
    total_tokens: usize,
    completion_tokens: usize,
    #[serde(skip_serializing_if = "Field::is_unset")]
    prompt_tokens_details: Field<D>,
    #[serde(skip_serializing_if = "Field::is_unset")]
    completion_tokens_details: Field<C>,
}

/// States of a field that pydantic's `exclude_unset` and `exclude_none` distinguish.
#[derive(Clone, Copy, Debug)]
enum Field<T> {
    Unset,
    Null,
    Value(T),
}

#[derive(Serialize)]
struct CachedOnly {
    cached_tokens: u32,
}

#[derive(Serialize)]
struct SetDetails {
    cached_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    created_cache_tokens: Option<u32>,
}

#[derive(Serialize)]
struct AllDetails {
    cached_tokens: u32,
    created_cache_tokens: Option<u32>,
    multimodal_tokens: (),
}

// === impl Field ===

impl<T> Field<T> {
    fn is_unset(&self) -> bool {
        matches!(self, Self::Unset)
    }

    fn or_null(value: Option<T>) -> Self {
        value.map_or(Self::Null, Self::Value)
    }

    fn or_unset(value: Option<T>) -> Self {
        value.map_or(Self::Unset, Self::Value)
    }
}

impl<T: Serialize> Serialize for Field<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unset | Self::Null => serializer.serialize_unit(),
            Self::Value(value) => value.serialize(serializer),
        }
    }
}

// === impl Usage ===

impl Usage {
    /// Writes the usage of a plain answer.
    pub(crate) fn push_plain(self, out: &mut Vec<u8>, api: Api, version: VllmVersion) {
        match version {
            VllmVersion::V0_8 | VllmVersion::V0_11 => {
                let details = Field::or_null(self.cached_only(api, version));
                push(out, &self.dump(details, Field::<()>::Unset));
            }
            VllmVersion::V0_33 => {
                let details = self.details.map(|details| {
                    let PromptTokensDetails { cached_tokens, created_cache_tokens } = details;
                    AllDetails { cached_tokens, created_cache_tokens, multimodal_tokens: () }
                });
                push(out, &self.dump(Field::or_null(details), Field::<()>::Null));
            }
        }
    }

    /// Writes the usage of a stream's last frame.
    pub(crate) fn push_last(self, out: &mut Vec<u8>, api: Api, version: VllmVersion) {
        match version {
            VllmVersion::V0_8 | VllmVersion::V0_11 => {
                let details = Field::or_unset(self.cached_only(api, version));
                push(out, &self.dump(details, Field::<()>::Unset));
            }
            VllmVersion::V0_33 => {
                let details = self.details.map(|details| {
                    let PromptTokensDetails { cached_tokens, created_cache_tokens } = details;
                    SetDetails { cached_tokens, created_cache_tokens }
                });
                push(out, &self.dump(Field::or_unset(details), Field::<()>::Unset));
            }
        }
    }

    /// Writes the usage of every frame, with `continuous_usage_stats`: counts only.
    pub(crate) fn push_continuous(self, out: &mut Vec<u8>, api: Api, version: VllmVersion) {
        let (prompt_details, completion_details) = match (api, version) {
            (Api::Chat, VllmVersion::V0_33) => (Field::Unset, Field::Null),
            (Api::Chat, VllmVersion::V0_8 | VllmVersion::V0_11) | (Api::Completion, VllmVersion::V0_33) => {
                (Field::Unset, Field::Unset)
            }
            (Api::Completion, VllmVersion::V0_8 | VllmVersion::V0_11) => (Field::Null, Field::Unset),
        };
        push(out, &self.dump::<(), ()>(prompt_details, completion_details));
    }

    fn dump<D: Serialize, C: Serialize>(
        self,
        prompt_tokens_details: Field<D>,
        completion_tokens_details: Field<C>,
    ) -> Dump<D, C> {
        let Self { prompt_tokens, completion_tokens, details: _ } = self;
        Dump {
            prompt_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            completion_tokens,
            prompt_tokens_details,
            completion_tokens_details,
        }
    }

    /// Returns the details. Before 0.33 a miss has none; completions of 0.8 never have any.
    fn cached_only(self, api: Api, version: VllmVersion) -> Option<CachedOnly> {
        let has_details = (api, version) != (Api::Completion, VllmVersion::V0_8);
        let cached_tokens = self.details.filter(|_| has_details)?.cached_tokens;
        (cached_tokens > 0).then_some(CachedOnly { cached_tokens })
    }
}
