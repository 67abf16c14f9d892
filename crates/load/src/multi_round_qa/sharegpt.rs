//! Questions and answer lengths from a ShareGPT file, as `multi-round-qa.py` prepares and reads it.

use serde::Deserialize;

/// One conversation, in which the person and the model take turns.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Entry {
    pub conversations: Vec<Said>,
    /// Number of turns of both sides.
    pub num_round: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Said {
    pub value: String,
    /// Tokens of the turn; only the model's turns have it.
    pub num_tokens: Option<u32>,
}

/// Reads a file and keeps the entries with more than two turns per round.
///
/// # Errors
/// When it is not JSON of this form.
pub fn parse(text: &str, n_rounds: usize) -> serde_json::Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = serde_json::from_str(text)?;
    entries.retain(|entry| entry.num_round > 2 * n_rounds);
    Ok(entries)
}

impl Entry {
    /// Returns the question at `idx` and the `max_tokens` of its answer. With an odd number of turns the model's first
    /// turn is skipped.
    pub fn question(&self, idx: usize, answer_len: u32) -> Option<(&str, u32)> {
        let turn = 2 * idx + self.num_round % 2;
        let n_tokens = self.conversations.get(turn + 1)?.num_tokens?;
        Some((&self.conversations.get(turn)?.value, n_tokens.min(answer_len)))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn long_conversations_are_kept_and_the_first_turn_of_the_model_is_skipped() {
        let said = |idx: usize| format!(r#"{{"from":"x","value":"v{idx}","num_tokens":{}}}"#, idx * 10);
        let entry = |n: usize| {
            let turns: Vec<String> = (0..n).map(said).collect();
            format!(r#"{{"id":"a","num_round":{n},"conversations":[{}]}}"#, turns.join(","))
        };
        let entries = super::parse(&format!("[{},{},{}]", entry(4), entry(5), entry(6)), 2).unwrap();
        assert_eq!(entries.len(), 2, "four turns are not more than two rounds");
        assert_eq!(entries[0].question(1, 100), Some(("v3", 40)));
        assert_eq!(entries[1].question(1, 25), Some(("v2", 25)));
        assert_eq!(entries[1].question(3, 100), None);
    }
}
