//! One child behind a guard.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::{Context as _, Result};
use tokio::process::{Child, Command};

use crate::guard;

/// What to run.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) args: Vec<String>,
    /// Receives stdout and stderr, appended.
    pub(super) log: PathBuf,
}

/// A running child; dropping it terminates the child, without waiting.
#[must_use = "dropping a process ends it"]
#[derive(Debug)]
pub(super) struct Process {
    control: File,
}

/// Resolves when the child has ended.
#[derive(Debug)]
pub(super) struct Exit {
    guard: Child,
}

impl Process {
    pub(super) fn spawn(guard: &Path, program: &Program) -> Result<(Self, Exit)> {
        let Program { path, args, log } = program;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        let mut guard = Command::new(guard)
            .arg("guard")
            .arg("--")
            .arg(path)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C in the terminal is for the driver alone, which then ends the children in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {} for {}", guard.display(), path.display()))?;
        let control = guard.stdin.take().context("the guard has no stdin")?.into_owned_fd()?;
        Ok((Self { control: File::from(control) }, Exit { guard }))
    }

    /// Ends the child as `kill -9` does.
    pub(super) fn kill(mut self) {
        self.order(guard::KILL);
    }

    /// Tells the child to end in its own time; dropping it hurries it.
    pub(super) fn drain(&mut self) {
        self.order(guard::DRAIN);
    }

    /// Makes the child hang.
    pub(super) fn stop(&mut self) {
        self.order(guard::STOP);
    }

    /// Lets a child that hangs go on.
    pub(super) fn go_on(&mut self) {
        self.order(guard::CONTINUE);
    }

    fn order(&mut self, order: u8) {
        // A guard that has ended already has nobody left to pass it on to.
        let _ = self.control.write_all(&[order]);
    }
}

impl Exit {
    pub(super) async fn wait(mut self) -> std::io::Result<ExitStatus> {
        self.guard.wait().await
    }
}
