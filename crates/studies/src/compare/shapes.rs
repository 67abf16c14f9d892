//! Loads with the shape of public traces, drawn again for each seed: the lengths of prompts and answers, the rate, and
//! what requests share. `--trace` reads the traces themselves.

use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Exp};

use crate::compare::traces::{MOONCAKE_BLOCK, Traced};

/// Values below which 0, 10, ... 100 % of a trace lie.
type Deciles = [u32; 11];

/// Shape of a trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    pub name: &'static str,
    /// Requests per second.
    rate: f64,
    input_tokens: Deciles,
    output_tokens: Deciles,
    sharing: Sharing,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Sharing {
    /// The trace does not show what requests share.
    Unknown,
    /// All prompts begin with the same block. With this probability, a request continues an earlier conversation.
    Conversations { continued: f64 },
}

/// Most tokens of a prompt and its answer, the pods' limit.
const MAX_TOKENS: usize = 8192;
/// Range of the seconds between a request and the one that continues it.
const PAUSE: (f64, f64) = (20.0, 120.0);
/// Range of the tokens of the next question in a conversation.
const QUESTION: (usize, usize) = (50, 400);

/// Shapes of two traces. Deciles come from the first minutes of each trace and are rounded.
pub const SHAPES: [Shape; 2] = [
    // conversation_trace.jsonl of kvcache-ai/Mooncake, without requests above 8,192 tokens. The others are half of its
    // 3.4 per second, and four A10s can serve two thirds of those. At best 40 % of all its prompt tokens are cached, by
    // its authors' count.
    Shape {
        name: "Mooncake's conversations",
        rate: 1.2,
        input_tokens: [898, 1066, 1902, 2100, 2400, 3700, 5300, 5950, 6700, 7240, 7600],
        output_tokens: [3, 26, 195, 309, 324, 355, 361, 421, 500, 548, 745],
        sharing: Sharing::Conversations { continued: 0.36 },
    },
    // AzureLLMInferenceTrace_conv.csv of Azure/AzurePublicDataset.
    Shape {
        name: "Azure's conversations",
        rate: 4.3,
        input_tokens: [2, 130, 205, 370, 440, 950, 1030, 1080, 1130, 1320, 4107],
        output_tokens: [12, 45, 82, 98, 145, 190, 217, 390, 400, 420, 650],
        sharing: Sharing::Unknown,
    },
];

impl Shape {
    /// True if the name contains one of the words, or if there are no words.
    pub fn is_wanted(&self, words: &[String]) -> bool {
        words.is_empty() || words.iter().any(|word| self.name.contains(word.as_str()))
    }

    /// Draws the requests of `duration`, sorted by time.
    pub fn draw(&self, duration: Duration, seed: u64) -> Vec<Traced> {
        let gaps = Exp::new(self.rate).expect("rates are above 0");
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut drawn: Vec<Traced> = Vec::new();
        // Block 0 is the one with which all prompts begin.
        let mut next_block = 1;
        let mut at = gaps.sample(&mut rng);
        while at < duration.as_secs_f64() {
            let output_tokens = draw(&self.output_tokens, &mut rng);
            let (input_tokens, hash_ids) = match self.sharing {
                Sharing::Unknown => (draw(&self.input_tokens, &mut rng), Vec::new()),
                Sharing::Conversations { continued } => {
                    let earlier = rng.random_bool(continued).then(|| earlier(&drawn, at, &mut rng)).flatten();
                    let (input_tokens, mut hash_ids) = match earlier {
                        None => (draw(&self.input_tokens, &mut rng), vec![0]),
                        Some(earlier) => {
                            let question = rng.random_range(QUESTION.0..=QUESTION.1);
                            let said = earlier.input_tokens + earlier.output_tokens;
                            let n_known = earlier.input_tokens / MOONCAKE_BLOCK;
                            (said + question, earlier.hash_ids[..n_known.max(1)].to_vec())
                        }
                    };
                    hash_ids.truncate(input_tokens.div_ceil(MOONCAKE_BLOCK));
                    while hash_ids.len() < input_tokens.div_ceil(MOONCAKE_BLOCK) {
                        hash_ids.push(next_block);
                        next_block += 1;
                    }
                    (input_tokens, hash_ids)
                }
            };
            let output_tokens = output_tokens.min(MAX_TOKENS - input_tokens);
            drawn.push(Traced { at: Duration::from_secs_f64(at), input_tokens, output_tokens, hash_ids });
            at += gaps.sample(&mut rng);
        }
        drawn
    }
}

