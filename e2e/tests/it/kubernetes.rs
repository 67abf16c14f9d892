//! Commands on Kubernetes with stubs in place of Docker, kind and kubectl: what is missing is named, and a cluster that a
//! command has made does not outlive an interrupt.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::stubs::write_program;

/// Writes its arguments to the file `calls`; `kind create` then takes for ever, or fails when the cluster is there.
const KIND: &str = r#"#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in
  "get clusters") echo other; cat "$CALLS.clusters" 2>/dev/null ;;
  create*)
    if [ -e "$CALLS.fail" ]; then cp "$CALLS.fail" "$CALLS.clusters"; exit 1; fi
    sleep 1000 & echo $! > "$CALLS.child"; wait ;;
esac
exit 0
"#;

struct Stubs {
    dir: TempDir,
}

impl Stubs {
    fn new() -> Self {
        let stubs = Self { dir: TempDir::new().unwrap() };
        stubs.program("docker", "#!/bin/sh\ncase \"$1\" in image) echo sha256:0123456789abcdef ;; esac\n");
        stubs.program("kubectl", "#!/bin/sh\n");
        stubs.program("kind", KIND);
        stubs
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        fs::create_dir_all(self.path("bin")).unwrap();
        write_program(&path, script);
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }

    fn start(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_e2e-kubernetes"));
        command.args(arguments).args(["--images", "registry.test/warmpath"]).current_dir(self.dir.path());
        command.env("PATH", format!("{}:/usr/bin:/bin", self.path("bin").display()));
        command.env("CALLS", self.path("calls")).env("WARMPATH_STATE_DIR", self.path("state"));
        command.env_remove("CARGO").env("KUBECONFIG", Path::new("kubeconfig"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

fn until(holds: impl Fn() -> bool) {
    for _ in 0..3000 {
        if holds() {
            return;
        }
        sleep(Duration::from_millis(20));
    }
    panic!("it does not happen");
}

fn interrupted(mut child: Child) -> ExitStatus {
    kill(Pid::from_raw(child.id().try_into().unwrap()), Signal::SIGINT).unwrap();
    child.wait().unwrap()
}

#[test]
fn a_cluster_that_is_being_made_is_deleted_when_interrupted() {
    for command in [&["--on", "kind"][..], &["up", "--on", "kind"], &["tutorial", "--on", "kind"]] {
        let stubs = Stubs::new();
        let child = stubs.start(command);
        let has_child =
            || fs::read_to_string(stubs.path("calls.child")).is_ok_and(|text| text.ends_with('\n'));
        until(has_child);
        assert!(stubs.calls().contains("create cluster"), "{}", stubs.calls());
        assert_eq!(interrupted(child).code(), Some(130), "{command:?}");
        assert!(stubs.calls().contains("delete cluster --name warmpath"), "{}", stubs.calls());
        let grandchild = fs::read_to_string(stubs.path("calls.child")).unwrap();
        until(|| !Path::new("/proc").join(grandchild.trim()).join("exe").exists());
    }
}

/// The control: what was there before belongs to the user.
#[test]
fn a_cluster_that_was_there_stays() {
    let stubs = Stubs::new();
    fs::write(stubs.path("calls.clusters"), "warmpath\n").unwrap();
    let output = stubs.start(&["tutorial", "--on", "kind"]).wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2), "the stub writes no kubeconfig");
    assert!(stubs.calls().contains("export kubeconfig"), "{}", stubs.calls());
    assert!(!stubs.calls().contains("delete"), "{}", stubs.calls());
}

/// A user is not told to delete a cluster that was never made.
#[test]
fn up_that_fails_says_that_a_cluster_is_left_only_if_one_is() {
    for (clusters, is_left) in [("other\n", false), ("warmpath\n", true)] {
        let stubs = Stubs::new();
        fs::write(stubs.path("calls.fail"), clusters).unwrap();
        let output = stubs.start(&["up", "--on", "kind"]).wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert_eq!(said.contains("`kind delete cluster --name warmpath` deletes it"), is_left, "{said}");
        assert!(!stubs.calls().contains("delete"), "{}", stubs.calls());
    }
}

#[test]
fn a_program_that_is_missing_is_named_before_anything_is_made() {
    let stubs = Stubs::new();
    fs::remove_file(stubs.path("bin/kind")).unwrap();
    let bin = stubs.path("bin");
    let mut command = Command::new(env!("CARGO_BIN_EXE_e2e-kubernetes"));
    command.args(["up", "--on", "kind", "--images", "x"]).env("PATH", bin).env("CALLS", stubs.path("calls"));
    let output = command.env("WARMPATH_STATE_DIR", stubs.path("state")).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("kind is needed and not on the PATH: https://kind.sigs.k8s.io"), "{said}");
    assert_eq!(stubs.calls(), "");
}

/// The control: the tutorial's own pods, which have no probes.
#[test]
fn the_overlay_for_gpus_is_the_tutorial_with_what_vllm_needs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let built = |folder: &str| {
        let output = Command::new("kubectl").arg("kustomize").arg(root.join(folder)).output().ok()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(String::from_utf8(output.stdout).unwrap())
    };
    let (Some(tutorial), Some(gpu)) = (built("manifests/doc"), built("manifests/gpu")) else {
        return test_skips::missing("there is no kubectl", "WARMPATH_REQUIRE_KIND");
    };
    let kinds = |text: &str| text.lines().filter(|line| line.starts_with("kind: ")).count();
    assert_eq!((kinds(&tutorial), kinds(&gpu)), (9, 9), "{gpu}");
    for (text, is_in_both) in [
        ("image: vllm/vllm-openai:v0.8.5", true),
        ("nvidia.com/gpu: \"1\"", true),
        ("--served-model-name", true),
        ("readinessProbe:", false),
        ("mountPath: /weights", false),
        ("name: hf-token", false),
    ] {
        assert!(gpu.contains(text), "{text}: {gpu}");
        assert_eq!(tutorial.contains(text), is_in_both, "{text}: {tutorial}");
    }
}
