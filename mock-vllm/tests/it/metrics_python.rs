//! Python's own parsers of `prometheus_client` read the pages, and find the families that vLLM has.

use crate::python;
use crate::server_fixtures::start;
use crate::tutorial::{ROUND1, round2_bash};
use serde_json::Value;
use std::process::Command;

const PACKAGE: &str = "prometheus_client==0.26.0";

/// Prints, for the text and the OpenMetrics page, each family's type and each sample, as JSON.
const READ: &str = r#"
import json, sys, urllib.request
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client import parser as text

def page(url, accept):
    request = urllib.request.Request(url, headers={"Accept": accept})
    return urllib.request.urlopen(request).read().decode()

def read(parser, page):
    families = {}
    for family in parser.text_string_to_metric_families(page):
        samples = [[s.name, s.labels, s.value] for s in family.samples]
        families[family.name] = {"type": family.type, "help": family.documentation, "samples": samples}
    return families

url = sys.argv[1]
print(json.dumps({
    "text": read(text, page(url + "/metrics", "*/*")),
    "open": read(openmetrics, page(url + "/metrics/", "application/openmetrics-text")),
}))
"#;

/// Returns a sample's value, by its name and one of its labels.
fn value(families: &Value, family: &str, sample: &str, label: Option<(&str, &str)>) -> f64 {
    let samples = families[family]["samples"].as_array().unwrap_or_else(|| panic!("no {family}"));
    let found = samples
        .iter()
        .find(|seen| seen[0] == sample && label.is_none_or(|(name, value)| seen[1][name] == value));
    found.unwrap_or_else(|| panic!("no {sample} {label:?} in {samples:?}"))[2].as_f64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_client_reads_both_pages() {
    let Some(python) = python::interpreter(&[PACKAGE]) else { return };
    for (version, n_families) in [("0.8", 23), ("0.11", 25), ("0.33", 36)] {
        let pod = start(&format!("--vllm-version {version}")).await;
        pod.post("/v1/chat/completions", ROUND1).await;
        pod.post("/v1/chat/completions", round2_bash()).await;
        let mut command = Command::new(&python);
        command.args(["-c", READ, &format!("http://{}", pod.address)]);
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let pages: Value = serde_json::from_slice(&output.stdout).unwrap();
        for page in ["text", "open"] {
            let families = &pages[page];
            let named = |prefix: &str| {
                families
                    .as_object()
                    .unwrap()
                    .keys()
                    .filter(|name| {
                        // In the text format, creation times are families of their own.
                        name.starts_with(prefix) && !name.ends_with("_created")
                    })
                    .count()
            };
            assert_eq!(named("vllm:"), n_families, "{version} {page}");
            assert_eq!((named("python_"), named("http_")), (4, 5), "{version} {page}");
            for (family, kind) in [
                ("vllm:num_requests_running", "gauge"),
                ("vllm:prompt_tokens", "counter"),
                ("vllm:iteration_tokens_total", "histogram"),
                ("vllm:cache_config_info", "gauge"),
                ("http_requests", "counter"),
                ("http_request_size_bytes", "summary"),
                ("python_gc_collections", "counter"),
            ] {
                assert_eq!(families[family]["type"], kind, "{version} {page} {family}");
            }
            let tokens = value(families, "vllm:prompt_tokens", "vllm:prompt_tokens_total", None);
            assert_eq!(tokens, 355.0, "{version} {page}");
            let bucket = |le: &str| {
                let name = "vllm:request_prompt_tokens";
                value(families, name, &format!("{name}_bucket"), Some(("le", le)))
            };
            assert_eq!(
                [bucket("100.0"), bucket("200.0"), bucket("500.0"), bucket("+Inf")],
                [0.0, 1.0, 2.0, 2.0]
            );
            let finished = |reason: &str| {
                let label = Some(("finished_reason", reason));
                value(families, "vllm:request_success", "vllm:request_success_total", label)
            };
            assert_eq!((finished("length"), finished("stop")), (2.0, 0.0));
        }
    }
}
