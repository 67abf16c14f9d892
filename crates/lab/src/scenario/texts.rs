//! Texts whose share of common bytes is known exactly.
//! The picker sees a chat as `role: content\n` per message, and its block borders below 1,024 bytes are multiples of
//! eight.

use serde_json::{Value, json};

/// Bytes of each text as the picker sees it.
pub(super) const BYTES: usize = 512;

/// Text before and after the content of a single user message, as the picker sees it.
const BEFORE: &str = "user: ";
const AFTER: &str = "\n";

/// Returns two contents that agree in the first `shared` bytes of what the picker sees, and differ right after.
/// Contents of different names share less than a block.
pub(super) fn pair(name: &str, shared: usize) -> (String, String) {
    let content = BYTES - BEFORE.len() - AFTER.len();
    let start = format!("{name}: ");
    let common: String =
        start.chars().chain("the same words again ".chars().cycle()).take(shared - BEFORE.len()).collect();
    let rest = |word: char| std::iter::repeat_n(word, content - common.len());
    (common.chars().chain(rest('x')).collect(), common.chars().chain(rest('y')).collect())
}

/// Makes a short chat request with one user message.
pub(super) fn chat(model: &str, content: &str) -> Value {
    json!({
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 2,
        "stream": true,
        "stream_options": {"include_usage": true},
        "temperature": 0,
    })
}

/// Makes a chat request whose answer has exactly this many tokens.
pub(super) fn long_chat(model: &str, content: &str, n_tokens: u32) -> Value {
    let mut request = chat(model, content);
    request["max_tokens"] = n_tokens.into();
    request["min_tokens"] = n_tokens.into();
    request
}

#[cfg(test)]
mod tests {
    use super::{AFTER, BEFORE, BYTES, pair};

    #[test]
    fn exactly_the_asked_bytes_are_shared() {
        for shared in [256, 264] {
            let (one, two) = pair("exactly half", shared);
            let seen = |content: &str| format!("{BEFORE}{content}{AFTER}").into_bytes();
            let (one, two) = (seen(&one), seen(&two));
            assert_eq!((one.len(), two.len()), (BYTES, BYTES));
            let common = one.iter().zip(&two).take_while(|(a, b)| a == b).count();
            assert_eq!(common, shared);
        }
    }
}
