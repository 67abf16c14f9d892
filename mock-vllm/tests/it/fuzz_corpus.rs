//! The seeds of the fuzz targets, and the crashes that they once found, on any compiler.

use crate::server_fixtures::start;
use http::StatusCode;
use mock_vllm::trace;
use std::fs;
use std::path::Path;

/// Every endpoint that takes a body.
const PATHS: [&str; 8] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/invocations",
    "/tokenize",
    "/detokenize",
    "/v1/load_lora_adapter",
    "/debug/lookup",
];

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let entries = fs::read_dir(folder).expect("the corpus is in the project");
    let paths = entries.map(|entry| entry.expect("the folder is readable").path());
    let files: Vec<_> = paths
        .map(|path| (path.display().to_string(), fs::read(&path).expect("the file is readable")))
        .collect();
    assert!(files.len() > 3, "{target} has seeds");
    files
}

#[test]
fn trace_files_end_in_a_result() {
    for (_, bytes) in corpus("trace_files") {
        let _ok_or_told = trace::check_bytes(&bytes);
    }
}

/// The first byte of a seed chooses the endpoint in the fuzz target; here each body goes to all of them.
#[tokio::test]
async fn bodies_never_kill_the_pod() {
    let pod = start("--max-model-len 512 --num-gpu-blocks-override 128 --time-scale 1000000").await;
    for (name, seed) in corpus("http_bodies") {
        for path in PATHS {
            let answer = pod.post(path, seed[1..].to_vec()).await;
            assert!(!answer.status.is_server_error(), "{path} {name}: {} {}", answer.status, answer.body);
        }
    }
    assert_eq!(pod.get("/health").await.status, StatusCode::OK);
}
