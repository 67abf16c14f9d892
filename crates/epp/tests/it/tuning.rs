//! The policy's knobs: sources of values, refusals and their texts; changes count at once.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use epp::policies::{Policies, WatchedFile};
use epp::tuning::{Knob, KnobSource, Patch, Tuning};
use inference_api::object::ObjectKey;
use pool_index::source::kept::SETTLE;
use serde_json::{Value, json};

use crate::fixtures::{Scenario, get, post, until};

fn patch(text: &str) -> Patch {
    Patch::parse(text).unwrap()
}

#[test]
fn a_later_source_wins_knob_by_knob() {
    let tuning = Tuning::default()
        .with(&patch("{threshold: 0.1, stall: 1, spillTokens: 1}"), KnobSource::Flag)
        .with(&patch("{threshold: 0.2, stall: 2}"), KnobSource::File)
        .with(&patch(r#"{"threshold": 0.3}"#), KnobSource::Annotation);
    let setting = |knob| (tuning.settings()[&knob].value, tuning.settings()[&knob].source);
    assert_eq!(setting(Knob::Threshold), (0.3, KnobSource::Annotation));
    assert_eq!(setting(Knob::Stall), (2.0, KnobSource::File));
    assert_eq!(setting(Knob::SpillTokens), (1.0, KnobSource::Flag));
    assert_eq!(setting(Knob::KvThreshold), (0.9, KnobSource::BuiltIn));
    let affinity = tuning.affinity(4.0);
    assert_eq!((affinity.threshold, affinity.stall, affinity.spill_bytes), (0.3, 2.0, 4.0));
    assert_eq!((affinity.queue_bytes, affinity.kv_bytes, affinity.kv_threshold), (256.0, 4096.0, 0.9));
}

#[test]
fn what_is_wrong_is_named() {
    let refused = |text: &str| Patch::parse_file(text).unwrap_err().to_string();
    for (text, expected) in [
        (
            "default: {treshold: 0.5}",
            "line 1 column 11: unknown variant `treshold`, expected one of threshold, spillTokens",
        ),
        ("defaults: {}", "unknown field `defaults`"),
        ("default: {threshold: 1.5}", "threshold: 1.5 is not in 0 to 1"),
        ("default: {spillTokens: -1}", "spillTokens: -1 is not in 0 to 1000000"),
        ("default: {stall: .nan}", "stall: NaN is not in 0 to 100"),
        ("default: {threshold: half}", "line 1 column 22: invalid floating point"),
        ("pools: {a/p: {stall: 1}}", "unknown field `pools`"),
        ("default: [", "line 1"),
        ("- default", "line 1"),
    ] {
        let message = refused(text);
        assert!(message.contains(expected), "{text}: {message}");
    }
    // Control: valid texts are accepted, and so is an empty one.
    for text in ["", "# nothing yet\n", "default: {threshold: 0.5}"] {
        Patch::parse_file(text).unwrap();
    }
}

/// The published schema agrees with the parser.
#[test]
fn the_schema_has_every_knob_and_its_range() {
    let schema: Value = serde_json::from_str(include_str!("../../policy.schema.json")).unwrap();
    let knobs = schema["properties"]["default"]["properties"].as_object().unwrap();
    let names: BTreeSet<&str> = knobs.keys().map(String::as_str).collect();
    assert_eq!(names, Knob::ALL.into_iter().map(Knob::as_str).collect());
    for knob in Knob::ALL {
        let range = [&knobs[knob.as_str()]["minimum"], &knobs[knob.as_str()]["maximum"]];
        assert_eq!(range.map(|bound| bound.as_f64().unwrap()), [*knob.range().start(), *knob.range().end()]);
        assert_eq!(knobs[knob.as_str()]["default"].as_f64().unwrap(), knob.built_in(), "{knob}");
        assert_eq!(serde_json::to_value(knob).unwrap(), knob.as_str());
    }
}

#[test]
fn a_bad_file_keeps_the_last_good_one() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let pool = ObjectKey::new("default", "any");
    let policies = Policies::new(patch("{stall: 3}"));
    let threshold = || policies.of(&pool).affinity(4.0).threshold;
    write!(file, "default: {{threshold: 0.6}}").unwrap();
    let mut watched = WatchedFile::load(file.path().to_owned(), &policies).unwrap();
    assert_eq!((threshold(), policies.of(&pool).affinity(4.0).stall), (0.6, 3.0));
    let mut now = some_moment();
    let mut rewrite = |text: &str, wait: Duration| {
        std::fs::write(file.path(), text).unwrap();
        for step in [Duration::ZERO, Duration::from_millis(100), wait] {
            now += step;
            watched.poll(&policies, now);
        }
    };
    rewrite("default: {threshold: 7}", SETTLE);
    assert_eq!(threshold(), 0.6);
    rewrite("default: {threshold: 0.7}", Duration::ZERO);
    assert_eq!(threshold(), 0.7);
    // A knob that is missing for a moment, alone or with all others, is kept; one that stays missing is not.
    for moment in ["", "# a comment", "default: {stall: 4}"] {
        rewrite(moment, SETTLE / 2);
        assert_eq!(threshold(), 0.7, "{moment}");
        rewrite("default: {threshold: 0.7}", Duration::ZERO);
        rewrite(moment, SETTLE);
        assert_eq!(threshold(), 0.5, "{moment}");
        rewrite("default: {threshold: 0.7}", Duration::ZERO);
    }
    rewrite("", SETTLE);
    assert_eq!((threshold(), policies.of(&pool).affinity(4.0).stall), (0.5, 3.0));
    // A file that is not valid at the start is an error with its name.
    std::fs::write(file.path(), "default: {threshold: 7}").unwrap();
    let load = |path: &Path| WatchedFile::load(path.to_owned(), &policies).unwrap_err().to_string();
    let error = load(file.path());
    assert!(
        error.starts_with(&file.path().display().to_string()) && error.contains("threshold: 7"),
        "{error}"
    );
    assert!(load(Path::new("/does/not/exist")).contains("cannot be read"));
    assert!(load(Path::new("/dev/zero")).contains("is a device"));
}

#[expect(clippy::disallowed_methods, reason = "any moment will do")]
fn some_moment() -> Instant {
    Instant::now()
}

#[tokio::test]
async fn an_annotation_counts_at_once_and_a_bad_one_does_not() {
    let picker = Scenario::new(2).start().await;
    let proxy = picker.proxy().await;
    let in_force = async || -> Value {
        let shown: Value = serde_json::from_str(&get(picker.ports.metrics, "/debug/policy").await).unwrap();
        shown["pools"]["default/vllm-qwen-pool"]["threshold"].clone()
    };
    assert_eq!(in_force().await, json!({"value": 0.5, "source": "built_in"}));
    let ask = async |prompt: &str| {
        let body = format!(r#"{{"model":"/model/qwen","prompt":"{prompt}"}}"#);
        proxy.full_duplex(&post("/v1/completions"), &[body.as_bytes(), b""]).await;
        picker.decisions(0).await.pop().unwrap()
    };
    let (known, new) = ("a".repeat(160), "b".repeat(80));
    ask(&known).await;
    assert_eq!(ask(&format!("{known}{new}")).await["reason"], "prefix");

    picker.annotate_policy("{threshold: 0.9}");
    until(async || in_force().await == json!({"value": 0.9, "source": "annotation"})).await;
    let decision = ask(&format!("{known}{}", "c".repeat(80))).await;
    assert_eq!((&decision["reason"], &decision["threshold"]), (&"load".into(), &0.9.into()));

    picker.annotate_policy("{threshold: 9}");
    let complaints =
        || picker.log.lines().iter().filter(|line| line.contains("Keeping the last good policy")).count();
    until(async || complaints() == 1).await;
    assert_eq!(in_force().await["value"], 0.9);
    picker.annotate_policy("");
    until(async || in_force().await["value"] == 0.5).await;
    assert_eq!(complaints(), 1, "once for each text");
}
