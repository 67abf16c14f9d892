//! Finds the programs of a cluster, and reports missing ones.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use lab::cluster::Progress;
use lab::cluster::programs::{ProgramOptions, Programs};
use tempfile::TempDir;

use crate::stubs::{read, write_program};

fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    write_program(&path, &format!("#!/bin/sh\n{text}\n"));
    path
}

/// Makes a `target/release` with all programs, and an Envoy of this version.
fn checkout(envoy_version: &str) -> (TempDir, PathBuf, ProgramOptions) {
    let dir = tempfile::tempdir().unwrap();
    let release = dir.path().join("release");
    std::fs::create_dir(&release).unwrap();
    for name in ["e2e", "epp", "mock-vllm"] {
        script(&release, name, "exit 1");
    }
    let said = format!("echo 'envoy  version: 9e55/{envoy_version}/Clean/RELEASE/BoringSSL'");
    let envoy = Some(script(dir.path(), "envoy", &said));
    (dir, release, ProgramOptions { envoy, ..ProgramOptions::default() })
}

async fn resolve(release: &Path, options: &ProgramOptions) -> Result<Programs, String> {
    let silent: Progress = Arc::new(drop);
    Programs::resolve_for(release.join("e2e"), options, &silent).await.map_err(|error| format!("{error:#}"))
}

#[tokio::test]
async fn they_are_beside_this_program() {
    let (_dir, release, options) = checkout("1.40.0");
    let programs = resolve(&release, &options).await.unwrap();
    assert_eq!((programs.picker, programs.engine), (release.join("epp"), release.join("mock-vllm")));
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let (dir, release, mut options) = checkout("1.40.0");
    options.bin_dir = Some(dir.path().to_owned());
    let error = resolve(&release, &options).await.unwrap_err();
    assert!(
        error.contains("there is no epp in") && error.contains("cargo build --release --bin epp"),
        "{error}"
    );
}

#[tokio::test]
async fn under_cargo_they_are_built_first_with_the_same_profile() {
    let (dir, release, mut options) = checkout("1.40.0");
    let said = dir.path().join("said");
    options.cargo = Some(script(dir.path(), "cargo", &format!("echo \"$@\" > '{}'", said.display())));
    resolve(&release, &options).await.unwrap();
    let target_dir = dir.path().display();
    let expected =
        format!("build --locked --profile release --bin epp --bin mock-vllm --target-dir {target_dir}\n");
    assert_eq!(read(&said), expected);
    options.cargo = Some(script(dir.path(), "cargo", "exit 101"));
    let error = resolve(&release, &options).await.unwrap_err();
    assert!(error.contains("cargo could not build"), "{error}");
}

/// Cargo gives this test the same variables as the driver under `cargo run`.
#[tokio::test]
async fn a_build_sees_nothing_that_would_compile_ring_again() {
    let (dir, release, mut options) = checkout("1.40.0");
    let seen = dir.path().join("seen");
    options.cargo = Some(script(dir.path(), "cargo", &format!("env > '{}'", seen.display())));
    resolve(&release, &options).await.unwrap();
    let seen = read(&seen);
    assert!(seen.lines().any(|line| line.starts_with("PATH=")), "{seen}");
    for name in ["OUT_DIR", "CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION_MAJOR"] {
        assert!(
            std::env::var_os(name).is_some(),
            "{name} is not set here, so its absence there shows nothing"
        );
        assert!(!seen.lines().any(|line| line.starts_with(&format!("{name}="))), "{name} is passed on");
    }
}

#[tokio::test]
async fn an_envoy_that_is_too_old_is_refused() {
    let (_dir, release, options) = checkout("1.37.5");
    let error = resolve(&release, &options).await.unwrap_err();
    assert!(error.contains("is Envoy 1.37, and 1.38 or later is needed"), "{error}");
}

/// A build takes minutes, and its end would not help.
#[tokio::test]
async fn an_envoy_that_cannot_be_had_ends_the_build() {
    let (dir, release, mut options) = checkout("1.37.5");
    options.cargo = Some(script(dir.path(), "cargo", "exec sleep 600"));
    let error = tokio::time::timeout(Duration::from_secs(120), resolve(&release, &options)).await;
    assert!(error.expect("the build goes on").unwrap_err().contains("is Envoy 1.37"));
}

/// Nothing but the driver is in the directory at first, so it says what is missing; then `studies` goes on in its place.
#[test]
fn a_study_is_run_by_the_program_beside_this_one() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let driver = dir.path().join("e2e");
    std::fs::hard_link(env!("CARGO_BIN_EXE_e2e"), &driver).unwrap();
    let run = || {
        let mut command = Command::new(&driver);
        command.args(["step5", "--seeds", "3", "--help"]).env_remove("CARGO").output().unwrap()
    };
    let missing = run();
    let said = String::from_utf8(missing.stderr).unwrap();
    assert!(missing.status.code() == Some(2) && said.contains("there is no studies in"), "{said}");
    script(dir.path(), "studies", "echo \"$@\"; exit 7");
    let ended = run();
    let said = String::from_utf8(ended.stdout).unwrap();
    assert_eq!((ended.status.code(), said.as_str()), (Some(7), "step5 --seeds 3 --help\n"));
}
