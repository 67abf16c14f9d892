//! One child process behind a watchdog.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::{Context as _, Result};
use tokio::process::{Child, Command};
use tracing::info;

use crate::watchdog;

/// Command line of a child.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) args: Vec<String>,
    /// Variables beside those of this program.
    pub(super) env: Vec<(String, String)>,
    /// File to which stdout and stderr are appended.
    pub(super) log: PathBuf,
}

/// A running child; dropping it terminates the child without waiting.
#[must_use = "dropping a process ends it"]
#[derive(Debug)]
pub(super) struct Process {
    control: File,
}

/// Resolves when the child has ended.
#[derive(Debug)]
pub(super) struct Exit {
    program: PathBuf,
    watchdog: Child,
    /// Process id of the watchdog.
    pid: Option<u32>,
}

impl Process {
    pub(super) fn spawn(driver: &Path, program: &Program) -> Result<(Self, Exit)> {
        let Program { path, args, env, log } = program;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        let mut watchdog = Command::new(driver)
            .arg("watchdog")
            .arg("--")
            .arg(path)
            .args(args)
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Only the driver gets Ctrl-C from the terminal; it then ends the children in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {} for {}", driver.display(), path.display()))?;
        let pid = watchdog.id();
        info!(program = %path.display(), args = args.join(" "), watchdog = pid, "Started a process");
        let control = watchdog.stdin.take().context("the watchdog has no stdin")?.into_owned_fd()?;
        Ok((Self { control: File::from(control) }, Exit { program: path.clone(), watchdog, pid }))
    }

    /// Ends the child like `kill -9`.
    pub(super) fn kill(mut self) {
        self.order(watchdog::KILL);
    }

    /// Asks the child to end in its own time; dropping the process then terminates it.
    pub(super) fn drain(&mut self) {
        self.order(watchdog::DRAIN);
    }

    /// Makes the child hang.
    pub(super) fn stop(&mut self) {
        self.order(watchdog::STOP);
    }

    /// Lets a hanging child continue.
    pub(super) fn go_on(&mut self) {
        self.order(watchdog::CONTINUE);
    }

    fn order(&mut self, order: u8) {
        // An error means that the watchdog, and so the child, has already ended.
        let _ = self.control.write_all(&[order]);
    }
}

impl Exit {
    pub(super) async fn wait(mut self) -> std::io::Result<ExitStatus> {
        let status = self.watchdog.wait().await?;
        info!(program = %self.program.display(), watchdog = self.pid, %status, "A process has ended");
        Ok(status)
    }
}
