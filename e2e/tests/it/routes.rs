//! Kinds of routes through a real Envoy: each shows its effect, and a request without its cause does not.

#![expect(clippy::unwrap_used, reason = "a cluster that cannot be made fails its test")]

use std::net::SocketAddr;

use http::{HeaderName, StatusCode};
use lab::cluster::{Cluster, Fresh};
use load::client::{Client, Reply};
use serde_json::{Value, json};

use crate::stubs::{Lab, Workload, free_port};

/// Requests by which the weights are judged.
const N_WEIGHTED: u32 = 1000;
/// Value of chi-square with one degree of freedom that only one run in a million exceeds by chance.
const CHI_SQUARE: f64 = 23.93;

struct Gateway {
    address: SocketAddr,
    client: Client,
}

/// Pods that call themselves by the pool's name, whatever name of theirs a request uses, and a pool of them.
fn pool(name: &str) -> String {
    let container = format!(
        "args: [Qwen/Qwen2.5-7B-Instruct, --served-model-name, {name}, shared, $(NAME)], env: [{{name: NAME, value: only-{name}}}]"
    );
    Workload { kind: "StatefulSet", name, namespace: "default", replicas: 1, container: &container }
        .with_pool(&[8000])
}

/// A rule for requests whose header `kind` has the value.
fn rule(kind: &str, more: &str) -> String {
    format!("  - matches: [{{headers: [{{name: kind, value: {kind}}}]}}]\n    {more}\n")
}

fn to(pool: &str) -> String {
    format!("{{group: inference.networking.k8s.io, kind: InferencePool, name: {pool}}}")
}

fn manifests(port: u16) -> String {
    let weighted =
        format!("{}, {}", to("a").replace('}', ", weight: 70}"), to("b").replace('}', ", weight: 30}"));
    let backend = format!("backendRefs: [{}]", to("a"));
    let filter = |filter: &str| format!("{backend}\n    filters: [{filter}]");
    let failing = "{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-mock-vllm-fault, value: 'status:code=418'}]}}";
    let marked =
        "{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-marked, value: 'yes'}]}}";
    let mirrored = format!("{{type: RequestMirror, requestMirror: {{backendRef: {}}}}}", to("b"));
    let rules = [
        rule("weighted", &format!("backendRefs: [{weighted}]")),
        rule("request-header", &filter(failing)),
        rule("response-header", &filter(marked)),
        rule("mirror", &filter(&mirrored)),
        rule("redirect", "filters: [{type: RequestRedirect, requestRedirect: {hostname: other.example.com, statusCode: 301}}]"),
        rule("missing", "backendRefs: [{name: none, port: 80}]"),
        "  - matches: [{path: {value: /api}, method: POST, queryParams: [{name: v, value: '1'}]}]\n    filters: [{type: URLRewrite, \
         urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]\n    "
            .to_owned()
            + &backend
            + "\n",
        format!("  - matches: [{{headers: [{{name: X-Gateway-Model-Name, value: only-a}}]}}]\n    {backend}\n"),
        format!(
            "  - matches: [{{headers: [{{name: X-Gateway-Model-Name, type: RegularExpression, value: .*-b}}]}}]\n    backendRefs: [{}]\n",
            to("b")
        ),
    ];
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: g}}
spec: {{gatewayClassName: eg, listeners: [{{name: http, protocol: HTTP, port: {port}}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: r}}
spec:
  parentRefs: [{{name: g}}]
  rules:
{}{}{}",
        rules.concat(),
        pool("a"),
        pool("b")
    )
}

/// Sends a chat for the model of both pools, or for another, with the header `kind` if it is not empty.
async fn chat(gateway: &Gateway, target: (&str, &str, &str)) -> Reply {
    said(gateway, target, "hi").await
}

/// Sends a chat of these words.
async fn said(gateway: &Gateway, (path, kind, model): (&str, &str, &str), words: &str) -> Reply {
    let body = json!({ "model": model, "messages": [{ "role": "user", "content": words }], "max_tokens": 1 });
    let headers = [(HeaderName::from_static("kind"), kind)];
    let headers = if kind.is_empty() { &[] } else { &headers[..] };
    let url = format!("http://{}{path}", gateway.address);
    gateway.client.post(&url, headers, body.to_string().into()).await.unwrap()
}

/// The pool whose pod answered; `None` if none did.
fn pool_of(reply: &Reply) -> Option<String> {
    let body: Value = serde_json::from_slice(&reply.body).ok()?;
    body["model"].as_str().map(str::to_owned)
}

