//! Users in conversations of a few turns. A user who waits for an answer asks nothing.

use std::collections::VecDeque;

use bytes::Bytes;
use lab::requests::body;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// Turns of a conversation, after which its user begins another one.
const TURNS: usize = 6;
/// Words of a question.
const WORDS: usize = 40;
const TOKENS: u32 = 4;
const VOCABULARY: [&str; 12] = [
    "depot", "gauge", "ledger", "signal", "harbour", "turbine", "the", "of", "under", "with", "line", "note",
];

#[derive(Debug)]
pub(super) struct Users {
    rng: ChaCha8Rng,
    conversations: Vec<Vec<Value>>,
    /// Users that do not wait for an answer; the one that was answered longest ago comes first.
    idle: VecDeque<usize>,
}

/// The next request of a user.
#[derive(Debug)]
pub(super) struct NextRequest {
    pub(super) user: usize,
    pub(super) body: Bytes,
}

impl Users {
    pub(super) fn new(seed: u64) -> Self {
        Self { rng: ChaCha8Rng::seed_from_u64(seed), conversations: Vec::new(), idle: VecDeque::new() }
    }

    /// Returns the next turn: of a new user until there are a few hundred, then of the one that was answered longest
    /// ago.
    pub(super) fn next(&mut self) -> NextRequest {
        const ENOUGH: usize = 300;
        let user = match self.idle.pop_front() {
            Some(user) if self.conversations.len() >= ENOUGH => user,
            popped => {
                self.idle.extend(popped);
                self.conversations.push(Vec::new());
                self.conversations.len() - 1
            }
        };
        if self.conversations[user].len() >= 2 * TURNS {
            self.conversations[user].clear();
        }
        let question = self.question();
        let messages = &mut self.conversations[user];
        messages.push(json!({"role": "user", "content": question}));
        let request = json!({
            "model": "/model/qwen",
            "messages": messages,
            "max_tokens": TOKENS,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        NextRequest { user, body: body(&request) }
    }

    /// Records the end of a user's request; `None` for a failure, after which the user starts a new conversation.
    pub(super) fn answered(&mut self, user: usize, content: Option<&str>) {
        match content {
            Some(content) => {
                self.conversations[user].push(json!({"role": "assistant", "content": content}));
            }
            None => self.conversations[user].clear(),
        }
        self.idle.push_back(user);
    }

    fn question(&mut self) -> String {
        let words = (0..WORDS).map(|_| VOCABULARY[self.rng.random_range(0..VOCABULARY.len())]);
        words.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{TURNS, Users};

    #[test]
    fn a_user_goes_on_where_it_was_answered_and_begins_anew_after_some_turns() {
        let mut users = Users::new(1);
        for _ in 0..300 {
            let turn = users.next();
            users.answered(turn.user, Some("yes"));
        }
        let mut lengths = Vec::new();
        for _ in 0..300 * TURNS {
            let turn = users.next();
            let request: Value = serde_json::from_slice(&turn.body).unwrap();
            if turn.user == 0 {
                lengths.push(request["messages"].as_array().unwrap().len());
            }
            users.answered(turn.user, Some("yes"));
        }
        assert_eq!(lengths, [3, 5, 7, 9, 11, 1]);
    }
}
