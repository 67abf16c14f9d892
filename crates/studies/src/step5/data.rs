//! Conversations in ShareGPT's format, made so that the tutorial's command sends and receives exactly the tokens that
//! its two published runs report. They contain no part of a real conversation.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use load::multi_round_qa::prompts;
use load::multi_round_qa::schedule::{Ended, Schedule};
use load::multi_round_qa::sharegpt::{Entry, Said};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, LogNormal};
use sim::model::{ChatModel, Message};

use crate::step5::workload::Command;

/// Prompt tokens of the tutorial's run over standard HTTP routing; [`OUTPUT_TOKENS`] are those of the answers.
pub const INPUT_TOKENS: u64 = 151_091;
pub const OUTPUT_TOKENS: u64 = 2_833;
/// Number of conversations; users 2 to 13 ask, and the first one is never used.
const ENTRIES: usize = 14;
/// Turns of each conversation, questions and answers together, for more than 15 rounds.
const TURNS: usize = 32;
/// Tokens of a question (and below of an uncut answer): median, and spread of its logarithm, as in real conversations.
const QUESTION: (f64, f64) = (19.0, 0.9);
const ANSWER: (f64, f64) = (38.0, 0.75);
const MIN_ANSWER: u32 = 3;
const MAX_QUESTION: u32 = 150;
/// Most draws of all conversations until one is near enough to be corrected.
const MAX_DRAWS: u32 = 2_000;
/// Largest error of a draw that can be corrected, in tokens.
const NEAR_INPUT: u64 = 120;
const NEAR_OUTPUT: u64 = 60;
/// Most rounds of correction.
const MAX_CORRECTIONS: u32 = 60;

/// Words that are single tokens, so that a text has about as many tokens as words.
const WORDS: [&str; 32] = [
    "the", "water", "house", "small", "time", "work", "people", "light", "city", "paper", "river", "music",
    "story", "garden", "market", "window", "letter", "number", "morning", "question", "answer", "reason",
    "under", "before", "after", "between", "about", "with", "without", "their", "which", "could",
];

/// Questions that are asked, by user.
type Asked = BTreeMap<u32, Vec<u32>>;

/// Generates conversations that fit, from this seed on.
///
/// # Errors
/// When no draw out of many can be corrected to fit.
pub fn generate(seed: u64, command: Command, model: &ChatModel) -> Result<Vec<Entry>> {
    let asked = asked(command);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for _ in 0..MAX_DRAWS {
        let mut entries = draw(&mut rng)?;
        let (input, output) = play(&entries, &asked, command, model)?;
        let is_near =
            input.abs_diff(INPUT_TOKENS) < NEAR_INPUT && output.abs_diff(OUTPUT_TOKENS) < NEAR_OUTPUT;
        if is_near && correct(&mut entries, &asked, (command, model))? {
            return Ok(entries);
        }
    }
    bail!("no draw of {MAX_DRAWS} comes near enough")
}

/// Returns the text of the file.
///
/// # Errors
/// Does not fail for the entries of [`generate`].
pub fn to_json(entries: &[Entry]) -> Result<String> {
    let entries: Vec<serde_json::Value> = entries
        .iter()
        .zip(0..)
        .map(|(entry, number): (&Entry, u32)| {
            let said = entry.conversations.iter().map(|said| match said.num_tokens {
                None => serde_json::json!({"from": "human", "value": said.value}),
                Some(n) => serde_json::json!({"from": "gpt", "value": said.value, "num_tokens": n}),
            });
            serde_json::json!({
                "id": format!("made-{number}"),
                "num_round": entry.num_round,
                "conversations": said.collect::<Vec<_>>(),
            })
        })
        .collect();
    Ok(serde_json::to_string_pretty(&entries)? + "\n")
}

/// Returns the input and output tokens of all scheduled turns.
///
/// # Errors
/// When a conversation is too short.
pub fn totals(entries: &[Entry], command: Command, model: &ChatModel) -> Result<(u64, u64)> {
    play(entries, &asked(command), command, model)
}

fn asked(command: Command) -> Asked {
    let mut schedule = Schedule::new(command.plan);
    let mut asked = Asked::new();
    let (mut now, tick) = (Duration::ZERO, Duration::from_millis(100));
    while now <= command.duration {
        for turn in schedule.tick(now).turns {
            asked.entry(turn.user_id).or_default().push(turn.question_idx);
            schedule.ended(turn.user_id, Ended::Answered);
        }
        now += tick;
    }
    asked
}

