//! Nothing outlives the driver: neither a child nor what a child started.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::stubs::{is_alive, read, until};

/// Starts a guarded shell that starts a grandchild. Files in `dir` have the ids of both.
fn spawn(dir: &Path, trap: &str) -> Child {
    let script = format!(
        "{trap} sleep 1000 & echo $! > grandchild; echo $$ > child.part; mv child.part child; wait; wait"
    );
    Command::new(env!("CARGO_BIN_EXE_e2e"))
        .args(["guard", "--", "sh", "-c", &script])
        .current_dir(dir)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap()
}

async fn ids(dir: &Path) -> [String; 2] {
    until("the shell has started", || dir.join("child").exists()).await;
    ["child", "grandchild"].map(|name| read(dir.join(name)).trim().to_owned())
}

async fn check_ended(ids: &[String; 2]) {
    for id in ids {
        until("the process has ended", || !is_alive(id)).await;
    }
}

#[tokio::test]
async fn closing_the_pipe_ends_the_group() {
    let dir = tempfile::tempdir().unwrap();
    let mut guard = spawn(dir.path(), "");
    let ids = ids(dir.path()).await;
    assert!(ids.iter().all(|id| is_alive(id)));
    drop(guard.stdin.take());
    assert_eq!(guard.wait().unwrap().code(), Some(128 + 15));
    check_ended(&ids).await;
}

#[tokio::test]
async fn a_child_that_ignores_sigterm_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut guard = spawn(dir.path(), "trap '' TERM;");
    let ids = ids(dir.path()).await;
    kill(Pid::from_raw(guard.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(guard.wait().unwrap().code(), Some(128 + 9));
    check_ended(&ids).await;
}

#[tokio::test]
async fn the_kill_order_kills_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut guard = spawn(dir.path(), "");
    let ids = ids(dir.path()).await;
    guard.stdin.as_mut().unwrap().write_all(&[lab::guard::KILL]).unwrap();
    assert_eq!(guard.wait().unwrap().code(), Some(128 + 9));
    check_ended(&ids).await;
}

#[test]
fn the_exit_code_is_the_childs() {
    let guarded = |command: &[&str]| {
        let mut guard = Command::new(env!("CARGO_BIN_EXE_e2e"));
        guard.args(["guard", "--"]).args(command).stdin(Stdio::piped()).stderr(Stdio::null());
        let mut guard = guard.spawn().unwrap();
        // `wait` would close the pipe, and the guard would take that as an order to end.
        let _pipe = guard.stdin.take();
        guard.wait().unwrap().code()
    };
    assert_eq!(guarded(&["sh", "-c", "exit 7"]), Some(7));
    assert_eq!(guarded(&["/nonexistent/program"]), Some(125));
}
