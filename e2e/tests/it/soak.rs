//! `e2e soak` with stubs, which answer no request: its results if it is cut short, and its refusals.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use serde_json::Value;

use crate::stubs::Lab;

/// Runs it, and returns its exit code, JSON and messages.
fn soak(lab: &Lab, flags: &str) -> (Option<i32>, Value, String) {
    let ended = lab.driver(&format!("soak --json --rate 20 {flags}")).output().unwrap();
    let json = serde_json::from_slice(&ended.stdout).unwrap_or_default();
    (ended.status.code(), json, String::from_utf8_lossy(&ended.stderr).into_owned())
}

fn problems(outcome: &Value) -> Vec<String> {
    outcome["problems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|problem| problem.as_str().unwrap().to_owned())
        .collect()
}

/// A run of an hour ends with its first error, and still reports what became of the requests.
#[test]
fn an_error_ends_the_run_at_once_and_the_ledger_is_told() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::new();
    std::fs::write(lab.dir.path().join("mute"), "").unwrap();
    let (code, outcome, said) = soak(&lab, "--seconds 3600 --replacements 0");
    assert_eq!(code, Some(1), "{said}");
    let problems = problems(&outcome);
    assert!(
        problems[0].starts_with("the run was cut short: ") && problems[0].contains("lacks process_resident"),
        "{problems:?}"
    );
    let requests = &outcome["requests"];
    let n_sent = requests["sent"].as_u64().unwrap();
    assert!(n_sent > 0 && outcome["seconds"].as_f64().unwrap() < 600.0, "{outcome}");
    let n_told = requests["lost"].as_array().unwrap().len() as u64;
    assert_eq!(n_sent, n_told, "none is answered: {outcome}");
    assert_eq!(lab.alive(), Vec::<String>::new());
}

/// The control: without an error the run takes its full time.
#[test]
fn a_run_without_an_error_takes_its_time() {
    if test_skips::skips_slow() {
        return;
    }
    let (code, outcome, said) = soak(&Lab::new(), "--seconds 10 --replacements 1 --kill-every 4");
    assert_eq!(code, Some(1), "{said}");
    assert!(outcome["seconds"].as_f64().unwrap() >= 10.0, "{outcome}");
    assert_eq!((&outcome["pods_killed"], &outcome["pickers_replaced"]), (&1.into(), &1.into()), "{outcome}");
    let problems = problems(&outcome);
    assert!(problems.iter().all(|problem| !problem.contains("cut short")), "{problems:?}");
    assert!(problems.contains(&"no request was answered".to_owned()), "{problems:?}");
}

pub(crate) const WITHOUT_POOL: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: plain}
spec: {controllerName: gateway.envoyproxy.io/gatewayclass-controller}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: plain}
spec:
  gatewayClassName: plain
  listeners:
  - {name: llm-gw, protocol: HTTP, port: PORT}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: plain}
spec:
  parentRefs: [{name: plain, sectionName: llm-gw}]
  rules:
  - backendRefs: [{kind: Service, name: engine, port: 8000}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: engine}
spec:
  replicas: 1
  selector: {matchLabels: {app: engine}}
  template:
    metadata: {labels: {app: engine}}
    spec:
      containers:
      - {name: vllm, command: [vllm, serve, m], ports: [{containerPort: 8000}]}
---
apiVersion: v1
kind: Service
metadata: {name: engine}
spec:
  selector: {app: engine}
  ports: [{port: 8000}]
";

#[test]
fn what_is_missing_is_said_at_the_start() {
    let lab = Lab::new();
    let mut manifests = lab.manifests();
    let texts = manifests.files.values_mut();
    texts.for_each(String::clear);
    let first = manifests.files.values_mut().next().unwrap();
    *first = WITHOUT_POOL.replace("PORT", &lab.ports[1].to_string());
    lab.write(&manifests);
    let (code, _, said) = soak(&lab, "--seconds 3600");
    assert!(code == Some(2) && said.contains("no picker runs that could be replaced"), "{code:?} {said}");
    let (code, _, said) = soak(&lab, "--seconds 3600 --replacements 0");
    assert!(code == Some(2) && said.contains("1 pods run"), "{code:?} {said}");
    assert_eq!(lab.alive(), Vec::<String>::new());
}
