//! A real cluster of kind does not outlive the run that makes it, whenever that is interrupted.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::stubs::write_program;

/// Prefix of images that nobody pulls.
const PREFIX: &str = "registry.test/warmpath";
/// Docker, which has every image of that prefix, and looks at one of them for ever.
const DOCKER: &str = r#"#!/bin/sh
case "$*" in
  "pull --quiet registry.test/"*) exit 0 ;;
  "image inspect --format {{.Id}} registry.test/"*) exec sleep 1000 ;;
esac
exec "$DOCKER" "$@"
"#;
/// Moments of an interrupt: a step that the run shows, and the time after it.
const MOMENTS: [(&str, Duration); 3] = [
    ("making the cluster", Duration::ZERO),
    ("making the cluster", Duration::from_secs(8)),
    ("loading the images", Duration::ZERO),
];

/// Prints the path of a program, if it is there.
fn found(program: &str) -> Option<PathBuf> {
    let output = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    let path = String::from_utf8(output.stdout).unwrap();
    output.status.success().then(|| PathBuf::from(path.trim()))
}

fn printed(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A cluster's name, which no test leaves a cluster with.
struct Name(String);

impl Name {
    /// Containers of the cluster's nodes, also of a cluster that kind does not list.
    fn nodes(&self) -> String {
        let of_cluster = format!("label=io.x-k8s.kind.cluster={}", self.0);
        printed("docker", &["ps", "--all", "--quiet", "--filter", &of_cluster])
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = Command::new("kind").args(["delete", "cluster", "--name", &self.0]).output();
    }
}

fn start(dir: &TempDir, name: &Name, docker: &Path) -> Child {
    let bin = dir.path().join("bin");
    let mut command = Command::new(env!("CARGO_BIN_EXE_e2e-kubernetes"));
    command.args(["--on", "kind", "--verbose", "--kind-name", &name.0, "--images", PREFIX]);
    command.current_dir(dir.path()).env_remove("CARGO").env("DOCKER", docker);
    let path = std::env::var_os("PATH").unwrap();
    command.env("PATH", std::env::join_paths([bin].into_iter().chain(std::env::split_paths(&path))).unwrap());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn no_cluster_is_left_whenever_a_run_is_interrupted() {
    if test_skips::skips_slow() {
        return;
    }
    let (Some(docker), Some(_), Some(_)) = (found("docker"), found("kind"), found("kubectl")) else {
        return test_skips::missing("there is no docker, kind or kubectl", "WARMPATH_REQUIRE_KIND");
    };
    if !Command::new("docker").arg("info").output().unwrap().status.success() {
        return test_skips::missing("Docker does not answer", "WARMPATH_REQUIRE_KIND");
    }
    let dir = TempDir::new().unwrap();
    std::fs::create_dir(dir.path().join("bin")).unwrap();
    write_program(&dir.path().join("bin/docker"), DOCKER);
    for (idx, (step, later)) in MOMENTS.into_iter().enumerate() {
        let name = Name(format!("warmpath-interrupted-{}-{idx}", std::process::id()));
        let mut run = start(&dir, &name, &docker);
        let mut lines = BufReader::new(run.stderr.take().unwrap()).lines().map(Result::unwrap);
        let shown: Vec<String> = lines.by_ref().take_while(|line| !line.starts_with(step)).collect();
        sleep(later);
        // The run may have ended, and is not waited for yet.
        kill(Pid::from_raw(run.id().try_into().unwrap()), Signal::SIGINT).unwrap();
        let rest: Vec<String> = lines.collect();
        assert_eq!(run.wait().unwrap().code(), Some(130), "{step} + {later:?}: {shown:?} {rest:?}");
        let clusters = printed("kind", &["get", "clusters"]);
        assert!(!clusters.lines().any(|cluster| cluster == name.0), "{step} + {later:?}: {clusters}");
        assert_eq!(name.nodes(), "", "{step} + {later:?}");
    }
}
