//! `epp explain`: decisions repeated from their records, and requests that were never sent.

use assert_cmd::assert::Assert;
use assert_cmd::cargo::cargo_bin_cmd;
use predicates::str::contains;
use serde_json::Value;

use crate::fixtures::{Picker, Scenario};

const ROUNDS: [&str; 2] = [
    include_str!("../../../../manifests/doc/requests/bash/round1.txt"),
    include_str!("../../../../manifests/doc/requests/bash/round2.txt"),
];

fn explain(args: &[&str], input: &str) -> Assert {
    cargo_bin_cmd!("epp").arg("explain").args(args).write_stdin(input).assert()
}

/// Runs `epp explain --json` and returns its output and the exit code.
fn explained(args: &[&str], input: &str) -> (Vec<Value>, i32) {
    let ended = explain(&[&["--json"], args].concat(), input);
    let output = ended.get_output();
    let lines = output.stdout.split_inclusive(|byte| *byte == b'\n');
    (lines.map(|line| serde_json::from_slice(line).unwrap()).collect(), output.status.code().unwrap())
}

/// A picker with two decisions: a pod gets a prefix, then a longer text with it.
async fn busy_picker() -> Picker {
    let picker = Scenario::new(3).start().await;
    let proxy = picker.proxy().await;
    for length in [256, 400, 1000] {
        let content = "a".repeat(length);
        let body =
            format!(r#"{{"model":"/model/qwen","messages":[{{"role":"user","content":"{content}"}}]}}"#);
        proxy.chat(&body).await.picked();
    }
    proxy.chat(r#"{"model":"unknown","messages":[{"role":"user","content":"a"}]}"#).await.code();
    picker
}

#[test]
fn the_tutorials_second_round_finds_the_first() {
    let (rounds, code) = explained(&[], &ROUNDS.concat());
    let [first, second] = &rounds[..] else { panic!("{rounds:?}") };
    assert_eq!((&first["replayed"]["reason"], code), (&"load".into(), 0));
    assert_eq!(second["replayed"]["reason"], "prefix");
    assert_eq!(second["replayed"]["pod"], first["replayed"]["pod"]);
    // Control: with a threshold above its share, the second round is placed by load.
    let (rounds, _) = explained(&["--threshold", "0.6"], &ROUNDS.concat());
    assert_eq!(rounds[1]["replayed"]["reason"], "load");
    let words = "prefix, it holds 0.54 > 0.50 of the prompt's 728 bytes";
    explain(&[], &ROUNDS.concat()).stdout(contains(words));
}

#[tokio::test]
async fn records_replay_to_the_same_decisions() {
    let picker = busy_picker().await;
    let list = crate::fixtures::get(picker.ports.metrics, "/debug/decisions?after=0").await;
    let (all, code) = explained(&[], &list);
    assert_eq!((all.len(), code), (4, 0), "{all:?}");
    assert!(all[..3].iter().all(|one| one["verdict"] == "same" || one["verdict"] == "draw"), "{all:?}");
    assert_eq!(all[1]["replayed"]["reason"], "prefix");
    assert_eq!((&all[3]["verdict"], &all[3]["outcome"]), (&"refused".into(), &"model_not_found".into()));
    // A single decision, as it is in the list.
    let decisions = picker.decisions(0).await;
    let (one, _) = explained(&[], &decisions[1].to_string());
    assert_eq!(one[0]["verdict"], "same");
    // With another threshold: 256 of 400 bytes are not more than 0.9 of them.
    let (changed, code) = explained(&["--threshold", "0.9"], &decisions[1].to_string());
    assert_eq!((&changed[0]["replayed"]["reason"], code), (&"load".into(), 0));
    assert_eq!(changed[0]["verdict"], "differs");
}

#[tokio::test]
async fn a_record_that_does_not_add_up_is_told() {
    let picker = busy_picker().await;
    let mut decision = picker.decisions(0).await.swap_remove(1);
    let picked = decision["endpoint"].clone();
    for candidate in decision["candidates"].as_array_mut().unwrap() {
        if candidate["endpoint"] == picked {
            candidate["matched_bytes"] = 0.into();
        }
    }
    let (told, code) = explained(&[], &decision.to_string());
    assert_eq!((&told[0]["verdict"], code), (&"differs".into(), 1));
    // The record's own knobs count, not the defaults.
    let mut decision = picker.decisions(0).await.swap_remove(1);
    decision["policy"]["threshold"] = 0.99.into();
    assert_eq!(explained(&[], &decision.to_string()).0[0]["verdict"], "differs");
}

#[test]
fn input_that_is_not_understood_is_an_error_that_says_where() {
    for (input, said) in [
        ("", "no decision and no request"),
        ("{\"model\":1}\n{", "not JSON at byte 12"),
        (r#"{"seq":1,"outcome":"picked"}"#, "not a decision"),
        (r#"{"decisions":[{"seq":1}]}"#, "not a decision"),
    ] {
        explain(&[], input).code(2).stderr(contains(said));
    }
    // A body that cannot be routed is not an error of the input: the answer is the picker's refusal.
    let (told, code) = explained(&[], "17");
    assert_eq!((&told[0]["outcome"], code), (&"bad_request".into(), 0));
}
