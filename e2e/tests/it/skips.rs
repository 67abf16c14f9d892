//! Checks that a cluster gives no chance to make: they are skipped with the reason, in everything that a run leaves.

#![expect(clippy::unwrap_used, reason = "a run that cannot be started fails its test")]

use lab::cluster::fault::{Fault, Unavailable};

use crate::soak::WITHOUT_POOL;
use crate::stubs::{Lab, read};

/// Runs one group with this number of pods. Returns the exit code, the summary, and the texts of the JSON, JUnit and HTML
/// reports.
fn run(replicas: u32) -> (Option<i32>, String, [String; 3]) {
    let lab = Lab::new();
    let flags = format!("run --only latency --replicas {replicas} --report-dir report");
    let ended = lab.driver(&flags).output().unwrap();
    let written = ["report.json", "junit.xml", "report.html"];
    let texts = written.map(|name| read(lab.dir.path().join("report").join(name)));
    (ended.status.code(), String::from_utf8_lossy(&ended.stdout).into_owned(), texts)
}

#[test]
fn what_needs_a_second_pod_is_skipped_with_one() {
    const REASON: &str = "2 pods are needed, and 1 ready: --replicas 2";
    let (code, summary, [json, junit, html]) = run(1);
    assert_eq!(code, Some(0), "skips do not fail a run: {summary}");
    assert!(summary.contains("0 of 3 checks passed, 3 skipped in"), "{summary}");
    assert_eq!(summary.matches(REASON).count(), 3, "{summary}");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let checks = json["checks"].as_array().unwrap();
    let ids: Vec<&str> = checks.iter().filter_map(|check| check["id"].as_str()).collect();
    assert_eq!(ids, ["latency/cached-tokens", "latency/warm-is-faster", "latency/model"]);
    assert!(checks.iter().all(|check| check["skipped"] == REASON && check["passed"] == false), "{json}");
    assert!(junit.contains("skipped=\"3\"") && junit.contains("failures=\"0\""), "{junit}");
    assert_eq!(junit.matches(&format!("<skipped message=\"{REASON}\"")).count(), 3, "{junit}");
    assert!(html.contains("0 of 3 passed, 3 skipped") && html.contains(REASON), "{html}");
}

/// The control: with two pods the same checks are made. The stub of an engine cannot answer them.
#[test]
fn what_fails_with_two_pods_is_not_skipped() {
    if test_skips::skips_slow() {
        return;
    }
    let (code, summary, [json, junit, html]) = run(2);
    assert_eq!(code, Some(1), "{summary}");
    assert!(summary.contains("1 of 1 checks failed in"), "{summary}");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["checks"][0]["skipped"].is_null() && json["checks"][0]["passed"] == false, "{json}");
    assert!(junit.contains("skipped=\"0\"") && junit.contains("failures=\"1\""), "{junit}");
    assert!(!html.contains("<dt>skipped</dt>"), "{html}");
}

#[tokio::test]
async fn a_cluster_without_pickers_cannot_hang_them() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::new();
    let with_pickers = lab.start().await;
    assert_eq!(with_pickers.can(&Fault::HangPickers), Ok(()));
    with_pickers.stop().await.unwrap();
    let mut manifests = lab.manifests();
    manifests.files.values_mut().for_each(String::clear);
    let first = manifests.files.values_mut().next().unwrap();
    *first = WITHOUT_POOL.replace("PORT", &lab.ports[1].to_string());
    lab.write(&manifests);
    let cluster = lab.start().await;
    for fault in [Fault::HangPickers, Fault::KillPickers, Fault::ForgeCertificates, Fault::EmptyPools] {
        let refused = cluster.inflict(&fault).await.unwrap_err();
        let reason = refused.downcast_ref::<Unavailable>().map(ToString::to_string);
        assert!(reason.is_some_and(|reason| reason.contains("no InferencePool")), "{refused:#}");
    }
    cluster.stop().await.unwrap();
}
