//! The tutorial's two rounds in the three forms that a shell may give them, and a match of exactly one half.

use prefix_index::index::PrefixIndex;
use prefix_index::matches::Matches;

use crate::fixtures::{chain, endpoint, index, matched};

const ROUND1: &str = "Hi, here's some system prompt: hi hi hi hi hi hi hi hi hi hi.For user 3, here are some \
    other context: hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi hi.I would like to test your \
    intelligence. for this purpose I would like you to play zork. you can interact with the game by typing in \
    commands. I will forward these commands to the game and type in any response. are you ready?";
const GAME: &str = "% zork\nWelcome to Dungeon. This version created 11-MAR-91.\nYou are in an open field west of a \
    big white house with a boarded\nfront door.\nThere is a small mailbox here.\n>";
const MAILBOX: &str = "Opening the mailbox reveals:\n A leaflet.\n>";
const ANSWER: &str = "Hi there! It looks like you're setting up a fun test. I'm ready to play Zork! You can";

fn round1() -> String {
    format!("user: {ROUND1}\n")
}

fn round2(answer: &str, game: &str, mailbox: &str) -> String {
    format!("{}assistant: {answer}\nuser: {game}\nassistant: Great!\nuser: {mailbox}\n", round1())
}

/// Compares matched and total blocks of 8 bytes, and the ratio as the log prints it.
fn check(round2: &str, expected: (u64, u64, &str)) {
    let index = index(1000);
    assert_eq!(matched(&index, round2, endpoint(0)), 0, "an empty index matches nothing");
    index.insert(&chain(round1()), endpoint(0));
    let (matched, total) = (matched(&index, round2, endpoint(0)), chain(round2).total_bytes());
    let ratio = format!("{:.2}", matched as f64 / total as f64);
    assert_eq!((matched / 8, total / 8, ratio.as_str()), expected);
}

#[test]
fn bash_drops_the_quotes() {
    let answer = ANSWER.replace('\'', "");
    let text = round2(&answer, GAME, MAILBOX);
    assert_eq!(text.len(), 731);
    check(&text, (49, 91, "0.54"));
}

#[test]
fn properly_quoted() {
    let text = round2(ANSWER, GAME, MAILBOX);
    assert_eq!(text.len(), 733);
    check(&text, (49, 91, "0.54"));
}

#[test]
fn dash_loses_the_newlines_too() {
    let answer = ANSWER.replace('\'', "");
    let text = round2(&answer, &GAME.replace('\n', ""), &MAILBOX.replace('\n', ""));
    assert_eq!(text.len(), 724);
    check(&text, (49, 90, "0.54"));
}

#[test]
fn another_round_1_matches_only_its_start() {
    let text = round2(ANSWER, GAME, MAILBOX).replacen("Hi, here", "Ho, here", 1);
    check(&text, (0, 91, "0.00"));
}

/// A match of exactly one half is not more than one half.
#[test]
fn half_is_exactly_half() {
    let index = index(1000);
    let text: Vec<u8> = (0u8..160).collect();
    index.insert(&chain(&text[..80]), endpoint(0));
    let ratio = matched(&index, &text, endpoint(0)) as f64 / chain(&text).total_bytes() as f64;
    assert!(ratio == 0.5, "{ratio}");
    index.insert(&chain(&text[..88]), endpoint(0));
    let ratio = matched(&index, &text, endpoint(0)) as f64 / chain(&text).total_bytes() as f64;
    assert!(ratio > 0.5, "{ratio}");
}

fn user_prompt(user: u32, n_hi: usize) -> String {
    format!(
        "user: shared prompt: {}. For user {user}, other context: {}\n",
        "hi ".repeat(100),
        "hi ".repeat(n_hi)
    )
}

/// The blocks of both users' "hi hi hi" have the same text; only chaining shows that they follow different users.
#[test]
fn repeated_text_after_a_difference_does_not_match() {
    let index = index(10_000);
    let (first, second) = (user_prompt(1, 1000), user_prompt(2, 1000));
    let common = first.bytes().zip(second.bytes()).take_while(|(a, b)| a == b).count() as u64;
    index.insert(&chain(&first), endpoint(1));
    assert_eq!(matched(&index, &second, endpoint(1)), common / 8 * 8);
    assert!(common < second.len() as u64 / 5, "the trap needs a long repeated part");

    // Negative control: without chaining, nearly every block of the second prompt would be found.
    let blocks = |text: &str| text.as_bytes().chunks_exact(24).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let unchained = blocks(&second).iter().filter(|block| blocks(&first).contains(block)).count();
    assert!(unchained as f64 / blocks(&second).len() as f64 > 0.9);
}

#[test]
fn models_adapters_and_salts_do_not_share() {
    use crate::fixtures::{SEED, seeded_chain};
    let index: PrefixIndex = index(1000);
    index.insert(&chain(round1()), endpoint(0));
    let mut matches = Matches::new();
    for (seed, expected) in [
        (SEED, 392),
        (prefix_index::chain::ChainSeed { target_model: "/model/other", ..SEED }, 0),
        (prefix_index::chain::ChainSeed { adapter: Some("travel"), ..SEED }, 0),
        (prefix_index::chain::ChainSeed { cache_salt: Some("tenant"), ..SEED }, 0),
    ] {
        index.longest_match(&seeded_chain(round1(), &seed), &mut matches);
        assert_eq!(matches.bytes(endpoint(0)), expected, "{seed:?}");
        assert_eq!(matches.is_empty(), expected == 0);
    }
}
