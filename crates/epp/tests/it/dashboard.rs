//! The Grafana dashboard uses only metrics and labels that exist.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::fixtures::{Scenario, post};

const DASHBOARD: &str = include_str!("../../../../manifests/grafana/epp.json");
const CHAT: &str = r#"{"model":"/model/qwen","messages":[{"role":"user","content":"hello"}]}"#;
const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":2}}}"#;

/// Collects every string under the key, at any depth.
fn strings<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get(key).and_then(Value::as_str));
            fields.values().for_each(|value| strings(value, key, found));
        }
        Value::Array(values) => values.iter().for_each(|value| strings(value, key, found)),
        _ => {}
    }
}

/// The metrics in an expression: words with our prefixes.
fn metrics(expr: &str) -> impl Iterator<Item = &str> {
    let words = expr.split(|char: char| !(char.is_ascii_alphanumeric() || char == '_'));
    words.filter(|word| word.starts_with("inference_") || word.starts_with("epp_"))
}

/// The labels in `by (…)` and `{{…}}`.
fn labels(expr: &str, legend: &str) -> BTreeSet<String> {
    let between = |text: &str, from: &str, to: char| -> Vec<String> {
        let parts = text.split(from).skip(1).filter_map(|part| part.split(to).next().map(str::to_owned));
        parts.collect()
    };
    let by = between(expr, "by (", ')').into_iter().chain(between(legend, "{{", '}'));
    by.flat_map(|list| list.split(',').map(|label| label.trim().to_owned()).collect::<Vec<_>>()).collect()
}

#[tokio::test]
async fn every_panel_asks_for_what_there_is() {
    let picker = Scenario::new(1).start().await;
    let mut call = picker.proxy().await.open().await;
    call.send_headers(None, &post("/v1/chat/completions"), None, false).await;
    call.send_body(CHAT.as_bytes(), true).await;
    call.full_duplex_answer().await.picked();
    call.respond(&[(":status", "200"), ("content-type", "application/json")], &[USAGE.as_bytes()]).await;
    picker.proxy().await.chat("{").await.code();
    crate::fixtures::until(async || picker.decisions(0).await[0]["response"]["complete"] == true).await;
    // Labels of each metric's samples, by its name.
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in picker.metrics().await.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let inside = line.split_once('{').map_or("", |(_, rest)| rest.rsplit_once('}').unwrap().0);
        let labels =
            inside.split(',').filter_map(|label| label.split_once('=')).map(|(key, _)| key.to_owned());
        known.entry(name.to_owned()).or_default().extend(labels);
    }
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let (mut exprs, mut legends) = (Vec::new(), Vec::new());
    strings(&dashboard, "expr", &mut exprs);
    strings(&dashboard, "legendFormat", &mut legends);
    assert!(exprs.len() > 20 && exprs.len() == legends.len());
    for (expr, legend) in exprs.iter().zip(legends) {
        assert!(metrics(expr).next().is_some(), "{expr}");
        for metric in metrics(expr) {
            let labels_of = known.get(metric).unwrap_or_else(|| panic!("no {metric} in /metrics: {expr}"));
            for label in labels(expr, legend) {
                assert!(labels_of.contains(&label), "{metric} has no {label}, but {labels_of:?}: {expr}");
            }
        }
    }
    // Control: a name that does not exist is found.
    assert!(metrics("rate(epp_no_such_metric[5m])").any(|metric| !known.contains_key(metric)));
}
