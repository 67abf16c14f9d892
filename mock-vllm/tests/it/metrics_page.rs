//! The whole page of `/metrics`, per version of vLLM. A fresh pod's page was compared line by line with the page of
//! vLLM's own `PrometheusStatLogger` (0.8.5.post1, 0.11.0, 0.33.0) and of `prometheus-fastapi-instrumentator` 8.1.

use crate::server_fixtures::{TestPod, start};
use crate::tutorial::{ROUND1, round2_bash};
use expect_test::expect_file;
use http::Method;
use std::fmt::Write as _;

const VERSIONS: [&str; 3] = ["0.8", "0.11", "0.33"];

/// Returns the page without what differs from run to run (the process, times, and durations in wall time), and without
/// the sizes of answers, which another test checks.
fn masked(page: &str) -> String {
    let mut text = String::new();
    for line in page.lines() {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let name = series.split('{').next().unwrap();
        let is_wall_time = name.starts_with("http_request_duration")
            && (name.ends_with("_bucket") || name.ends_with("_sum"))
            && !series.contains("+Inf");
        let masked = match name {
            _ if line.starts_with('#') => value,
            "http_response_size_bytes_sum" => "~",
            _ if name.ends_with("_created") || name.starts_with("process_") || is_wall_time => "~",
            _ => value,
        };
        writeln!(text, "{series} {masked}").unwrap();
    }
    text
}

/// The page that vLLM shows before any request.
#[tokio::test]
async fn a_fresh_pod_shows_every_family_of_its_version() {
    for version in VERSIONS {
        let pod = start(&format!("--vllm-version {version}")).await;
        let page = masked(&pod.get("/metrics").await.body);
        expect_file![format!("../fixtures/metrics/{version}_fresh.txt")].assert_eq(&page);
    }
}

/// Two rounds of a chat, one plain answer, and what a web server counts beside them.
async fn scenario(pod: &TestPod) {
    pod.post("/v1/chat/completions", ROUND1).await;
    pod.post("/v1/chat/completions", round2_bash()).await;
    pod.post("/v1/completions", r#"{"prompt":"one two three","max_tokens":1}"#).await;
    pod.post("/v1/completions", r#"{"model":"nope","prompt":"x"}"#).await;
    for path in ["/v1/models", "/v1/chat/completions", "/nowhere", "/health", "/nowhere/versions", "/metrics"]
    {
        pod.get(path).await;
    }
    pod.send(Method::DELETE, "/v1/models", &[], "").await;
}

#[tokio::test]
async fn a_page_after_a_scenario_counts_it_as_its_version_does() {
    for version in VERSIONS {
        let pod = start(&format!("--vllm-version {version}")).await;
        scenario(&pod).await;
        let page = masked(&pod.get("/metrics").await.body);
        expect_file![format!("../fixtures/metrics/{version}_scenario.txt")].assert_eq(&page);
    }
}