/// Returns one of the requests that may be continued at `at` and leave room for that.
fn earlier<'a>(drawn: &'a [Traced], at: f64, rng: &mut ChaCha8Rng) -> Option<&'a Traced> {
    let is_ripe = |one: &&Traced| {
        let pause = at - one.at.as_secs_f64();
        let longest = one.input_tokens + one.output_tokens + QUESTION.1;
        (PAUSE.0..PAUSE.1).contains(&pause) && longest < MAX_TOKENS
    };
    let ripe: Vec<&Traced> = drawn.iter().filter(is_ripe).collect();
    (!ripe.is_empty()).then(|| ripe[rng.random_range(0..ripe.len())])
}

/// Draws a value, evenly distributed between two neighbouring deciles.
fn draw(deciles: &Deciles, rng: &mut ChaCha8Rng) -> usize {
    let idx = rng.random_range(0..deciles.len() - 1);
    let value = rng.random_range(deciles[idx]..=deciles[idx + 1]);
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use super::{MAX_TOKENS, SHAPES, Shape};
    use crate::compare::traces::{MOONCAKE_BLOCK, Traced};
    use load::stats::{as_f64, median};

    const HOUR: Duration = Duration::from_secs(3600);

    fn drawn(shape: &Shape) -> Vec<Traced> {
        let drawn = shape.draw(HOUR, 1);
        let rate = as_f64(drawn.len()) / HOUR.as_secs_f64();
        assert!((rate / shape.rate - 1.0).abs() < 0.05, "{rate}");
        assert!(drawn.iter().all(|one| one.input_tokens + one.output_tokens <= MAX_TOKENS));
        drawn
    }

    #[test]
    fn conversations_share_what_the_trace_shares() {
        let drawn = drawn(&SHAPES[0]);
        let mut seen = HashSet::new();
        let (mut n_cached, mut n_all) = (0, 0);
        for one in &drawn {
            let n_blocks = one.hash_ids.iter().take_while(|id| seen.contains(*id)).count();
            n_cached += (n_blocks * MOONCAKE_BLOCK).min(one.input_tokens);
            n_all += one.input_tokens;
            seen.extend(one.hash_ids.iter().copied());
            assert_eq!(one.hash_ids.len(), one.input_tokens.div_ceil(MOONCAKE_BLOCK));
        }
        let share = as_f64(n_cached) / as_f64(n_all);
        assert!((0.36..0.44).contains(&share), "{share}");
    }

    #[test]
    fn lengths_are_those_of_the_trace() {
        let drawn = drawn(&SHAPES[1]);
        let of = |part: fn(&Traced) -> usize| {
            median(&drawn.iter().map(|one| as_f64(part(one))).collect::<Vec<f64>>()).unwrap()
        };
        let (input, output) = (of(|one| one.input_tokens), of(|one| one.output_tokens));
        assert!(
            (input / 950.0 - 1.0).abs() < 0.05 && (output / 190.0 - 1.0).abs() < 0.05,
            "{input} {output}"
        );
        assert!(drawn.iter().all(|one| one.hash_ids.is_empty()));
    }

    #[test]
    fn a_seed_gives_one_load() {
        let minute = Duration::from_secs(60);
        assert_eq!(SHAPES[0].draw(minute, 3), SHAPES[0].draw(minute, 3));
        assert_ne!(SHAPES[0].draw(minute, 3), SHAPES[0].draw(minute, 4));
    }
}
