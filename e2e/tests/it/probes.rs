//! Pods whose probes fail: they leave the endpoints of Envoy and of the picker, come back, or are replaced.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use std::path::PathBuf;
use std::time::Duration;

use lab::cluster::{Cluster, Pod, ProgressEvent};
use tokio::time::sleep;

use crate::stubs::{Lab, read, until};

/// Ports of the tutorial's container; a probe is inserted before them.
const PORTS: &str = "        ports:\n        - containerPort: 8000\n";

async fn start(lab: &Lab, probe: &str) -> Cluster {
    let mut manifests = lab.manifests();
    manifests.replace(PORTS, &format!("        {probe}\n{PORTS}")).unwrap();
    lab.write(&manifests);
    lab.start().await
}

fn sick(lab: &Lab, pod: &Pod) -> PathBuf {
    lab.dir.path().join(format!("sick-{}", pod.name))
}

/// Returns the picker's line for the pod, and whether Envoy's plain route has it.
fn published(cluster: &Cluster, pod: &Pod) -> (String, bool) {
    let endpoints = read(cluster.files().endpoints());
    let line = endpoints.lines().find(|line| line.contains(&pod.name)).unwrap_or_default();
    let eds = cluster.files().envoy_dir().join("xds/eds-httproute_default_qwen-backend_rule_0.json");
    (line.to_owned(), read(eds).contains(&pod.address.port().to_string()))
}

fn is_taken_out(cluster: &Cluster, pod: &Pod) -> bool {
    let (line, is_in_envoy) = published(cluster, pod);
    line.contains("\"ready\":false") && !is_in_envoy
}

fn serves(cluster: &Cluster, pod: &Pod) -> bool {
    let (line, is_in_envoy) = published(cluster, pod);
    line.contains("\"ready\":true") && is_in_envoy
}

#[tokio::test]
async fn an_unready_pod_leaves_the_endpoints_and_comes_back() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::new();
    let probe =
        "readinessProbe: {httpGet: {path: /health, port: 8000}, periodSeconds: 1, failureThreshold: 2}";
    let cluster = start(&lab, probe).await;
    let [first, second] = &cluster.status().pods[..] else { panic!("two pods") };
    assert!(serves(&cluster, first) && serves(&cluster, second));
    std::fs::write(sick(&lab, first), "").unwrap();
    until("the pod is out", || is_taken_out(&cluster, first)).await;
    let status = cluster.status();
    assert!(!status.settled && serves(&cluster, second), "{status:?}");
    assert_eq!(cluster.pods(), std::slice::from_ref(second));
    std::fs::remove_file(sick(&lab, first)).unwrap();
    let status = cluster.settled().await.unwrap();
    assert!(serves(&cluster, first) && status.pods.contains(first), "{status:?}");
    let told = |part: &str| lab.events().iter().any(|event| event.to_string().contains(part));
    assert!(
        told("GET /health of its readinessProbe: status 503") && told("is ready again"),
        "{:?}",
        lab.events()
    );
    cluster.stop().await.unwrap();
}

/// The control: a probe that cannot be run here has no effect.
#[tokio::test]
async fn a_pod_whose_probe_is_a_command_stays() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::new();
    let cluster =
        start(&lab, "readinessProbe: {exec: {command: [\"true\"]}, periodSeconds: 1, failureThreshold: 1}")
            .await;
    let pod = cluster.status().pods[0].clone();
    std::fs::write(sick(&lab, &pod), "").unwrap();
    sleep(Duration::from_secs(3)).await;
    assert!(serves(&cluster, &pod));
    let noted = |event: &ProgressEvent| matches!(event, ProgressEvent::Note(text) if text.contains("without effect here: Deployment default/qwen (containers[vllm].readinessProbe)"));
    assert!(lab.events().iter().any(noted), "{:?}", lab.events());
    cluster.stop().await.unwrap();
}

#[tokio::test]
async fn a_pod_whose_liveness_probe_fails_is_replaced() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::new();
    // A slow machine must not end a starting pod, so liveness counts only after the startup probe has passed.
    let startup = "startupProbe: {tcpSocket: {port: 8000}, periodSeconds: 1, failureThreshold: 60}";
    let liveness =
        "livenessProbe: {httpGet: {path: /health, port: 8000}, periodSeconds: 1, failureThreshold: 2}";
    let cluster = start(&lab, &format!("{startup}\n        {liveness}")).await;
    let before = cluster.status();
    std::fs::write(sick(&lab, &before.pods[0]), "").unwrap();
    let is_listed = |pod: &Pod| cluster.status().pods.iter().any(|other| other.name == pod.name);
    until("the pod is gone", || !is_listed(&before.pods[0])).await;
    let after = cluster.settled().await.unwrap();
    assert!(after.pods.len() == 2 && is_listed(&before.pods[1]), "{after:?}");
    until("its process has ended", || lab.n_alive("engine") == 2).await;
    cluster.stop().await.unwrap();
}

/// An open connection says nothing about the pages behind it.
#[tokio::test]
async fn a_port_that_is_open_is_enough_for_a_probe_of_it() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::new();
    let cluster =
        start(&lab, "readinessProbe: {tcpSocket: {port: 8000}, periodSeconds: 1, failureThreshold: 1}").await;
    let pod = cluster.status().pods[0].clone();
    std::fs::write(sick(&lab, &pod), "").unwrap();
    sleep(Duration::from_secs(3)).await;
    assert!(serves(&cluster, &pod));
    cluster.stop().await.unwrap();
}
