//! The recipe `paths`, which searches release programs for the path of the source tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tidy::tree;

/// Runs the recipe for these programs. Returns what it complains about, or nothing.
fn paths(name: &str, programs: &[(&str, &str)]) -> String {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let release: PathBuf = target.join("release");
    fs::create_dir_all(&release).expect("a folder");
    for (program, content) in programs {
        fs::write(release.join(program), content).expect("a file");
    }
    let recipe = tree::workspace().join(".ci/recipe");
    let mut command = Command::new("bash");
    let output =
        command.arg(recipe).arg("paths").env("CARGO_TARGET_DIR", &target).output().expect("bash runs");
    if output.status.success() { String::new() } else { String::from_utf8(output.stderr).expect("text") }
}

#[test]
fn programs_are_looked_at_where_cargo_puts_them() {
    let clean = [("e2e", "a"), ("epp", "b"), ("mock-vllm", "c")];
    assert_eq!(paths("clean", &clean), "");
    let root = tree::workspace().canonicalize().unwrap();
    let path = format!("\0{}/src/main.rs\0", root.display());
    let complaint = paths("with-a-path", &[clean[0], ("epp", &path), clean[2]]);
    assert!(complaint.contains("release/epp contains the path of the source tree"), "{complaint}");
    let complaint = paths("one-missing", &clean[..2]);
    assert!(
        complaint.contains("there is no program to look at") && complaint.contains("mock-vllm"),
        "{complaint}"
    );
}
