//! OpenAI's Python client, unmodified: what programs do with vLLM works here, and what fails there fails here alike.

use crate::python;
use crate::server_fixtures::{MODEL, TestPod, start};
use std::path::Path;
use std::process::Stdio;

const PACKAGES: [&str; 1] = ["openai==3.54.0"];
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/openai/client.py");
const FLAGS: &str =
    "--api-key secret --enable-prompt-tokens-details --enable-auto-tool-choice --tool-call-parser hermes";
const N_CHECKS: usize = 11;

/// How many checks passed, and what the script said when it ended badly.
async fn run(python: &Path, pod: &TestPod) -> (usize, String) {
    let output = tokio::process::Command::new(python)
        .args([SCRIPT, &format!("http://{}/v1", pod.address), MODEL])
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
}
