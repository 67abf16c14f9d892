//! Nothing outlives the driver: neither a child nor what a child started.

#![expect(clippy::unwrap_used, reason = "a fixture that cannot be made fails its test")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::stubs::{is_alive, read, until};

/// Starts a watched shell that starts a grandchild. Files in `dir` have the ids of both.
fn spawn(dir: &Path, trap: &str) -> Child {
    let script = format!(
        "{trap} sleep 1000 & echo $! > grandchild; echo $$ > child.part; mv child.part child; wait; wait"
    );
    Command::new(env!("CARGO_BIN_EXE_e2e"))
        .args(["watchdog", "--", "sh", "-c", &script])
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
    let mut watchdog = spawn(dir.path(), "");
    let ids = ids(dir.path()).await;
    assert!(ids.iter().all(|id| is_alive(id)));
    drop(watchdog.stdin.take());
    assert_eq!(watchdog.wait().unwrap().code(), Some(128 + 15));
    check_ended(&ids).await;
}

#[tokio::test]
async fn a_child_that_ignores_sigterm_is_killed() {
    if test_skips::skips_slow() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut watchdog = spawn(dir.path(), "trap '' TERM;");
    let ids = ids(dir.path()).await;
    kill(Pid::from_raw(watchdog.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(watchdog.wait().unwrap().code(), Some(128 + 9));
    check_ended(&ids).await;
}

#[tokio::test]
async fn the_kill_order_kills_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut watchdog = spawn(dir.path(), "");
    let ids = ids(dir.path()).await;
    watchdog.stdin.as_mut().unwrap().write_all(&[lab::watchdog::KILL]).unwrap();
    assert_eq!(watchdog.wait().unwrap().code(), Some(128 + 9));
    check_ended(&ids).await;
}

#[test]
fn the_exit_code_is_the_childs() {
    let watched = |command: &[&str]| {
        let mut watchdog = Command::new(env!("CARGO_BIN_EXE_e2e"));
        watchdog.args(["watchdog", "--"]).args(command).stdin(Stdio::piped()).stderr(Stdio::null());
        let mut watchdog = watchdog.spawn().unwrap();
        // `wait` would close the pipe, and the watchdog would take that as an order to end.
        let _pipe = watchdog.stdin.take();
        watchdog.wait().unwrap().code()
    };
    assert_eq!(watched(&["sh", "-c", "exit 7"]), Some(7));
    assert_eq!(watched(&["/nonexistent/program"]), Some(125));
}
