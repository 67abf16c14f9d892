//! Compares the engine with vLLM's recorded steps, and with copies in which one thing is changed.

use flate2::read::GzDecoder;
use serde_json::{Value, json};
use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use vllm_engine::trace::{self, CheckError, Difference};

fn traces() -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vllm-traces");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "gz"))
        .collect();
    paths.sort();
    paths
}

/// Returns the trace with preemptions, salts and aborts.
fn recorded() -> Value {
    let mut text = String::new();
    GzDecoder::new(fs::File::open(&traces()[0]).unwrap()).read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn check(trace: &Value) -> Result<trace::Matched, CheckError> {
    trace::check_bytes(trace.to_string().as_bytes())
}

#[track_caller]
fn difference(trace: &Value) -> Difference {
    match check(trace) {
        Err(CheckError::Differs(difference)) => difference,
        other => panic!("expected a difference, got {other:?}"),
    }
}

#[track_caller]
fn invalid(bytes: &[u8]) -> String {
    match trace::check_bytes(bytes) {
        Err(CheckError::Invalid(error)) => format!("{error:#}"),
        other => panic!("expected an invalid trace, got {other:?}"),
    }
}

/// Returns the index of the first step for which `matches` holds.
#[track_caller]
fn find_step(trace: &Value, matches: impl Fn(&Value) -> bool) -> usize {
    trace["steps"].as_array().unwrap().iter().position(matches).unwrap()
}

#[test]
fn every_recorded_step_is_reproduced() {
    let paths = traces();
    assert_eq!(paths.len(), 30);
    for path in paths {
        let checked = trace::check_bytes(&fs::read(&path).unwrap());
        assert!(checked.is_ok(), "{}: {checked:?}", path.display());
    }
}

#[test]
fn plain_json_is_read_too() {
    let matched = check(&recorded()).unwrap();
    assert_eq!((matched.requests, matched.steps, matched.preemptions), (42, 631, 19));
}

#[test]
fn a_changed_value_is_named() {
    let has = |field: &'static str| move |step: &Value| !step[field].as_array().unwrap().is_empty();
    let trace = recorded();
    let finished = find_step(&trace, has("finished"));
    let preempted = find_step(&trace, has("preempted"));
    let removed = find_step(&trace, |step| step["events"][0][0] == "removed");
    let resumed = find_step(&trace, |step| !step["resumed"].as_object().unwrap().is_empty());
    let resumed_id = trace["steps"][resumed]["resumed"].as_object().unwrap().keys().next().unwrap().clone();
    let changes: Vec<(usize, String, String, Value)> = vec![
        (3, "/scheduled/r4".into(), "scheduled.r4".into(), json!(31)),
        (3, "/events/1/1/0".into(), "events[1]".into(), json!("0000000000000000")),
        (3, "/events/0/3".into(), "events[0]".into(), json!(33)),
        (1, "/events/0/2".into(), "events[0]".into(), json!(null)),
        (removed, "/events/0/1/0".into(), "events[0]".into(), json!("0000000000000000")),
        (5, "/running".into(), "running".into(), json!(99)),
        (5, "/waiting".into(), "waiting".into(), json!(99)),
        (5, "/free_blocks".into(), "free_blocks".into(), json!(0)),
        (finished, "/finished".into(), "finished".into(), json!([])),
        (preempted, "/preempted/0".into(), "preempted[0]".into(), json!("r0")),
        (resumed, format!("/resumed/{resumed_id}"), format!("resumed.{resumed_id}"), json!(7)),
    ];
    for (step, pointer, field, value) in changes {
        let mut changed = trace.clone();
        *changed["steps"][step].pointer_mut(&pointer).unwrap() = value;
        let difference = difference(&changed);
        assert_eq!((difference.step, difference.field), (trace["steps"][step]["step"].as_u64(), field));
        assert_ne!(difference.trace, difference.engine);
    }
}

#[test]
fn the_line_shows_both_values() {
    let mut trace = recorded();
    trace["steps"][5]["free_blocks"] = json!(0);
    assert_eq!(difference(&trace).to_string(), "step 5: free_blocks: trace 0, engine 101");
}

#[test]
fn a_missing_or_extra_step_is_named() {
    let mut shorter = recorded();
    shorter["steps"].as_array_mut().unwrap().pop();
    assert_eq!(
        difference(&shorter).to_string(),
        "step 630: step: trace nothing happened, engine something happened"
    );
    let mut longer = recorded();
    let mut last = longer["steps"][630].clone();
    last["step"] = json!(631);
    longer["steps"].as_array_mut().unwrap().push(last);
    assert_eq!(
        difference(&longer).to_string(),
        "step 631: step: trace something happened, engine nothing happened"
    );
    let mut gap = recorded();
    gap["steps"].as_array_mut().unwrap().remove(7);
    assert_eq!(difference(&gap).step, Some(7));
}

#[test]
fn cached_tokens_of_a_request_are_compared() {
    let mut trace = recorded();
    trace["requests"][1]["cached_tokens"] = json!(null);
    assert_eq!(difference(&trace).to_string(), "requests.r4.cached_tokens: trace null, engine 0");
}

#[test]
fn the_workload_matters() {
    for (pointer, value) in [
        ("/params/num_blocks", json!(140)),
        ("/params/max_num_seqs", json!(3)),
        ("/params/max_num_batched_tokens", json!(65)),
        ("/params/policy", json!("priority")),
        ("/requests/0/prompt/0", json!(1)),
        ("/requests/0/salt", json!("other")),
    ] {
        let mut changed = recorded();
        *changed.pointer_mut(pointer).unwrap() = value;
        difference(&changed);
    }
}

#[test]
fn bad_files_are_explained() {
    let said = |bytes: &[u8], part: &str| {
        let error = invalid(bytes);
        assert!(error.contains(part), "{error:?} does not mention {part:?}");
    };
    said(b"", "parse the trace: EOF");
    said(b"[1, 2", "parse the trace");
    said(&[0x1f, 0x8b, 8, 0, 1, 2], "unpack the file");
    let change = |pointer: &str, value: Value| {
        let mut trace = recorded();
        *trace.pointer_mut(pointer).unwrap() = value;
        trace.to_string().into_bytes()
    };
    said(&change("/params/policy", json!("lifo")), "unknown variant `lifo`");
    said(&change("/params/block_size", json!(0)), "block_size must be greater than 0");
    said(&change("/params/num_blocks", json!(2)), "the pool has 1");
    said(&change("/params/num_blocks", json!(4_000_000_000_u32)), "num_blocks 4000000000 is more than");
    said(&change("/params/max_model_len", json!(100)), "add request r3: prompt of 226 tokens");
    said(&change("/requests/0/prompt", json!([])), "the prompt is empty");
    said(&change("/requests/0/output", json!([])), "the output is empty");
    said(&change("/requests/0/prompt/0", json!(-1)), "invalid value: integer `-1`");
    said(&change("/requests/1/id", json!("r3")), "request r3 is listed twice");
    said(&change("/requests/0/step", json!(600)), "requests are not in order");
    said(&change("/steps/3/step", json!(1)), "steps are not in order");
}

#[test]
fn a_late_arrival_is_not_walked_to() {
    let mut trace = recorded();
    let requests = trace["requests"].as_array_mut().unwrap();
    requests.last_mut().unwrap()["step"] = json!(u64::MAX);
    assert!(matches!(check(&trace), Err(CheckError::Differs(_))));
}
