//! Times of use, and forgetting by time.

use prefix_index::index::PrefixIndex;
use prefix_index::usage::Insertion;
use proptest::prelude::{Just, Strategy, prop_oneof, proptest};

use crate::fixtures::{chain, endpoint, index, matched, noise};

fn insert(index: &PrefixIndex, text: &[u8]) -> Insertion {
    index.insert(&chain(text), endpoint(0)).expect("the endpoint was not removed")
}

#[test]
fn an_insertion_tells_when_its_prefix_was_used_before() {
    let index = index(u32::MAX);
    let (first, other) = (noise(1024, 1), noise(1024, 2));
    let one = insert(&index, &first);
    assert_eq!(one.previous, None);
    let two = insert(&index, &other);
    assert_eq!(two.previous, None);
    let turn = [first.as_slice(), &noise(512, 3)].concat();
    let three = insert(&index, &turn);
    assert_eq!(three.previous, Some(one.at));
    assert!(three.at.is_after(two.at) && two.at.is_after(one.at) && !one.at.is_after(one.at));
    // A text that leaves another in its middle counts as a use of both.
    assert_eq!(insert(&index, &turn[..1200]).previous, Some(three.at));
    // Other endpoints have their own times of use.
    assert_eq!(index.insert(&chain(&first), endpoint(1)).unwrap().previous, None);
    index.remove_endpoint(endpoint(0));
    assert_eq!(index.insert(&chain(&first), endpoint(0)), None);
}

#[test]
fn what_was_used_since_stays() {
    let index = index(u32::MAX);
    let texts: Vec<Vec<u8>> = (0..5).map(|seed| noise(512, seed)).collect();
    let uses: Vec<Insertion> = texts.iter().map(|text| insert(&index, text)).collect();
    insert(&index, &texts[0]);
    let n_before = index.held_blocks(endpoint(0));
    let n_forgotten = index.forget_until(endpoint(0), uses[2].at);
    assert_eq!(index.held_blocks(endpoint(0)), n_before - n_forgotten);
    let held: Vec<bool> = texts.iter().map(|text| matched(&index, text, endpoint(0)) > 0).collect();
    assert_eq!(held, [true, false, false, true, true]);
    assert_eq!(index.forget_until(endpoint(0), uses[2].at), 0);
    assert_eq!(index.forget_until(endpoint(1), uses[4].at), 0, "an endpoint that holds nothing");
}

#[test]
fn a_shared_start_is_as_old_as_its_latest_use() {
    let index = index(u32::MAX);
    let start = noise(512, 9);
    let turn = |seed| [start.as_slice(), &noise(512, seed)].concat();
    let old = insert(&index, &turn(1));
    insert(&index, &turn(2));
    index.forget_until(endpoint(0), old.at);
    assert_eq!(matched(&index, turn(1), endpoint(0)), chain(&start).total_bytes());
    assert_eq!(matched(&index, turn(2), endpoint(0)), chain(turn(2)).total_bytes());
}

/// Texts of few different letters, each eight times, so that many prefixes are equal.
fn text() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(b'c')], 1..10)
        .prop_map(|letters| letters.into_iter().flat_map(|letter| [letter; 8]).collect())
}

proptest! {
    /// Compares with a naive list: each prefix was last used when the last text that has it was inserted. Texts of
    /// another endpoint split nodes; a part whose age is unknown may be forgotten late, never early.
    #[test]
    fn forgetting_matches_the_model(
        texts in proptest::collection::vec((text(), 0..2_u32), 1..40), until in 0..40_usize,
    ) {
        let index = index(u32::MAX);
        let mut uses = Vec::new();
        for (text, slot) in &texts {
            let inserted = index.insert(&chain(text), endpoint(*slot)).unwrap();
            if *slot == 0 {
                uses.push((text.clone(), inserted.at));
            }
        }
        let Some((_, last)) = uses.get(until.min(uses.len().saturating_sub(1))) else { return Ok(()) };
        index.forget_until(endpoint(0), *last);
        for (idx, (text, used)) in uses.iter().enumerate() {
            let later = uses[idx..].iter().filter(|(_, used)| used.is_after(*last));
            let common = |other: &[u8]| text.iter().zip(other).take_while(|(a, b)| a == b).count() as u64 / 8 * 8;
            let kept = later.map(|(other, _)| common(other)).max().unwrap_or(0);
            let is_alone = texts.iter().all(|(_, slot)| *slot == 0);
            let held = matched(&index, text, endpoint(0));
            assert!(held >= kept.min(text.len() as u64), "{used:?}");
            assert!(!is_alone || held <= uses.iter().filter(|(_, used)| used.is_after(*last)).map(|(other, _)| common(other)).max().unwrap_or(0));
        }
    }
}
