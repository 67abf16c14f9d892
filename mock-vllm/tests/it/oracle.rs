//! Reports of the oracle about a fleet: scripted routings with known regrets, and its caches compared with the pods'
//! own counts.

use crate::process::{run, stdout};
use crate::server_fixtures::{TestPod, start};
use crate::server_lifecycle::{open, wait_for};
use assert_cmd::assert::Assert;
use expect_test::expect;
use http::Method;
use predicates::str::contains;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use vllm_engine::engine::Engine;

/// Pods that share one cache log.
struct Fleet {
    directory: TempDir,
    pods: Vec<TestPod>,
    n_sent: usize,
}

fn oracle(log: &Path, flags: &str) -> Assert {
    run(&format!("oracle {} {flags}", log.display()))
}

/// Returns the report in JSON.
#[track_caller]
fn report(log: &Path, flags: &str) -> Value {
    let ended = oracle(log, &format!("--json {flags}")).success().stderr("");
    serde_json::from_str(stdout(&ended)).unwrap()
}

/// Makes `n` token ids from `first` on.
fn ids(first: u32, n: u32) -> Vec<u32> {
    (first..first + n).collect()
}

// === impl Fleet ===

impl Fleet {
    async fn start(names: &[&str], flags: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("cache.jsonl");
        let mut pods = Vec::new();
        for name in names {
            pods.push(start(&format!("--pod-name {name} --cache-log {} {flags}", log.display())).await);
        }
        Self { directory, pods, n_sent: 0 }
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("cache.jsonl")
    }