fn n_logged(cluster: &Cluster, pool: &str) -> usize {
    let pods = cluster.pods();
    let logs = pods.iter().filter(|pod| pod.deployment == pool).map(|pod| &pod.request_log);
    logs.map(|log| std::fs::read_to_string(log).unwrap_or_default().lines().count()).sum()
}

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn every_kind_of_route_has_its_effect_and_only_that() {
    if test_skips::skips_slow() {
        return;
    }
    let lab = Lab::real().await;
    let cluster = lab.start_text("routes", &manifests(free_port())).await;
    let gateway = Gateway { address: cluster.gateway("http").unwrap(), client: Client::default() };

    assert_eq!(
        chat(&gateway, (CHAT, "none", "shared")).await.status,
        StatusCode::NOT_FOUND,
        "no rule takes it"
    );
    assert_eq!(chat(&gateway, (CHAT, "missing", "shared")).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(chat(&gateway, (CHAT, "request-header", "shared")).await.status, StatusCode::IM_A_TEAPOT);
    let marked = chat(&gateway, (CHAT, "response-header", "shared")).await;
    assert_eq!((marked.status, marked.headers.get("x-marked").is_some()), (StatusCode::OK, true));
    let redirected = chat(&gateway, (CHAT, "redirect", "shared")).await;
    assert_eq!(redirected.status, StatusCode::MOVED_PERMANENTLY);
    assert!(redirected.headers["location"].to_str().unwrap().contains("//other.example.com"));

    let rewritten = chat(&gateway, ("/api/v1/chat/completions?v=1", "", "shared")).await;
    assert_eq!((rewritten.status, pool_of(&rewritten).as_deref()), (StatusCode::OK, Some("a")));
    for other in ["/api/v1/chat/completions?v=2", "/apis/v1/chat/completions?v=1"] {
        assert_eq!(chat(&gateway, (other, "", "shared")).await.status, StatusCode::NOT_FOUND, "{other}");
    }
    by_model(&gateway).await;
    mirrored(&cluster, &gateway).await;
    weighted(&gateway).await;
    cluster.stop().await.unwrap();
}

/// The client does not send the header: it comes from the body.
async fn by_model(gateway: &Gateway) {
    for (model, expected) in [("only-a", Some("a")), ("only-b", Some("b")), ("only-c", None)] {
        let reply = chat(gateway, (CHAT, "", model)).await;
        assert_eq!(pool_of(&reply).as_deref(), expected, "{model}: {}", reply.status);
    }
}

async fn mirrored(cluster: &Cluster, gateway: &Gateway) {
    let before = n_logged(cluster, "b");
    let unmarked = chat(gateway, (CHAT, "", "only-a")).await;
    assert!(unmarked.headers.get("x-marked").is_none());
    assert_eq!(n_logged(cluster, "b"), before, "the control: nothing is copied");
    assert_eq!(pool_of(&chat(gateway, (CHAT, "mirror", "shared")).await).as_deref(), Some("a"));
    crate::stubs::until("the copy has arrived", || n_logged(cluster, "b") == before + 1).await;
}

/// Each answer that a picker reads tells it how wrong its estimate is. The control reads none.
#[tokio::test]
async fn a_weighted_route_reports_the_share_of_its_answers() {
    if test_skips::skips_slow() {
        return;
    }
    const REQUESTS: u32 = 500;
    let lab = Lab::real().await;
    let with_details = "args: [--enable-prompt-tokens-details, ";
    let pool = "kind: InferencePool\nmetadata: {";
    assert!(manifests(0).contains(pool));
    let by_prefix =
        format!("{pool}annotations: {{inference.networking.x-k8s.io/routing-strategy: PREFIX_CACHE}}, ");
    let text = manifests(free_port()).replace("args: [", with_details).replace(pool, &by_prefix);
    let cluster = lab.start_text("routes", &text).await;
    for share in [0.1, 0.0] {
        let responses = Some(format!("observed={share}").parse().unwrap());
        cluster.restart(Fresh { responses, ..Fresh::default() }).await.unwrap();
        let gateway = Gateway { address: cluster.gateway("http").unwrap(), client: Client::default() };
        for _ in 0..REQUESTS {
            let reply = said(&gateway, (CHAT, "weighted", "shared"), &"hi ".repeat(200)).await;
            assert_eq!(reply.status, StatusCode::OK);
        }
        let found = lab::in_flight::InFlight::with(&cluster, 0).await.unwrap();
        assert!(found.differences().is_empty(), "{:?}", found.differences());
        let pages = cluster.picker_pages("/metrics").await.unwrap();
        assert_eq!(pages.len(), 2, "each pool has a picker");
        let sums = |series: &str| pages.iter().map(|page| sum(page, series)).collect::<Vec<f64>>();
        let n_read: f64 = sums("inference_model_input_tokens_count{").iter().sum();
        let n_over: f64 = sums("inference_model_request_duration_seconds_count{").iter().sum();
        let n_errors = sums("epp_prefix_estimate_error_ratio_count ");
        if share > 0.0 {
            assert!((n_over - f64::from(REQUESTS)).abs() < 0.5, "{n_over} are over");
            let counts = [n_read, n_over - n_read];
            assert!(chi_square([share, 1.0 - share], counts) < CHI_SQUARE, "{n_read} of {n_over} are read");
            assert!(n_errors.iter().all(|n| *n > 0.0), "{n_errors:?}");
        } else {
            assert_eq!((n_read.abs(), n_errors), (0.0, vec![0.0; 2]), "the control");
        }
    }
    cluster.stop().await.unwrap();
}

/// The sum of the lines that begin with `series`.
fn sum(page: &str, series: &str) -> f64 {
    let lines = page.lines().filter(|line| line.starts_with(series));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

async fn weighted(gateway: &Gateway) {
    let (mut counts, mut n_unanswered) = ([0.0, 0.0], 0);
    for _ in 0..N_WEIGHTED {
        let reply = chat(gateway, (CHAT, "weighted", "shared")).await;
        match pool_of(&reply).as_deref() {
            Some("a") => counts[0] += 1.0,
            Some("b") => counts[1] += 1.0,
            // Envoy gives a program up that the machine leaves without CPU for seconds. That says nothing of weights.
            _ => {
                n_unanswered += 1;
                assert!(n_unanswered <= N_WEIGHTED / 100, "{} {}", reply.status, reply.text());
            }
        }
    }
    assert!(chi_square([0.7, 0.3], counts) < CHI_SQUARE, "{counts:?}");
    assert!(
        chi_square([0.5, 0.5], counts) > CHI_SQUARE,
        "the control: the weights are not equal: {counts:?}"
    );
}

/// The distance of `counts` from these shares of their sum.
fn chi_square(shares: [f64; 2], counts: [f64; 2]) -> f64 {
    let n: f64 = counts.iter().sum();
    let terms = shares.iter().zip(counts).map(|(share, seen)| (seen - share * n).powi(2) / (share * n));
    terms.sum()
}
