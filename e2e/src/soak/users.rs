//! Users in conversations of a few turns. A user who waits for an answer asks nothing. Some want a long answer, and some
//! hang up.

use std::collections::VecDeque;
use std::time::Duration;

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
/// Tokens of a long answer, which takes an engine 6 to 12 s at time scale 1.
const LONG_TOKENS: u32 = 300;
/// One answer in so many is long.
const LONG_EVERY: u32 = 50;
/// One user in so many hangs up, after at most the time in which a short answer comes, or a third of a long one.
const HANG_UP_EVERY: u32 = 20;
const SHORT_PATIENCE: Duration = Duration::from_millis(150);
const LONG_PATIENCE: Duration = Duration::from_secs(3);
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
    pub(super) length: Length,
    /// Time after which the user hangs up, if the answer has not ended.
    pub(super) hangs_up_after: Option<Duration>,
}

/// Length of an answer. A picker that is replaced does not wait for a long one to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    Short,
    Long,
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
        let (length, hangs_up_after) = self.manner();
        let n_tokens = match length {
            Length::Short => TOKENS,
            Length::Long => LONG_TOKENS,
        };
        let messages = &mut self.conversations[user];
        messages.push(json!({"role": "user", "content": question}));
        let request = json!({
            "model": "/model/qwen",
            "messages": messages,
            "max_tokens": n_tokens,
            "min_tokens": n_tokens,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        NextRequest { user, body: body(&request), length, hangs_up_after }
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

    /// The length of the answer that the user wants, and the time after which the user hangs up.
    fn manner(&mut self) -> (Length, Option<Duration>) {
        let (length, patience) = match self.rng.random_ratio(1, LONG_EVERY) {
            true => (Length::Long, LONG_PATIENCE),
            false => (Length::Short, SHORT_PATIENCE),
        };
        let hangs_up = self.rng.random_ratio(1, HANG_UP_EVERY);
        (length, hangs_up.then(|| patience.mul_f64(self.rng.random())))
    }

    fn question(&mut self) -> String {
        let words = (0..WORDS).map(|_| VOCABULARY[self.rng.random_range(0..VOCABULARY.len())]);
        words.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{Length, TURNS, Users};

    #[test]
    fn some_want_a_long_answer_and_some_hang_up() {
        let mut users = Users::new(1);
        let requests: Vec<_> = (0..1000).map(|_| users.next()).collect();
        let n_long = requests.iter().filter(|request| request.length == Length::Long).count();
        let n_hanging_up = requests.iter().filter(|request| request.hangs_up_after.is_some()).count();
        assert!((5..50).contains(&n_long) && (25..100).contains(&n_hanging_up), "{n_long} {n_hanging_up}");
    }

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
