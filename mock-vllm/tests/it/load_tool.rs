//! guidellm, a public load generator for vLLM, unmodified: its counts must equal the pod's.

use crate::python;
use crate::server_fixtures::{MODEL, TestPod, start};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Versions of packages. guidellm from 0.4 on needs torch.
const PACKAGES: [&str; 3] = ["guidellm==0.3.1", "transformers==5.17.0", "datasets==5.0.1"];
const N_REQUESTS: usize = 32;
const N_OUTPUT_TOKENS: u64 = 16;

struct LoadTool {
    python: PathBuf,
    folder: tempfile::TempDir,
}

impl LoadTool {
    async fn prepare() -> Option<Self> {
        let python = python::interpreter(&PACKAGES)?;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/load_tool/prepare.py");
        let tool = Self { python, folder };
        assert_eq!(tool.run(&[script, &tool.path("")], "").await, (true, String::new()));
        Some(tool)
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Returns whether Python ended well, and its stderr if it did not.
    async fn run(&self, args: &[&str], route: &str) -> (bool, String) {
        let output = tokio::process::Command::new(&self.python)
            .args(args)
            .env("HF_HUB_OFFLINE", "1")
            .env("HF_HOME", self.path("hub"))
            .env("GUIDELLM__PREFERRED_ROUTE", route)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .expect("Python runs");
        let is_ok = output.status.success();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (is_ok, if is_ok { String::new() } else { stderr })
    }

    /// Runs 4 streams at once, until `N_REQUESTS` have ended.
    async fn benchmark(&self, pod: &TestPod, route: &str) -> (bool, String) {
        let target = format!("http://{}", pod.address);
        let columns = r#"{"prompt_column":"prompt","output_tokens_count_column":"output_tokens_count"}"#;
        let n_requests = N_REQUESTS.to_string();
        let (tokenizer, prompts, report) =
            (self.path("tokenizer"), self.path("prompts.jsonl"), self.path("report.json"));
        let mut args = vec!["-m", "guidellm", "benchmark", "run", "--target", &target];
        args.extend(["--processor", &tokenizer, "--data", &prompts, "--data-args", columns]);
        args.extend(["--rate-type", "concurrent", "--rate", "4", "--max-requests", &n_requests]);
        args.extend(["--disable-progress", "--disable-console-outputs", "--output-path", &report]);
        self.run(&args, route).await
    }

    fn report(&self) -> Value {
        let text =
            std::fs::read_to_string(Path::new(&self.path("report.json"))).expect("a report was written");
        let report: Value = serde_json::from_str(&text).expect("the report is JSON");
        report["benchmarks"][0].clone()
    }
}

async fn check(tool: &LoadTool, route: &str) {
    let pod = start("").await;
    let (is_ok, stderr) = tool.benchmark(&pod, route).await;
    assert!(is_ok, "{stderr}");
    let report = tool.report();
    assert_eq!(report["request_totals"]["successful"], N_REQUESTS, "{route}");
    assert_eq!(report["request_totals"]["errored"], 0, "{route}");
    let requests = report["requests"]["successful"].as_array().expect("a list of requests");
    let prompt_of = |request: &Value| request["prompt"].as_str().expect("a prompt").to_owned();
    for request in requests {
        assert_eq!(request["request_type"], route);
        assert_eq!(request["output_tokens"], N_OUTPUT_TOKENS);
        let field = match route {
            "chat_completions" => {
                serde_json::json!({"messages": [{"role": "user", "content": prompt_of(request)}]})
            }
            _ => serde_json::json!({"prompt": prompt_of(request)}),
        };
        let tokenized = pod.post("/tokenize", field.to_string()).await.json();
        assert_eq!(request["prompt_tokens"], tokenized["count"], "usage reaches the tool");
    }
    let n_distinct: std::collections::HashSet<String> = requests.iter().map(prompt_of).collect();
    assert_eq!(n_distinct.len(), N_REQUESTS, "no request was counted twice");
    // guidellm sends a few more requests of one token, to see whether the server works.
    let n_generated = pod.metric("vllm:generation_tokens_total").await;
    let n_counted = (N_REQUESTS as u64 * N_OUTPUT_TOKENS) as f64;
    assert!((n_counted..n_counted + 16.0).contains(&n_generated), "{n_generated} tokens generated");
    assert!(pod.metric("vllm:prefix_cache_hits_total").await > n_counted, "conversations share prefixes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guidellm_measures_both_routes_and_refuses_a_server_that_refuses_it() {
    let Some(tool) = LoadTool::prepare().await else { return };
    check(&tool, "chat_completions").await;
    check(&tool, "text_completions").await;
    let locked = start("--api-key secret").await;
    let (is_ok, stderr) = tool.benchmark(&locked, "chat_completions").await;
    assert!(!is_ok && stderr.contains("401"), "{MODEL} asks for a key: {stderr}");
}
