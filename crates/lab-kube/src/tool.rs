//! The programs of others that the lab runs: Docker, kind and kubectl, as a user runs them.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tracing::info;

/// Lines of a failed program's messages that an error shows.
const TAIL_LINES: usize = 15;

/// A program on the PATH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    Docker,
    Kind,
    Kubectl,
}

impl Tool {
    /// The name of the program.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Kind => "kind",
            Self::Kubectl => "kubectl",
        }
    }

    /// A short command that fails if the program cannot work, and where to get the program.
    fn trial(self) -> (&'static [&'static str], &'static str) {
        match self {
            Self::Docker => {
                (&["info", "--format", "{{.ServerVersion}}"], "https://docs.docker.com/get-docker")
            }
            Self::Kind => (&["version"], "https://kind.sigs.k8s.io/docs/user/quick-start#installation"),
            Self::Kubectl => (&["version", "--client"], "https://kubernetes.io/docs/tasks/tools"),
        }
    }

    /// Sees that the program is there and answers.
    ///
    /// # Errors
    /// When it does not; the error says where to get it.
    pub async fn check(self) -> Result<()> {
        let (arguments, source) = self.trial();
        let name = self.name();
        match self.run(arguments).await {
            Ok(_) => Ok(()),
            Err(error) if is_missing(&error) => bail!("{name} is needed and not on the PATH: {source}"),
            Err(error) => Err(error).with_context(|| format!("{name} does not work, see {source}")),
        }
    }

    /// Runs the program and returns what it prints.
    ///
    /// # Errors
    /// When it cannot be started, or fails; the error has the end of its messages.
    pub async fn run(self, arguments: &[&str]) -> Result<String> {
        self.run_with(arguments, None, "").await
    }

    /// Runs the program with this text as its input, and this kubeconfig in place of the user's.
    ///
    /// # Errors
    /// When it cannot be started, or fails; the error has the end of its messages.
    pub async fn run_with(
        self,
        arguments: &[&str],
        kubeconfig: Option<&Path>,
        input: &str,
    ) -> Result<String> {
        let mut command = Command::new(self.name());
        command.args(arguments);
        if let Some(kubeconfig) = kubeconfig {
            command.env("KUBECONFIG", kubeconfig);
        }
        output(command, input).await.with_context(|| format!("{} {}", self.name(), arguments.join(" ")))
    }
}

/// Runs a command in a process group of its own, so that Ctrl-C reaches it only through this program.
async fn output(mut command: Command, input: &str) -> Result<String> {
    info!(command = ?command.as_std(), "Running a program");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.process_group(0).spawn()?;
    let _group = Group::of(&child);
    let mut stdin = child.stdin.take().context("the program has no input")?;
    let write = async {
        // A program that ends before it has read all says why by itself.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
    };
    let ((), output) = tokio::join!(write, child.wait_with_output());
    let output = output?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = said.trim_end().lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        bail!("{}\n{tail}", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A process group, which ends with this value: kind has children of its own, which would go on without it.
#[derive(Debug)]
struct Group(Option<Pid>);

impl Group {
    fn of(leader: &Child) -> Self {
        Self(leader.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group that has ended is no group any more.
        let _ = self.0.map(|group| killpg(group, Signal::SIGKILL));
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    let io = error.root_cause().downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}
