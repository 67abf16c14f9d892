//! `e2e explain-manifests`: three answers, and an exit code that a pipeline can use.

#![expect(clippy::unwrap_used, reason = "a run that cannot be started fails its test")]

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const TUTORIAL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/doc");
const ROLE: &str =
    "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {name: reader}\nrules: []\n";
const BAD: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: {ports: [{port: 70000}]}\n";

/// Explains the tutorial and `more`, which is given on standard input.
fn explain(flags: &[&str], more: &str) -> Output {
    let mut driver = Command::new(env!("CARGO_BIN_EXE_e2e"))
        .args(["explain-manifests", TUTORIAL, "-"])
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    driver.stdin.take().unwrap().write_all(more.as_bytes()).unwrap();
    driver.wait_with_output().unwrap()
}

/// The answer to each object, by kind and name.
fn answers(output: &Output) -> Vec<(String, String)> {
    let explained: Value = serde_json::from_slice(&output.stdout).unwrap();
    let objects = explained["objects"].as_array().unwrap().clone();
    let text = |object: &Value, field: &str| object[field].as_str().unwrap().to_owned();
    objects
        .iter()
        .map(|object| (format!("{}/{}", text(object, "kind"), text(object, "name")), text(object, "answer")))
        .collect()
}

fn answer(answers: &[(String, String)], object: &str) -> String {
    answers.iter().find(|(found, _)| found == object).unwrap().1.clone()
}

#[test]
fn each_object_gets_one_of_three_answers() {
    let good = explain(&["--json"], ROLE);
    let found = answers(&good);
    assert_eq!((good.status.code(), found.len()), (Some(0), 10), "{found:?}");
    assert_eq!(answer(&found, "HTTPRoute/qwen-backend"), "translated");
    assert_eq!(answer(&found, "Role/reader"), "without_effect");
    let bad = explain(&["--json"], &format!("{ROLE}---\n{BAD}"));
    let found = answers(&bad);
    assert_eq!((bad.status.code(), answer(&found, "Service/bad")), (Some(1), "refused".to_owned()));
    assert_eq!(answer(&found, "Role/reader"), "without_effect", "the others are explained all the same");
}

/// Whoever pipes objects in knows of no file.
#[test]
fn what_comes_on_standard_input_is_called_so() {
    let named = explain(&[], BAD);
    let text = String::from_utf8(named.stdout).unwrap();
    assert!(text.contains("standard input, document 1") && !text.contains("/standard input"), "{text}");
    assert!(text.contains("manifests/doc"), "Control: files are called by their path: {text}");
    let broken = explain(&[], "a: [");
    let text = String::from_utf8(broken.stderr).unwrap();
    assert!(text.contains("standard input") && !text.contains("/standard input"), "{text}");
}

#[test]
fn strictly_what_has_no_effect_is_refused() {
    let strict = explain(&["--json", "--strict"], ROLE);
    assert_eq!(
        (strict.status.code(), answer(&answers(&strict), "Role/reader")),
        (Some(1), "refused".to_owned())
    );
}

#[test]
fn people_read_a_table() {
    let text = String::from_utf8(explain(&[], ROLE).stdout).unwrap();
    for part in
        ["Role default/reader", "without effect", "listeners http on 8080, llm-gw on 8081", "mock-vllm serve"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}
