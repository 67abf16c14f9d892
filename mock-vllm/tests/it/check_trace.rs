//! `check-trace`: a line for each file, and one exit code for all.

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use mock_vllm::check_trace;
use serde_json::{Value, json};
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

fn recording(name: &str) -> PathBuf {
    let folder = "../crates/vllm-engine/tests/fixtures/vllm-traces";
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join(name)
}

fn unpacked(path: &Path) -> Value {
    let mut text = String::new();
    GzDecoder::new(fs::File::open(path).unwrap()).read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn the_exit_code_is_the_worst_of_all_files() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let mut changed = unpacked(&recording("trace-000.json.gz"));
    changed["steps"][0]["running"] = json!(2);
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(changed.to_string().as_bytes()).unwrap();
    let good = recording("trace-007.json.gz");
    let different = write("different.json.gz", &packed.finish().unwrap());
    let broken = write("broken.json", b"{}");
    let missing = folder.path().join("missing.json");
    let run = |paths: &[&PathBuf]| {
        let paths: Vec<PathBuf> = paths.iter().map(|path| (*path).clone()).collect();
        let mut out = Vec::new();
        let code = check_trace::check_files(&paths, &mut out).unwrap();
        (code, String::from_utf8(out).unwrap())
    };
    let (code, out) = run(&[&good]);
    assert_eq!(code, 0);
    assert!(out.contains("trace-007.json.gz: ok ("), "{out}");
    let (code, out) = run(&[&different, &good]);
    assert_eq!(code, 1);
    assert!(
        out.lines().next().unwrap().ends_with("different.json.gz: step 0: running: trace 2, engine 1"),
        "{out}"
    );
    assert!(out.lines().nth(1).unwrap().contains(": ok ("), "a difference does not stop the others: {out}");
    let (code, out) = run(&[&broken, &different]);
    assert_eq!(code, 2);
    assert!(out.contains("broken.json: invalid: parse the trace: missing field `params`"), "{out}");
    let (code, out) = run(&[&missing]);
    assert_eq!(code, 2);
    assert!(out.contains("missing.json: invalid: open the file: "), "{out}");
}