    /// Sends a request whose id counts from `r0`.
    async fn send(&mut self, pod: usize, prompt: &[u32], extra: &str) {
        let id = format!("r{}", self.n_sent);
        self.n_sent += 1;
        let headers = [("content-type", "application/json"), ("x-request-id", id.as_str())];
        let body = format!(r#"{{"prompt":{prompt:?},"max_tokens":1{extra}}}"#);
        let answer = self.pods[pod].send(Method::POST, "/v1/completions", &headers, body).await;
        assert!(answer.status.is_success(), "{}", answer.body);
    }

    /// Returns what each pod would hit now.
    async fn look_up(&self, prompt: &[u32], extra: &str) -> Vec<u64> {
        let mut hits = Vec::new();
        for pod in &self.pods {
            let answer = pod.post("/debug/lookup", format!(r#"{{"prompt":{prompt:?}{extra}}}"#)).await;
            hits.push(answer.json()["cached_tokens"].as_u64().unwrap());
        }
        hits
    }
}

#[tokio::test]
async fn a_scripted_routing_has_the_regrets_that_it_was_given() {
    let mut fleet = Fleet::start(&["a", "b", "c"], "").await;
    let short = ids(100, 160);
    let long = [short.clone(), ids(1_000, 160)].concat();
    // Cold; then warm on its own pod; then cold although `a` has 9 of 10 blocks.
    fleet.send(0, &short, "").await;
    fleet.send(0, &short, "").await;
    fleet.send(1, &short, "").await;
    // Cold although `a` and `b` have its first ten blocks; 10 blocks although `c` has 19; then new everywhere.
    fleet.send(2, &long, "").await;
    fleet.send(1, &long, "").await;
    fleet.send(1, &ids(5_000, 40), "").await;
    let printed = oracle(&fleet.log(), "").success().stderr("");
    expect![[r#"
         request  pod  prompt  cached  here  best  on  regret     cost
         r0       a       160       0     0     0  a        0   0.0 ms
         r1       a       160     144   144   144  a        0   0.0 ms
         r2       b       160       0     0   144  a      144  22.9 ms
         r3       c       320       0     0   160  a      160  36.1 ms
         r4       b       320     160   160   304  c      144  23.2 ms
         r5       b        40       0     0     0  b        0   0.0 ms

        requests  6 over 3 pods, 0 never admitted
        prompts   1160 tokens
        cached    304 tokens (26.2 %)
        here      304 tokens (26.2 %)
        best      752 tokens (64.8 %)
        regret    448 tokens (38.6 %) on 3 requests
        cost      82.2 ms
        replay    explains 6 of 6 admissions
    "#]]
    .assert_eq(stdout(&printed));
    let report = report(&fleet.log(), "");
    let row = &report["requests"][3];
    assert_eq!(row["hits"], json!({"a": 160, "b": 160, "c": 0}));
    assert_eq!(
        (&row["request_id"], &row["best_pod"], &row["regret_tokens"]),
        (&json!("r3"), &json!("a"), &json!(160))
    );
    assert_eq!(report["totals"]["regret_tokens"], 144 + 160 + 144);
    oracle(&fleet.log(), "--max-regret 447")
        .code(1)
        .stderr(contains("regret of 448 tokens is above --max-regret 447"));
    oracle(&fleet.log(), "--max-regret 448").success();
}

/// Sends four conversations of four turns over three pods.
async fn converse(fleet: &mut Fleet, greedy: bool) {
    let mut histories: Vec<Vec<u32>> = (0..4).map(|session| ids(1_000 * session, 100)).collect();
    for turn in 0..4 {
        for (session, history) in histories.iter_mut().enumerate() {
            let hits = fleet.look_up(history, "").await;
            let best = (0..3).max_by_key(|pod| (hits[*pod], (*pod + session) % 3)).unwrap();
            let pod = if greedy { best } else { fleet.n_sent % 3 };
            fleet.send(pod, history, "").await;
            history.extend(ids(history[0] + 10_000 + 100 * turn, 50));
        }
    }
}

#[tokio::test]
async fn perfect_routing_regrets_nothing_and_round_robin_does() {
    let mut perfect = Fleet::start(&["a", "b", "c"], "").await;
    converse(&mut perfect, true).await;
    oracle(&perfect.log(), "--max-regret 0").success();
    let totals = report(&perfect.log(), "")["totals"].clone();
    assert!(totals["cached_tokens"].as_u64().unwrap() > 0, "zero regret, and not for want of hits: {totals}");
    let mut round_robin = Fleet::start(&["a", "b", "c"], "").await;
    converse(&mut round_robin, false).await;
    oracle(&round_robin.log(), "--max-regret 0").code(1).stderr(contains("above --max-regret 0"));
}

/// A request that does not look into the cache has no regret on any pod, and contradicts nothing.
#[tokio::test]
async fn who_does_not_look_into_the_cache_misses_nothing() {
    let mut fleet = Fleet::start(&["a", "b"], "").await;
    let prompt = ids(1000, 160);
    fleet.send(0, &prompt, "").await;
    fleet.send(0, &prompt, r#","prompt_logprobs":1"#).await;
    fleet.send(1, &prompt, r#","prompt_logprobs":1"#).await;
    oracle(&fleet.log(), "--max-regret 0").success();
    let totals = report(&fleet.log(), "")["totals"].clone();
    assert_eq!(totals["admissions_explained"], totals["admissions"], "{totals}");
    // The same request without the field is a miss.
    fleet.send(0, &ids(5000, 160), "").await;
    fleet.send(1, &ids(5000, 160), "").await;
    oracle(&fleet.log(), "--max-regret 0").code(1).stderr(contains("above --max-regret 0"));
}

/// Pools that hold about three prompts, prompts with common beginnings, and salts: the oracle reports what the pods
/// counted.
#[tokio::test]
async fn the_told_caches_are_the_pods_own() {
    let mut fleet = Fleet::start(&["a", "b", "c"], "--max-model-len 512 --num-gpu-blocks-override 40").await;
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut seen = Vec::new();
    for _ in 0..80 {
        let family = rng.random_range(0..4) * 1_000;
        let common = rng.random_range(1..200);
        let own = rng.random_range(0..20);
        let prompt = [ids(family, common), ids(50_000 + rng.random_range(0..100), own)].concat();
        let extra = if rng.random_bool(0.2) { r#","cache_salt":"x""# } else { "" };
        seen.push(fleet.look_up(&prompt, extra).await);
        fleet.send(rng.random_range(0..3), &prompt, extra).await;
    }
    let report = report(&fleet.log(), "");
    let told: Vec<Vec<u64>> = report["requests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| ["a", "b", "c"].map(|pod| row["hits"][pod].as_u64().unwrap()).to_vec())
        .collect();
    assert_eq!(told, seen);
    assert_eq!(report["totals"]["admissions_explained"], 80);
    assert!(seen.iter().flatten().any(|tokens| *tokens > 0));
    let log = std::fs::read_to_string(fleet.log()).unwrap();
    assert!(log.contains("\"removed\":["), "the pools were too small for all of it");
}

#[tokio::test]
async fn a_burst_of_twins_is_explained() {
    let mut fleet = Fleet::start(&["a"], "--max-model-len 512 --num-gpu-blocks-override 100").await;
    let pod = &fleet.pods[0];
    let prompts: Vec<Vec<u32>> = (0..40).map(|idx| ids(1_000 * (idx % 5), 150)).collect();
    let bodies = prompts.iter().map(|prompt| format!(r#"{{"prompt":{prompt:?},"max_tokens":20}}"#));
    futures::future::join_all(bodies.map(|body| pod.post("/v1/completions", body))).await;
    fleet.send(0, &ids(0, 150), "").await;
    let totals = report(&fleet.log(), "")["totals"].clone();
    assert_eq!((&totals["admissions"], &totals["admissions_explained"]), (&json!(41), &json!(41)));
}

/// `b` has one seat, which is taken: its request waits while `a` computes the same prompt.
#[tokio::test]
async fn the_moment_of_admission_counts_what_came_meanwhile() {
    let mut fleet = Fleet::start(&["a", "b"], "--max-num-seqs 1 --time-scale 20").await;
    let seat = open(&fleet.pods[1], true).await;
    wait_for(&fleet.pods[1], |gauges| gauges.running == 1).await;
    let prompt = ids(100, 160);
    let body = format!(r#"{{"prompt":{prompt:?},"max_tokens":1}}"#);
    let waits = async {
        let (answer, ()) = tokio::join!(fleet.pods[1].post("/v1/completions", body.clone()), async {
            wait_for(&fleet.pods[1], |gauges| gauges.waiting == 1).await;
            fleet.pods[0].post("/v1/completions", body.clone()).await;
            drop(seat);
        });
        answer
    };
    assert!(waits.await.status.is_success());
    fleet.send(0, &prompt, "").await;
    let regrets = |flags: &str| -> Vec<u64> {
        let report = report(&fleet.log(), flags);
        let rows = report["requests"].as_array().unwrap().iter();
        rows.filter(|row| row["prompt_tokens"] == 160)
            .map(|row| row["regret_tokens"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(regrets(""), [0, 0, 0]);
    assert_eq!(regrets("--at admission"), [0, 144, 0]);
}

#[tokio::test]
async fn a_reset_and_a_restart_empty_the_cache() {
    let mut fleet = Fleet::start(&["a", "b"], "").await;
    let prompt = ids(100, 160);
    fleet.send(0, &prompt, "").await;
    assert!(fleet.pods[0].pod.driver.with_engine(Engine::reset_prefix_cache).await.unwrap());
    fleet.send(1, &prompt, "").await;
    let flags = format!("--pod-name b --cache-log {}", fleet.log().display());
    drop(fleet.pods.pop());
    while !std::fs::read_to_string(fleet.log()).unwrap().contains("\"event\":\"stop\"") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fleet.pods.push(start(&flags).await);
    fleet.send(0, &prompt, "").await;
    let report = report(&fleet.log(), "");
    for row in report["requests"].as_array().unwrap() {
        assert_eq!(row["hits"], json!({"a": 0, "b": 0}));
    }
    assert_eq!(report["totals"]["admissions_explained"], 3);
}

#[tokio::test]
async fn logs_that_tell_no_story_are_refused() {
    let mut fleet = Fleet::start(&["a"], "").await;
    let prompt = ids(100, 160);
    fleet.send(0, &prompt, "").await;
    fleet.send(0, &prompt, "").await;
    let log = std::fs::read_to_string(fleet.log()).unwrap();
    let file = fleet.directory.path().join("other.jsonl");
    let check = |text: &str, code: i32, expected: &str| {
        std::fs::write(&file, text).unwrap();
        oracle(&file, "").code(code).stderr(contains(expected));
    };
    check(&log, 0, "");
    check(&format!("{log}{{\"pod\":\"a"), 0, "");
    check(
        &log.replace("\"cached_tokens\":144", "\"cached_tokens\":128"),
        1,
        "hit 128 tokens on pod a, by its log it had 144",
    );
    let lines: Vec<&str> = log.lines().collect();
    let without = |left_off: usize| {
        let kept = lines.iter().enumerate().filter(|(idx, _)| *idx != left_off);
        kept.map(|(_, line)| format!("{line}\n")).collect::<String>()
    };
    check(&without(0), 2, "pod a has no start before");
    check(&without(2), 2, "pod a jumps from line 2 to 3: lines are missing");
    check("{\"prompt_tokens\":3}\n", 2, ":1 is no line of a cache log");
    check("", 2, "is empty");
    let other = start(&format!("--pod-name b --block-size 32 --cache-log {}", fleet.log().display())).await;
    oracle(&fleet.log(), "").code(2).stderr(contains("pods a and b name blocks differently"));
    drop(other);
    oracle(Path::new("/nonexistent"), "").code(2).stderr(contains("cannot read /nonexistent"));
}

/// The log takes the engine's events, and subscribers still get them.
#[tokio::test]
async fn kv_events_are_published_beside_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let config = r#"--kv-events-config={"enable_kv_cache_events":true,"endpoint":"tcp://*:0"}"#;
    let mut published = Vec::new();
    for log in [String::new(), format!("--cache-log {}", directory.path().join("c").display())] {
        let pod = start(&format!("{config} --max-num-batched-tokens 64 {log}")).await;
        pod.post("/v1/completions", format!(r#"{{"prompt":{:?},"max_tokens":40}}"#, ids(100, 160))).await;
        let (_, monitor) = pod.kv_events.as_ref().unwrap();
        published.push(monitor.stats().published);
    }
    assert!(published[0] > 3, "{published:?}");
    assert_eq!(published[0], published[1]);
}
