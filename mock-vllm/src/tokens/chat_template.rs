//! The chat template of Qwen2.5, rendered straight to token ids.
//! The added tokens around each message split the text, so a message's ids depend on nothing but the message:
//! a follow-up turn tokenizes only what is new.

use super::Tokenizer;
use super::chat::{Chat, ChatMessage};
use hashbrown::HashMap;
use parking_lot::Mutex;
use serde_json::Value;
use std::sync::Arc;

/// Qwen2.5's template puts this first when the conversation has no system message of its own.
pub const DEFAULT_SYSTEM: &str = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";

/// Texts of messages and their ids that are remembered, in bytes of text; forgotten all at once when full.
const MEMO_LIMIT: usize = 32 << 20;

#[derive(Debug)]
pub struct ChatTemplate {
    tokenizer: Tokenizer,
    /// The turn markers are added tokens of the vocabulary, so messages can be tokenized one by one.
    splits_at_turns: bool,
    memo: Mutex<Memo>,
}

#[derive(Debug, Default)]
struct Memo {
    /// Ids of `{role}\n{content}`.
    ids: HashMap<String, Arc<[u32]>>,
    n_bytes: usize,
}

// === impl ChatTemplate ===

impl ChatTemplate {
    pub fn new(tokenizer: Tokenizer) -> Self {
        let splits_at_turns =
            ["<|im_start|>", "<|im_end|>"].iter().all(|marker| tokenizer.encode(marker).len() == 1);
        Self { tokenizer, splits_at_turns, memo: Mutex::default() }
    }

    /// The text that the model would see.
    pub fn render(&self, chat: &Chat) -> String {
        let mut text = String::new();
        if needs_default_system(&chat.messages) {
            push_turn(&mut text, "system", DEFAULT_SYSTEM);
        }
        for message in &chat.messages {
            push_turn(&mut text, &message.role, &message.text());
        }
        if adds_generation_prompt(chat) {
            text.push_str("<|im_start|>assistant\n");
        }
        text
    }

    /// The ids of [`Self::render`]'s text.
    pub fn encode(&self, chat: &Chat) -> Vec<u32> {
        if !self.splits_at_turns {
            return self.tokenizer.encode(&self.render(chat));
        }
        let before = self.tokenizer.encode("<|im_start|>");
        let after = self.tokenizer.encode("<|im_end|>\n");
        let mut ids = Vec::new();
        let mut push_turn = |role: &str, content: &str| {
            ids.extend_from_slice(&before);
            ids.extend_from_slice(&self.message_ids(role, content));
            ids.extend_from_slice(&after);
        };
        if needs_default_system(&chat.messages) {
            push_turn("system", DEFAULT_SYSTEM);
        }
        for message in &chat.messages {
            push_turn(&message.role, &message.text());
        }
        if adds_generation_prompt(chat) {
            ids.extend_from_slice(&before);
            ids.extend(self.tokenizer.encode("assistant\n"));
        }
        ids
    }

    fn message_ids(&self, role: &str, content: &str) -> Arc<[u32]> {
        let text = format!("{role}\n{content}");
        if let Some(ids) = self.memo.lock().ids.get(&text) {
            return ids.clone();
        }
        let ids: Arc<[u32]> = self.tokenizer.encode(&text).into();
        self.memo.lock().insert(text, ids.clone());
        ids
    }
}

// === impl Memo ===

impl Memo {
    fn insert(&mut self, text: String, ids: Arc<[u32]>) {
        if self.n_bytes + text.len() > MEMO_LIMIT {
            self.ids.clear();
            self.n_bytes = 0;
        }
        self.n_bytes += text.len();
        self.ids.insert(text, ids);
    }
}

fn adds_generation_prompt(chat: &Chat) -> bool {
    chat.variables.get("add_generation_prompt").and_then(Value::as_bool).unwrap_or_default()
}

fn needs_default_system(messages: &[ChatMessage]) -> bool {
    messages.first().is_none_or(|message| message.role != "system")
}

fn push_turn(text: &mut String, role: &str, content: &str) {
    for part in ["<|im_start|>", role, "\n", content, "<|im_end|>\n"] {
        text.push_str(part);
    }
}