fn draw(rng: &mut ChaCha8Rng) -> Result<Vec<Entry>> {
    let of = |(median, spread): (f64, f64)| LogNormal::new(median.ln(), spread);
    let (question, answer) = (of(QUESTION)?, of(ANSWER)?);
    let entry = |rng: &mut ChaCha8Rng| {
        let turn = |idx: usize, rng: &mut ChaCha8Rng| match idx % 2 {
            0 => {
                let n_words = count(question.sample(rng)).clamp(2, MAX_QUESTION);
                Said { value: words(n_words, rng) + "?", num_tokens: None }
            }
            _ => {
                let n = count(answer.sample(rng)).clamp(MIN_ANSWER, 400);
                Said { value: words(n.min(12), rng) + ".", num_tokens: Some(n) }
            }
        };
        Entry { conversations: (0..TURNS).map(|idx| turn(idx, rng)).collect(), num_round: TURNS }
    };
    Ok((0..ENTRIES).map(|_| entry(rng)).collect())
}

fn words(n: u32, rng: &mut ChaCha8Rng) -> String {
    let words = (0..n).map(|_| WORDS[rng.random_range(0..WORDS.len())]);
    words.collect::<Vec<_>>().join(" ")
}

/// Plays every session's turns, one after the other; the cache makes no difference to the token counts.
fn play(entries: &[Entry], asked: &Asked, command: Command, model: &ChatModel) -> Result<(u64, u64)> {
    let (mut input, mut output) = (0, 0);
    for (user_id, questions) in asked {
        let entry = entries.get(usize::try_from(*user_id)?).context("there are too few conversations")?;
        let mut messages: Vec<Message> = Vec::new();
        for question_idx in questions {
            let question = entry.question(usize::try_from(*question_idx)?, command.answer_len);
            let (question, max_tokens) = question.context("a conversation is too short")?;
            let content = match messages.is_empty() {
                true => prompts::first_message(*user_id, command.words, question),
                false => question.to_owned(),
            };
            messages.push(Message { role: "user", content: content.clone() });
            let prompt = model.prompt(&messages)?;
            let reply = model.reply(&prompt, &content, max_tokens);
            input += prompt.len() as u64;
            output += reply.tokens.len() as u64;
            messages.push(Message { role: "assistant", content: reply.text });
        }
    }
    Ok((input, output))
}

/// Changes the last question of some sessions, which no later prompt repeats, and then the limits of the last answers,
/// which no prompt repeats, until both totals fit. Returns true if they do.
fn correct(entries: &mut [Entry], asked: &Asked, (command, model): (Command, &ChatModel)) -> Result<bool> {
    let last: Vec<(usize, usize)> = asked
        .iter()
        .filter_map(|(user_id, questions)| {
            Some((usize::try_from(*user_id).ok()?, usize::try_from(*questions.last()?).ok()?))
        })
        .collect();
    for round in 0..MAX_CORRECTIONS {
        let (input, output) = play(entries, asked, command, model)?;
        if (input, output) == (INPUT_TOKENS, OUTPUT_TOKENS) {
            return Ok(true);
        }
        let (user, question) = last[usize::try_from(round)? % last.len()];
        let turns = &mut entries[user].conversations;
        if input != INPUT_TOKENS {
            change_words(&mut turns[2 * question].value, input, INPUT_TOKENS);
            continue;
        }
        let Some(bound) = &mut turns[2 * question + 1].num_tokens else { return Ok(false) };
        let effective = (*bound).min(command.answer_len);
        let missing = i64::try_from(OUTPUT_TOKENS)? - i64::try_from(output)?;
        let wanted = (i64::from(effective) + missing).clamp(MIN_ANSWER.into(), command.answer_len.into());
        *bound = u32::try_from(wanted)?;
    }
    Ok(false)
}

/// Adds or removes as many words before the question mark as the total is off.
fn change_words(question: &mut String, total: u64, wanted: u64) {
    let text = question.trim_end_matches('?').to_owned();
    let mut words: Vec<&str> = text.split(' ').collect();
    if total < wanted {
        let n_missing = usize::try_from(wanted - total).unwrap_or(usize::MAX).min(40);
        words.extend(std::iter::repeat_n(WORDS[0], n_missing));
    } else {
        let n_spare =
            usize::try_from(total - wanted).unwrap_or(usize::MAX).min(words.len().saturating_sub(2));
        words.truncate(words.len() - n_spare);
    }
    *question = words.join(" ") + "?";
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "lengths of texts, rounded down")]
fn count(length: f64) -> u32 {
    length as u32
}
