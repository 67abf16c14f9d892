//! Made-up English of real tokens: equal prompts, seeds and limits give equal text.

use crate::tokens::Tokenizer;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, LogNormal};
use sha2::{Digest, Sha256};

/// Median length of replies in tokens, with a mean of about 120: the range of answers in chat data (ShareGPT: mean 190,
/// long tail).
const LENGTH_MEDIAN: f64 = 90.0;
const LENGTH_SIGMA: f64 = 0.75;
const LENGTH_MIN: f64 = 4.0;
const LENGTH_MAX: f64 = 2_000.0;
/// Words in a sentence, and sentences in a paragraph.
const SENTENCE_WORDS: std::ops::RangeInclusive<usize> = 4..=14;
const PARAGRAPH_SENTENCES: std::ops::RangeInclusive<usize> = 3..=6;

const OPENERS: &str =
    "The This That Here There First Next Then Most Some Each Every Many Another One Often Usually";
const WORDS: &str = "answer way idea part time work place house door road city river garden window letter story \
    question reason number sentence example result system model request token cache server memory table word page \
    friend teacher student doctor market summer winter morning evening light water stone paper music picture game \
    simple small large quiet clear open early late common useful careful strong green blue old new long short good \
    better different important possible ready easy is are was has can will may should makes takes gives keeps finds \
    shows needs helps starts ends opens follows remembers explains reads writes builds moves turns waits and or but \
    with for from into over under after before between because while when where so that which the a of to in on at \
    also always never only still very more less again soon together";

/// Pieces of text with their ids. A piece never merges with a neighbour, because each is its own match of the split
/// pattern.
#[derive(Debug)]
pub struct Synthesizer {
    openers: Vec<Vec<u32>>,
    /// Openers with a space before them, for a sentence after another.
    spaced_openers: Vec<Vec<u32>>,
    words: Vec<Vec<u32>>,
    comma: Vec<u32>,
    full_stop: Vec<u32>,
    paragraph_end: Vec<u32>,
    seed: u64,
}

// === impl Synthesizer ===

impl Synthesizer {
    pub fn new(tokenizer: &Tokenizer, seed: u64) -> Self {
        let plain = |list: &str| list.split_whitespace().map(|word| tokenizer.encode(word)).collect();
        let spaced =
            |list: &str| list.split_whitespace().map(|word| tokenizer.encode(&format!(" {word}"))).collect();
        Self {
            openers: plain(OPENERS),
            spaced_openers: spaced(OPENERS),
            words: spaced(WORDS),
            comma: tokenizer.encode(","),
            full_stop: tokenizer.encode("."),
            paragraph_end: tokenizer.encode(".\n\n"),
            seed,
        }
    }

    /// Returns the words that are one token each.
    pub(super) fn words(&self) -> impl Iterator<Item = u32> {
        let single = |word: &Vec<u32>| (word.len() == 1).then(|| word[0]);
        self.words.iter().filter_map(single)
    }

    /// Returns whole sentences, without EOS. Their length is drawn from the prompt, up to `n_max`; they have at least
    /// `n_min` tokens, and the last sentence may exceed the length.
    pub fn tokens(&self, prompt: &[u32], request_seed: i64, n_min: u32, n_max: u32) -> Vec<u32> {
        let mut rng = self.rng(prompt, request_seed);
        let lengths = LogNormal::new(LENGTH_MEDIAN.ln(), LENGTH_SIGMA).expect("sigma is finite");
        let n_drawn = lengths.sample(&mut rng).clamp(LENGTH_MIN, LENGTH_MAX);
        let n_wanted = n_drawn.max(f64::from(n_min)).min(f64::from(n_max));
        let mut tokens = Vec::new();
        let is_short = |tokens: &Vec<u32>, n_end: usize| ((tokens.len() + n_end) as f64) < n_wanted;
        loop {
            let n_sentences = rng.random_range(PARAGRAPH_SENTENCES);
            for sentence_idx in 0..n_sentences {
                let openers = if sentence_idx == 0 { &self.openers } else { &self.spaced_openers };
                self.push_sentence(&mut tokens, openers, &mut rng);
                let is_last = sentence_idx + 1 == n_sentences;
                let is_end = !is_short(&tokens, self.paragraph_end.len());
                let end = if is_last && !is_end { &self.paragraph_end } else { &self.full_stop };
                tokens.extend_from_slice(end);
                if is_end {
                    return tokens;
                }
            }
        }
    }

    /// Appends a sentence without its full stop.
    fn push_sentence(&self, tokens: &mut Vec<u32>, openers: &[Vec<u32>], rng: &mut ChaCha8Rng) {
        tokens.extend_from_slice(pick(openers, rng));
        let n_words = rng.random_range(SENTENCE_WORDS);
        for word_idx in 1..n_words {
            tokens.extend_from_slice(pick(&self.words, rng));
            if word_idx + 2 < n_words && rng.random_range(0..12) == 0 {
                tokens.extend_from_slice(&self.comma);
            }
        }
    }

    /// Returns a generator, equal for equal server, prompt and seed.
    pub(super) fn rng(&self, prompt: &[u32], request_seed: i64) -> ChaCha8Rng {
        let mut hasher = Sha256::new();
        hasher.update(self.seed.to_le_bytes());
        hasher.update(request_seed.to_le_bytes());
        for id in prompt {
            hasher.update(id.to_le_bytes());
        }
        ChaCha8Rng::from_seed(hasher.finalize().into())
    }
}

fn pick<'a>(pieces: &'a [Vec<u32>], rng: &mut ChaCha8Rng) -> &'a [u32] {
    &pieces[rng.random_range(0..pieces.len())]
}
