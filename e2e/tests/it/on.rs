//! `--on` makes the driver become the program with a client for Kubernetes, with the same command line.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use std::process::{Command, Output};

use tempfile::TempDir;

use crate::stubs::write_program;

/// A directory with the driver in it.
fn directory() -> TempDir {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    std::fs::hard_link(env!("CARGO_BIN_EXE_e2e"), dir.path().join("e2e")).unwrap();
    dir
}

fn run(dir: &TempDir, arguments: &[&str]) -> Output {
    let driver = dir.path().join("e2e");
    let mut command = Command::new(driver);
    command.args(arguments).env_remove("CARGO").env("WARMPATH_STATE_DIR", dir.path());
    command.output().unwrap()
}

#[test]
fn the_driver_becomes_the_program_for_kubernetes() {
    let dir = directory();
    let program = dir.path().join("e2e-kubernetes");
    write_program(&program, "#!/bin/sh\necho \"$@\"\nexit 7\n");
    for arguments in [
        &["status", "--on", "kind"][..],
        &["--on", "kind", "--only", "tutorial"],
        &["tutorial", "--on", "cluster", "--context", "a"],
        &["soak", "--on", "kind", "--seconds", "30"],
        &["overhead", "--on", "cluster", "--requests", "50"],
    ] {
        let output = run(&dir, arguments);
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim_end(), arguments.join(" "));
        assert_eq!(output.status.code(), Some(7));
    }
    write_program(&dir.path().join("studies-kubernetes"), "#!/bin/sh\necho studies \"$@\"\n");
    let output = run(&dir, &["step5", "--wall", "--on", "kind"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "studies step5 --wall --on kind\n");
    let here = run(&dir, &["status"]);
    assert_eq!(String::from_utf8(here.stdout).unwrap(), "nothing is up\n", "without --on it is not needed");
}

#[test]
fn a_program_that_is_not_there_is_named_with_its_build() {
    let dir = directory();
    let output = run(&dir, &["status", "--on", "kind"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    let build = "cargo build --release --bin e2e-kubernetes --workspace --features e2e/kubernetes,epp/kubernetes,studies/kubernetes";
    assert!(said.contains(build), "{said}");
}
