//! The texts of a session, as `multi-round-qa.py` words them.

/// Returns the first message of a session: system text, history text and question, with nothing between the parts.
pub fn first_message(user_id: u32, (n_system, n_history): (usize, usize), question: &str) -> String {
    format!(
        "Hi, here's some system prompt: {}.For user {user_id}, here are some other context: {}.{question}",
        his(n_system),
        his(n_history)
    )
}

/// Returns the question at `idx` (from 0) when there is no data set.
pub fn numbered_question(idx: u32) -> String {
    format!("Here's question #{}: can you tell me a new long story with a happy ending?", idx + 1)
}

/// Returns the message of the warm-up request at `idx` (from 0).
pub fn warm_up(idx: u32) -> String {
    format!("WARMUP: Hi, I'm user {idx}. Here are some text: {}.", "hi ".repeat(100))
}

fn his(n_words: usize) -> String {
    vec!["hi"; n_words].join(" ")
}

#[cfg(test)]
mod tests {
    use super::{first_message, numbered_question, warm_up};

    #[test]
    fn texts_are_as_long_as_the_originals() {
        assert_eq!(first_message(9, (100, 2_000), "").chars().count(), 6_372);
        assert_eq!(first_message(10, (100, 2_000), "").chars().count(), 6_373);
        assert_eq!(warm_up(0).chars().count(), 345);
        assert!(
            first_message(2, (2, 1), "Why?")
                .ends_with("hi hi.For user 2, here are some other context: hi.Why?")
        );
        assert!(numbered_question(0).starts_with("Here's question #1: can"));
    }
}
