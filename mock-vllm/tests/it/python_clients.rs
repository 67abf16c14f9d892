//! Unmodified clients in Python: what programs do with vLLM works here, and what fails there fails here too.

use crate::python;
use crate::server_fixtures::{MODEL, start};
use std::path::Path;
use std::process::Stdio;

const FLAGS: &str = "--api-key secret --enable-prompt-tokens-details";
const TOOLS: &str = "--enable-auto-tool-choice --tool-call-parser hermes";

/// A script that uses a server through a client.
struct Script {
    path: &'static str,
    /// Path after the server's address.
    base: &'static str,
    n_checks: usize,
}

const OPENAI: Script = Script {
    path: concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/openai/client.py"),
    base: "/v1",
    n_checks: 12,
};
const ANTHROPIC: Script = Script {
    path: concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/anthropic/client.py"),
    base: "",
    n_checks: 5,
};

impl Script {
    /// Returns how many checks passed against a pod with `flags`, and the script's error if it failed.
    async fn run(&self, python: &Path, flags: &str) -> (usize, String) {
        let pod = start(flags).await;
        let output = tokio::process::Command::new(python)
            .args([self.path, &format!("http://{}{}", pod.address, self.base), MODEL])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .expect("Python runs");
        let n_passed =
            String::from_utf8_lossy(&output.stdout).lines().filter(|line| line.starts_with("ok ")).count();
        (n_passed, String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Checks that the script sees differences: with `flags`, the checks after the first `n_passed` fail with `words`.
    async fn fails(&self, python: &Path, flags: &str, (n_passed, words): (usize, &str)) {
        let (n_really_passed, complaint) = self.run(python, flags).await;
        assert_eq!(n_really_passed, n_passed, "{complaint}");
        assert!(complaint.contains(words), "{complaint}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openais_client_works_unmodified() {
    let packages = ["openai==3.54.0"];
    let Some(python) = python::interpreter(&packages) else { return };
    let (n_passed, complaint) = OPENAI.run(&python, &format!("{FLAGS} {TOOLS}")).await;
    assert_eq!((n_passed, complaint.as_str()), (OPENAI.n_checks, ""));
    let without_cache = format!("{FLAGS} {TOOLS} --no-enable-prefix-caching");
    OPENAI.fails(&python, &without_cache, (1, "cached_tokens")).await;
    // Without a parser of tool calls, the model's calls are words.
    OPENAI.fails(&python, FLAGS, (6, "tool-call-parser")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anthropics_client_works_unmodified() {
    let packages = ["anthropic==2.14.0"];
    let Some(python) = python::interpreter(&packages) else { return };
    let (n_passed, complaint) = ANTHROPIC.run(&python, &format!("{FLAGS} {TOOLS}")).await;
    assert_eq!((n_passed, complaint.as_str()), (ANTHROPIC.n_checks, ""));
    let without_cache = format!("{FLAGS} {TOOLS} --no-enable-prefix-caching");
    ANTHROPIC.fails(&python, &without_cache, (0, "cache_read_input_tokens")).await;
    ANTHROPIC.fails(&python, FLAGS, (2, "tool-call-parser")).await;
    // vLLM 0.11 does not serve this API.
    ANTHROPIC.fails(&python, &format!("{FLAGS} --vllm-version 0.11"), (0, "NotFoundError")).await;
}
