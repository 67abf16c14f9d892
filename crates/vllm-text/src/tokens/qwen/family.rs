//! Differences between the families of Qwen models: added tokens, template, size of the embedding.

use serde_json::{Map, Value, json};

/// Models with the same tokenizer and chat template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QwenFamily {
    Qwen25,
    Qwen3,
}

/// First id of the added tokens; the ids below are the byte-pair vocabulary's.
pub(super) const FIRST_ADDED: u32 = 151_643;
/// `added_tokens_decoder` of Qwen2.5's tokenizer_config.json, in order of id from [`FIRST_ADDED`].
const ADDED: [&str; 22] = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
];
/// Tokens that Qwen3's file has after those.
const ADDED_BY_QWEN3: [&str; 4] = ["<tool_response>", "</tool_response>", "<think>", "</think>"];
/// Number of tokens with `"special": true`. From `<tool_call>` on, tokens are shown even if special ones are skipped.
pub(super) const N_SPECIAL: usize = 14;

// === impl QwenFamily ===

impl QwenFamily {
    /// End of a turn: `eos_token`, and the first of `eos_token_id` in generation_config.json.
    pub const IM_END: u32 = 151_645;
    /// `pad_token`, which generation_config.json names as another end.
    pub const ENDOFTEXT: u32 = 151_643;

    /// Finds the family by the name of a model, like `Qwen/Qwen3-8B`; `None` for models whose tokenizer is not built
    /// in.
    pub fn of_model(name: &str) -> Option<Self> {
        let name = name.to_lowercase();
        if name.contains("qwen2.5") {
            return Some(Self::Qwen25);
        }
        // Qwen3.5 and later have another vocabulary.
        let is_qwen3 =
            name.match_indices("qwen3").any(|(start, word)| !name[start + word.len()..].starts_with('.'));
        is_qwen3.then_some(Self::Qwen3)
    }

    /// Returns the template in tokenizer_config.json.
    pub fn chat_template(self) -> &'static str {
        match self {
            Self::Qwen25 => include_str!("qwen2.5.jinja"),
            Self::Qwen3 => include_str!("qwen3.jinja"),
        }
    }

    /// Returns the `init_kwargs` of transformers 5 for the family's tokenizer_config.json.
    pub fn config(self) -> Map<String, Value> {
        let added: Map<String, Value> = self
            .added()
            .zip(FIRST_ADDED..)
            .map(|(content, id)| (id.to_string(), Value::from(content)))
            .collect();
        // All special tokens except the first, which is the padding.
        let extra: Vec<&str> = self.added().take(N_SPECIAL).skip(1).collect();
        let config = json!({
            "unk_token": null,
            "bos_token": null,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "add_prefix_space": false,
            "added_tokens_decoder": added,
            "chat_template": self.chat_template(),
            "clean_up_tokenization_spaces": false,
            "errors": "replace",
            "model_max_length": 131_072,
            "split_special_tokens": false,
            "extra_special_tokens": extra,
            "is_local": false,
            "local_files_only": false,
            "backend": "tokenizers",
            "tokenizer_class": "Qwen2Tokenizer",
        });
        match config {
            Value::Object(config) => config,
            other => unreachable!("an object is written above, not {other}"),
        }
    }

    /// Returns `vocab_size` of config.json (Qwen2.5-7B, Qwen3-8B). Prompts may use ids up to it, although the last ones
    /// have no text.
    pub fn model_vocabulary_len(self) -> u32 {
        match self {
            Self::Qwen25 => 152_064,
            Self::Qwen3 => 151_936,
        }
    }

    /// Returns the added tokens in order of id.
    pub(super) fn added(self) -> impl Iterator<Item = &'static str> {
        let more: &[&str] = match self {
            Self::Qwen25 => &[],
            Self::Qwen3 => &ADDED_BY_QWEN3,
        };
        ADDED.iter().chain(more).copied()
    }
}
