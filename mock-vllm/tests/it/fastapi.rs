//! Answers of FastAPI and Starlette around vLLM's endpoints: redirects, methods, CORS, and bodies in other encodings.
//! The expected lines under `fixtures/fastapi/` were recorded by `record.py` beside them.

use crate::server_fixtures::{Answer, TestPod, start};
use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use std::collections::BTreeMap;

const VERSIONS: [(&str, &str); 3] = [
    ("0.8", include_str!("../fixtures/fastapi/0.8.jsonl")),
    ("0.11", include_str!("../fixtures/fastapi/0.11.jsonl")),
    ("0.33", include_str!("../fixtures/fastapi/0.33.jsonl")),
];

#[derive(Debug, Deserialize)]
struct Exchange {
    #[serde(default)]
    flags: String,
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    /// Body whose characters are the bytes of the same numbers.
    #[serde(default)]
    body: String,
    status: u16,
    answer_headers: Vec<(String, String)>,
    #[serde(default)]
    answer: String,
}

// === impl Exchange ===

impl Exchange {
    async fn ask(&self, pod: &TestPod) -> Answer {
        let headers: Vec<(&str, &str)> =
            self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let body: Vec<u8> = self.body.chars().map(|character| u8::try_from(character).unwrap()).collect();
        pod.send(Method::from_bytes(self.method.as_bytes()).unwrap(), &self.path, &headers, body).await
    }

    /// Returns whether an endpoint answered, whose headers and body are vLLM's own.
    fn is_endpoints(&self) -> bool {
        self.status == 200 && self.answer != "OK"
    }
}

/// Returns the headers that must be the same, in the order of their names.
fn kept(headers: impl Iterator<Item = (String, String)>, is_endpoints: bool) -> Vec<(String, String)> {
    let is_kept = |name: &str| match name {
        "date" => false,
        "vary" => true,
        name => !is_endpoints || name.starts_with("access-control-"),
    };
    let mut headers: Vec<_> = headers.filter(|(name, _)| is_kept(name)).collect();
    headers.sort();
    headers
}

fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (String, String)> {
    headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
}

#[tokio::test]
async fn the_framework_answers_as_recorded() {
    for (version, recorded) in VERSIONS {
        let exchanges: Vec<Exchange> =
            recorded.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let mut differences = Vec::new();
        for same_flags in exchanges.chunk_by(|one, next| one.flags == next.flags) {
            let pod = start(&format!("--vllm-version {version} {}", same_flags[0].flags)).await;
            for exchange in same_flags {
                let is_endpoints = exchange.is_endpoints();
                let answer = exchange.ask(&pod).await;
                let expected = kept(exchange.answer_headers.iter().cloned(), is_endpoints);
                let seen = kept(pairs(&answer.headers), is_endpoints);
                let is_same_body = is_endpoints || answer.body == exchange.answer;
                if answer.status.as_u16() != exchange.status || seen != expected || !is_same_body {
                    let status = answer.status;
                    differences.push(format!("{exchange:?}\n  {status} {seen:?}\n  {}", answer.body));
                }
            }
        }
        assert!(differences.is_empty(), "vLLM {version}:\n{}", differences.join("\n"));
    }
}

#[tokio::test]
async fn every_route_is_redirected_to_and_no_other_path() {
    let pod = start("--server-dev-mode --enable-sleep-mode").await;
    let redirect = async |path: &str| pod.post(path, "{}").await.headers.get("location").cloned();
    for path in ["/v1/completions", "/v1/responses", "/tokenize", "/reset_prefix_cache", "/debug/lookup"] {
        let location = redirect(&format!("{path}/")).await.unwrap_or_else(|| panic!("{path}"));
        assert_eq!(location, format!("http://{}{path}", pod.address));
        assert_eq!(redirect(path).await, None, "the path itself is no redirect");
    }
    assert_eq!(redirect("/v1/complete/").await, None);
    // The page of metrics takes all paths that begin like it.
    assert_eq!(pod.get("/metrics/").await.status, StatusCode::OK);
    assert_eq!(pod.send(Method::HEAD, "/metrics", &[], "").await.status, StatusCode::OK);
}

#[tokio::test]
async fn redirects_count_under_their_own_path_and_preflights_not_at_all() {
    let pod = start("").await;
    pod.get("/v1/models/").await;
    let asks = [("origin", "http://a.example"), ("access-control-request-method", "GET")];
    assert_eq!(pod.send(Method::OPTIONS, "/v1/models", &asks, "").await.status, StatusCode::OK);
    let page = pod.get("/metrics").await.body;
    let counted: Vec<&str> = page.lines().filter(|line| line.starts_with("http_requests_total{")).collect();
    assert_eq!(
        counted,
        [r#"http_requests_total{handler="/v1/models/",method="GET",status="3xx"} 1.0"#],
        "without an origin it would be a 4xx of its own"
    );
    pod.send(Method::OPTIONS, "/v1/models", &asks[1..], "").await;
    assert!(pod.get("/metrics").await.body.contains(r#"method="OPTIONS",status="4xx"} 1.0"#));
}

#[tokio::test]
async fn a_body_in_another_encoding_is_the_same_request() {
    let pod = start("--enable-prompt-tokens-details").await;
    let text = r#"{"prompt":"Grüße! one two three four five six seven eight nine ten eleven twelve thirteen fourteen","max_tokens":2}"#;
    let plain = pod.post("/v1/completions", text).await.json();
    let utf_16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let with_mark = [b"\xef\xbb\xbf", text.as_bytes()].concat();
    for body in [utf_16, with_mark] {
        let other = pod.post("/v1/completions", body).await.json();
        assert_eq!(other["usage"]["prompt_tokens"], plain["usage"]["prompt_tokens"]);
        assert_eq!(other["usage"]["prompt_tokens_details"]["cached_tokens"], 16, "the same tokens");
    }
}

#[tokio::test]
async fn numbers_that_are_not_finite_are_judged_as_numbers() {
    let pod = start("").await;
    let ask = async |fields: &str| {
        let answer =
            pod.post("/v1/completions", format!(r#"{{"prompt":"x","max_tokens":1,{fields}}}"#)).await;
        (answer.status.as_u16(), answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(ask(r#""unknown":[NaN,-Infinity,1e999]"#).await.0, 200);
    let nan = "temperature must be a finite number, got nan. (parameter=temperature, value=nan)";
    assert_eq!(ask(r#""temperature":NaN"#).await, (400, nan.to_owned()));
    let infinite = "top_p must be in (0, 1], got inf. (parameter=top_p, value=inf)";
    assert_eq!(ask(r#""top_p":Infinity"#).await, (400, infinite.to_owned()));
    let negative = "presence_penalty must be in [-2, 2], got -inf.";
    assert_eq!(ask(r#""presence_penalty":-1e999"#).await, (400, negative.to_owned()));
    let (status, message) = ask(r#""seed":NaN"#).await;
    assert!(status == 400 && message.contains("Input should be a finite number"), "{message}");
}
