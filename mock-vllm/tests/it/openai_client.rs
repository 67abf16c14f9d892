//! OpenAI's Python client, unmodified: what programs do with vLLM works here, and what fails there fails here alike.

use crate::python;
use crate::server_fixtures::{MODEL, TestPod, start};
use std::path::Path;
use std::process::Stdio;

const PACKAGES: [&str; 1] = ["openai==3.54.0"];
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/openai/client.py");
const FLAGS: &str =
    "--api-key secret --enable-prompt-tokens-details --enable-auto-tool-choice --tool-call-parser hermes";
const N_CHECKS: usize = 12;

async fn run(python: &Path, pod: &TestPod) -> (usize, String) {
    run_only(python, pod, "").await
}

/// How many checks passed of those that `check` names or of all, and what the script said when it ended badly.
async fn run_only(python: &Path, pod: &TestPod, check: &str) -> (usize, String) {
    let output = tokio::process::Command::new(python)
        .args([SCRIPT, &format!("http://{}/v1", pod.address), MODEL])
        .args(Some(check).filter(|check| !check.is_empty()))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("Python runs");
    let n_passed =
        String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.starts_with("ok ")).count();
    (n_passed, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openais_client_works_unmodified() {
    let Some(python) = python::interpreter("openais_client_works_unmodified", &PACKAGES) else { return };
    let (n_passed, complaint) = run(&python, &start(FLAGS).await).await;
    assert_eq!((n_passed, complaint.as_str()), (N_CHECKS, ""));
    // The script sees what is not vLLM's: without a prefix cache the second check fails.
    let (n_passed, complaint) =
        run(&python, &start(&format!("{FLAGS} --no-enable-prefix-caching")).await).await;
    assert_eq!(n_passed, 1);
    assert!(complaint.contains("cached_tokens"), "{complaint}");
    // Without a parser of calls the model's calls are words.
    let without_parser = FLAGS.replace("--enable-auto-tool-choice --tool-call-parser hermes", "");
    let (n_passed, complaint) = run_only(&python, &start(&without_parser).await, "responses_tools").await;
    assert_eq!(n_passed, 0);
    assert!(complaint.contains("item.type for item in answer.output"), "{complaint}");
}
