//! Conversations to send: texts by seed, of a customer who works through a long document with one question per turn.
//! The history has the model's own answers, so each turn extends the prompt of the turn before exactly.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

/// Sentences in the document of the first turn: about 1,150 Qwen tokens, so long that its prefill is noticeable.
const DOCUMENT_SENTENCES: usize = 80;

const SUBJECTS: &[&str] = &[
    "the northern depot",
    "the harbour crew",
    "our night shift",
    "the river gauge",
    "the audit team",
    "a spare turbine",
    "the signal cabin",
    "the field office",
    "the grain terminal",
    "the survey drone",
    "the cooling plant",
    "the records clerk",
];
const VERBS: &[&str] = &[
    "reports to",
    "borrows parts from",
    "supplies",
    "inspects",
    "waits for",
    "shares a line with",
    "replaces",
    "measures the load of",
    "sends its readings to",
];
const QUALIFIERS: &[&str] = &[
    "before noon",
    "on even weeks",
    "under permit",
    "at low tide",
    "without delay",
    "twice a month",
    "after the bell",
    "by radio",
    "during the thaw",
];
const QUESTIONS: &[&str] = &[
    "Who depends on",
    "When does anyone contact",
    "What would break first without",
    "Which rule is written down for",
    "How often do we see",
];

/// One conversation in progress.
#[derive(Debug, Clone)]
pub struct Conversation {
    /// Number in its set, from 0.
    pub number: usize,
    rng: ChaCha8Rng,
    messages: Vec<Value>,
}

impl Conversation {
    /// Starts conversation `number` of the set with this seed. Different numbers share almost no prefix.
    pub fn new(seed: u64, number: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(u64::try_from(number).unwrap_or(u64::MAX));
        Self { number, rng, messages: Vec::new() }
    }

    /// Asks the next question; the first one comes with the document.
    pub fn ask(&mut self) {
        let question = format!("{} {}?", pick(QUESTIONS, &mut self.rng), pick(SUBJECTS, &mut self.rng));
        let content = match self.messages.is_empty() {
            true => format!("{} {question}", self.document()),
            false => question,
        };
        self.messages.push(json!({"role": "user", "content": content}));
    }

    /// Adds the model's answer unchanged.
    pub fn answer(&mut self, content: &str) {
        self.messages.push(json!({"role": "assistant", "content": content}));
    }

    /// Returns the request for the next answer, streamed and with usage.
    pub fn request(&self, model: &str, max_tokens: u32) -> Value {
        json!({
            "model": model,
            "messages": self.messages,
            "max_tokens": max_tokens,
            "stream": true,
            "stream_options": {"include_usage": true},
            "temperature": 0,
        })
    }

    /// Draws a number that depends on the conversation and seed, for other things that vary between turns.
    pub fn draw(&mut self, range: std::ops::Range<u64>) -> u64 {
        self.rng.random_range(range)
    }

    fn document(&mut self) -> String {
        let sentences: Vec<String> = (0..DOCUMENT_SENTENCES).map(|_| sentence(&mut self.rng)).collect();
        format!(
            "Case file {}-{:06}. {}",
            self.number,
            self.rng.random_range(0..1_000_000),
            sentences.join(" ")
        )
    }
}

fn sentence(rng: &mut ChaCha8Rng) -> String {
    let text = format!(
        "{} {} {} {}, item {}.",
        pick(SUBJECTS, rng),
        pick(VERBS, rng),
        pick(SUBJECTS, rng),
        pick(QUALIFIERS, rng),
        rng.random_range(100..1000)
    );
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn pick<'a>(words: &[&'a str], rng: &mut ChaCha8Rng) -> &'a str {
    words[rng.random_range(0..words.len())]
}

#[cfg(test)]
mod tests {
    use super::Conversation;

    fn text(conversation: &Conversation) -> String {
        conversation.request("m", 8).to_string()
    }

    #[test]
    fn the_same_seed_gives_the_same_texts() {
        let (mut one, mut two) = (Conversation::new(7, 3), Conversation::new(7, 3));
        one.ask();
        two.ask();
        assert_eq!(text(&one), text(&two));
    }

    #[test]
    fn another_seed_or_number_gives_another_text() {
        let mut texts: Vec<String> = [(7, 3), (7, 4), (8, 3)]
            .map(|(seed, number)| {
                let mut conversation = Conversation::new(seed, number);
                conversation.ask();
                text(&conversation)
            })
            .into();
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), 3);
    }

    #[test]
    fn a_turn_extends_the_earlier_one() {
        let mut conversation = Conversation::new(1, 0);
        conversation.ask();
        let first = conversation.request("m", 8)["messages"].clone();
        conversation.answer("It is so.");
        conversation.ask();
        let second = conversation.request("m", 8)["messages"].clone();
        assert_eq!(second[0], first[0]);
        assert_eq!(second[1]["content"], "It is so.");
        assert_eq!(second.as_array().unwrap().len(), 3);
    }

    #[test]
    fn later_turns_are_mostly_history() {
        let mut conversation = Conversation::new(1, 0);
        conversation.ask();
        let first = text(&conversation).len();
        conversation.answer("Yes.");
        conversation.ask();
        assert!(first > 2000, "a document of {first} bytes is too short to be felt");
        assert!(text(&conversation).len() < first * 11 / 10);
    }
}
