//! Engines that are not ours: the checks that need what only mock-vllm has are skipped with the reason, and the others are
//! made. A mock whose own endpoints are shut stands for vLLM.

#![expect(clippy::unwrap_used, reason = "a run that cannot be started fails its test")]

use lab::check::{Check, Group};
use lab::cluster::manifests::Manifests;
use lab::cluster::{Cluster, Options};
use lab::engine::Engine;
use lab::flags;
use lab::journal::Journal;
use lab::report::{Outcome, Run};
use lab::requests::Requests;
use lab::scenario::{self, lab::Lab as Tools};
use lab::ui::Ui;
use load::clock::Stopwatch;

use crate::stubs::Lab;

const SCALE: f64 = 10.0;

/// Runs groups of checks with mocks whose own endpoints are shut, and takes them for `engine`.
async fn checks(engine: Engine, groups: &[Group]) -> Vec<Check> {
    let lab = Lab::real().await;
    let mut manifests: Manifests = lab.manifests();
    manifests.replace("replicas: 2", "replicas: 5").unwrap();
    // The lab gives a real engine no argument, and this one is to be fast and of the version of the image.
    let arguments = format!("--mock-endpoints=false --vllm-version 0.8 --time-scale {SCALE}");
    manifests.replace("--enable-prefix-caching", &format!("--enable-prefix-caching {arguments}")).unwrap();
    lab.write(&manifests);
    let options = Options { engine, time_scale: SCALE, ..lab.options() };
    let requests = Requests::new(flags::requests(&options).unwrap());
    let cluster = Cluster::start(options, lab.programs.clone(), lab.progress()).await.unwrap();
    let (journal, ui) = (Journal::default(), Ui::new(false));
    let tools = Tools::new(&cluster, &journal, &ui, (requests, SCALE, Stopwatch::start()));
    scenario::run(&tools, groups).await;
    ui.finish();
    cluster.stop().await.unwrap();
    journal.report(run()).checks
}

fn run() -> Run {
    Run {
        started: String::new(),
        outcome: Outcome::Passed,
        elapsed_s: 0.0,
        manifests: String::new(),
        replicas: 2,
        time_scale: SCALE,
        http_port: 0,
        llm_port: 0,
        notes: Vec::new(),
    }
}

/// Ids of checks with this verdict, and the reasons of those that are skipped.
fn skipped(checks: &[Check]) -> Vec<(&str, String)> {
    let reason = |check: &Check| serde_json::to_value(check).unwrap()["skipped"].as_str().map(str::to_owned);
    checks.iter().filter_map(|check| Some((check.id.as_str(), reason(check)?))).collect()
}

#[tokio::test]
async fn what_only_the_mock_has_is_skipped_and_the_rest_is_checked() {
    if test_skips::skips_slow() {
        return;
    }
    let groups = [Group::Tutorial, Group::Latency, Group::Precise, Group::Requests];
    let checks = checks(Engine::Vllm, &groups).await;
    let failed: Vec<&Check> = checks.iter().filter(|check| check.failed()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let passed: Vec<&str> =
        checks.iter().filter(|check| check.passed()).map(|check| check.id.as_str()).collect();
    for made in [
        "tutorial/quoted/affinity",
        "tutorial/quoted/cached-tokens",
        "tutorial/quoted/round1-cold",
        "tutorial/quoted/log-line",
        "latency/warm-is-faster",
    ] {
        assert!(passed.contains(&made), "{made} is not among {passed:?}");
    }
    let skipped = skipped(&checks);
    for (id, reason) in [
        ("tutorial/quoted/round1-text", "own words"),
        ("tutorial/quoted/round2-usage", "own words"),
        ("latency/cached-tokens", "--enable-prompt-tokens-details"),
        ("latency/model", "only mock-vllm has the times of the latency model"),
        ("precise/exact", "a real engine keeps its own arguments: --num-gpu-blocks-override 200"),
        ("requests/estimate/control", "a real engine keeps its own arguments: --vllm-version"),
    ] {
        let found = skipped.iter().find(|(skipped, _)| *skipped == id);
        assert!(found.is_some_and(|(_, why)| why.contains(reason)), "{id}: {found:?}");
    }
    assert!(!skipped.iter().any(|(id, _)| id.ends_with("/runs")), "each check has its name: {skipped:?}");
}

/// The control: a check that asks a shut endpoint because it takes the engine for the mock fails, and says why.
#[tokio::test]
async fn a_check_that_reaches_for_a_shut_endpoint_fails() {
    if test_skips::skips_slow() {
        return;
    }
    let checks = checks(Engine::Mock, &[Group::Requests]).await;
    assert!(skipped(&checks).is_empty(), "{checks:#?}");
    let failed: Vec<&Check> = checks.iter().filter(|check| check.failed()).collect();
    assert!(failed.iter().any(|check| check.seen.contains("without a word on the cache")), "{failed:#?}");
}
