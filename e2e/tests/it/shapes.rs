//! Files in the shape of published ones: nothing of them is refused, and a chat is answered through the picker.

#![expect(clippy::unwrap_used, reason = "a cluster that cannot be made fails its test")]

use std::time::Duration;

use http::{HeaderName, StatusCode};
use lab::cluster::explain::{self, Answer};
use lab::cluster::{Cluster, Strictness};
use load::client::Client;
use serde_json::{Value, json};

use crate::stubs::{HANG, Lab, free_port};

/// The files, each with the model that its guide asks for, and the objects and fields that must be listed.
const SHAPES: [(&str, &str, &str, &[&str]); 4] = [
    (
        "guide-v1alpha2",
        include_str!("../shapes/guide-v1alpha2.yaml"),
        "review",
        &["DestinationRule/epp-tls", "Deployment/llm-epp", "ClusterRole/pod-read"],
    ),
    ("guide-v1", include_str!("../shapes/guide-v1.yaml"), "review-1", &["Deployment/llm-epp"]),
    ("sglang", SGLANG, "Qwen/Qwen2.5-7B-Instruct", &[]),
    ("ai-gateway", include_str!("../shapes/ai-gateway.yaml"), "small:latest", &["AIServiceBackend/provider"]),
];

const SGLANG: &str = include_str!("../shapes/sglang.yaml");
/// Line by which a pool of [`SGLANG`] names its runtime.
const RUNTIME: &str = "  annotations: {inference.networking.x-k8s.io/model-server-runtime: sglang}\n";

/// Starts a file with its gateway on a free port.
async fn start(lab: &Lab, name: &str, text: &str) -> Cluster {
    let port = "port: 80,";
    assert!(text.contains(port));
    lab.start_text(name, &text.replace(port, &format!("port: {},", free_port()))).await
}

fn chats(cluster: &Cluster) -> String {
    format!("http://{}/v1/chat/completions", cluster.gateway("http").unwrap())
}

fn chat(model: &str) -> String {
    let message = json!({ "role": "user", "content": "hi" });
    json!({ "model": model, "messages": [message], "max_tokens": 1 }).to_string()
}

/// The decisions that the cluster's picker remembers, the oldest first.
async fn decisions(cluster: &Cluster, client: &Client) -> Vec<Value> {
    let picker = cluster.status().pickers[0].metrics.unwrap();
    let page = client.get(&format!("http://{picker}/debug/decisions?after=0")).await.unwrap();
    let page: Value = serde_json::from_slice(&page.body).unwrap();
    page["decisions"].as_array().unwrap().clone()
}

#[test]
fn no_published_shape_is_refused() {
    for (name, text, _, listed) in SHAPES {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("all.yaml");
        std::fs::write(&file, text).unwrap();
        let explanation = explain::explain(&[file], Strictness::Lenient).unwrap();
        assert!(explanation.is_good(), "{name}: {explanation:?}");
        let without = explanation.objects.iter().filter(|object| object.answer == Answer::WithoutEffect);
        let without: Vec<String> = without.map(|object| format!("{}/{}", object.kind, object.name)).collect();
        for object in listed {
            assert!(without.iter().any(|found| found == object), "{name}: {object} is not among {without:?}");
        }
        let pool = explanation.objects.iter().find(|object| object.kind == "InferencePool").unwrap();
        assert_eq!(pool.answer, Answer::Translated, "{name}: {pool:?}");
    }
}

#[tokio::test]
async fn every_published_shape_answers_through_the_picker() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::real().await;
    for (name, text, model, _) in SHAPES {
        let cluster = start(&lab, name, text).await;
        let url = chats(&cluster);
        let ask = |model: &str| {
            let explain = [(HeaderName::from_static("x-warmpath-explain"), "true")];
            let (url, body) = (url.clone(), chat(model));
            async move { Client::default().post(&url, &explain, body.into()).await.unwrap() }
        };
        let reply = ask(model).await;
        assert_eq!(reply.status, StatusCode::OK, "{name}: {}", String::from_utf8_lossy(&reply.body));
        let decision = reply.headers.get("x-warmpath-decision").expect("a picker has picked");
        assert!(decision.to_str().unwrap().contains("endpoint"), "{name}: {decision:?}");
        let unknown = ask("no-such-model").await;
        assert!(unknown.status == StatusCode::NOT_FOUND, "{name}: the control: {}", unknown.status);
        cluster.stop().await.unwrap();
    }
}

/// The control is a pool that does not name its runtime: the picker looks for vLLM's names and finds none.
#[tokio::test]
async fn the_picker_reads_sglangs_metrics_if_the_pool_names_the_runtime() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::real().await;
    assert!(SGLANG.contains(RUNTIME));
    for (name, text, is_read) in
        [("named", SGLANG.to_owned(), true), ("control", SGLANG.replace(RUNTIME, ""), false)]
    {
        let cluster = start(&lab, name, &text).await;
        let client = Client::default();
        let url = chats(&cluster);
        let picker = cluster.status().pickers[0].metrics.unwrap();
        // Scrapes that found what they looked for, and others.
        let scraped = async {
            while n_scrapes(&client.get(&format!("http://{picker}/metrics")).await.unwrap().text()) < 10.0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(HANG, scraped).await.expect("the pods are scraped");
        let candidates = async || {
            client.post(&url, &[], chat("Qwen/Qwen2.5-7B-Instruct").into()).await.unwrap();
            let decisions = decisions(&cluster, &client).await;
            decisions.last().unwrap()["candidates"].as_array().unwrap().clone()
        };
        let are_read = |candidates: &[Value]| {
            !candidates.is_empty() && candidates.iter().all(|candidate| candidate["fresh"] == true)
        };
        if is_read {
            // A busy machine may leave one of the pods waiting.
            let read = async { while !are_read(&candidates().await) {} };
            tokio::time::timeout(HANG, read).await.expect("the picker reads every pod's metrics");
        } else {
            let candidates = candidates().await;
            assert!(!candidates.is_empty() && candidates.iter().all(|candidate| candidate["fresh"] == false));
        }
        cluster.stop().await.unwrap();
    }
}

/// A ConfigMap has the picker's configuration; the control is upstream's default, which changes nothing.
#[tokio::test]
async fn the_pickers_own_configuration_is_followed() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::real().await;
    let queue = "{pluginRef: queue-scorer, weight: 2}";
    let (_, text, model, _) = SHAPES[1];
    assert!(text.contains(queue));
    for (name, weight, queue_tokens) in [("heavy", 8, 256.0), ("control", 2, 64.0)] {
        let text = text.replace(queue, &queue.replace('2', &weight.to_string()));
        let cluster = start(&lab, name, &text).await;
        let client = Client::default();
        client.post(&chats(&cluster), &[], chat(model).into()).await.unwrap();
        let decision = &decisions(&cluster, &client).await[0];
        assert_eq!(decision["strategy"], "PREFIX_CACHE", "{name}: a prefix scorer means it");
        assert_eq!(decision["policy"]["queueTokens"], queue_tokens, "{name}");
        cluster.stop().await.unwrap();
    }
}

/// The number of scrapes that a picker's page counts, whatever their outcome.
fn n_scrapes(page: &str) -> f64 {
    let counts = page.lines().filter(|line| line.starts_with("epp_scrapes_total{"));
    counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}
