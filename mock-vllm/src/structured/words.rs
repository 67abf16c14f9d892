//! Short English texts for values that may be any text.

use rand::{Rng, RngExt};

const WORDS: &str = "answer bridge city corner doctor early engine evening forest friend garden green harbor honest \
    island kitchen letter light market memory morning music number open orange paper people picture place quiet \
    reason river road sample school simple small stone story street summer table teacher temple travel tree useful \
    valley village water window winter word yellow";
/// Names for values that the schema does not name.
const KEYS: &str = "name value status message count result note label kind detail";

/// Most characters that are drawn as words; longer texts repeat these.
const WORDS_MAX_CHARS: usize = 4_096;

/// Makes a text of `min..=max` characters, of a few words if that is enough, without spaces at its ends.
pub(super) fn text(rng: &mut dyn Rng, min: usize, max: usize) -> String {
    let words: Vec<&str> = WORDS.split_whitespace().collect();
    let n_words = rng.random_range(1..=4);
    let mut text = String::new();
    for word_idx in 0.. {
        let word = words[rng.random_range(0..words.len())];
        let n_chars = text.len() + usize::from(word_idx > 0) + word.len();
        let is_enough = word_idx > 0 && text.len() >= min && (word_idx >= n_words || n_chars > max);
        if is_enough || text.len() > WORDS_MAX_CHARS {
            break;
        }
        if word_idx > 0 {
            text.push(' ');
        }
        text.push_str(word);
    }
    while text.len() < min {
        let n_missing = (min - text.len()).min(text.len());
        text.extend_from_within(..n_missing);
    }
    text.truncate(max);
    if text.ends_with(' ') {
        text.pop();
        text.push('s');
    }
    text
}

pub(super) fn word(rng: &mut dyn Rng) -> &'static str {
    nth(WORDS, rng)
}

pub(super) fn key(rng: &mut dyn Rng) -> &'static str {
    nth(KEYS, rng)
}

fn nth(list: &'static str, rng: &mut dyn Rng) -> &'static str {
    let n_words = list.split_whitespace().count();
    list.split_whitespace().nth(rng.random_range(0..n_words)).expect("the index is in range")
}
