//! Watchdogs: `e2e watchdog -- PROGRAM ARGS…` runs a program that must not outlive the driver.
//!
//! ```text
//! driver ──pipe──► watchdog (own process group) ──► program (own process group)
//!   byte `k`: kill the group · `t`: send SIGTERM and wait without limit · `s`: stop it · `c`: continue it
//!   end of file (the driver closed it, or died) or SIGTERM: terminate it, then kill it
//! ```
//!
//! The kernel closes the pipe however the driver ends, even by SIGKILL.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

/// Order to kill the program at once.
pub const KILL: u8 = b'k';
/// Order to end the program in its own time.
pub const DRAIN: u8 = b't';
/// Order to make the program hang.
pub const STOP: u8 = b's';
/// Order to continue a program that hangs.
pub const CONTINUE: u8 = b'c';

/// Time that a program has to end after SIGTERM; the mock engine needs up to a second.
const GRACE: Duration = Duration::from_secs(2);
/// Exit code when the watchdog itself fails; `timeout` and `nohup` use the same.
const WATCHDOG_FAILED: u8 = 125;

/// Runs the command with the driver's pipe as stdin, and returns its exit code (128 + signal if a signal ended it).
pub fn run(command: &[String]) -> ExitCode {
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start a runtime")
        .and_then(|runtime| runtime.block_on(watchdog(command)));
    match outcome {
        Ok(status) => ExitCode::from(code(status)),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "watchdog: {error:#}");
            ExitCode::from(WATCHDOG_FAILED)
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Terminate,
    Kill,
    /// Send the signal to the program, and wait for more orders.
    Signal(Signal),
}

async fn watchdog(command: &[String]) -> Result<ExitStatus> {
    let [program, args @ ..] = command else { bail!("no command to run") };
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().context("take the driver's pipe")?;
    let mut control = pipe::Receiver::from_owned_fd(stdin).context("stdin is not the driver's pipe")?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let group = Pid::from_raw(i32::try_from(child.id().context("the program has no id")?)?);
    let order = loop {
        let order = tokio::select! {
            status = child.wait() => {
                // Processes that it started must end too. The call fails if there are none.
                let _ = killpg(group, Signal::SIGKILL);
                return Ok(status?);
            }
            order = read_order(&mut control) => order,
            _ = terminate.recv() => Order::Terminate,
            _ = interrupt.recv() => Order::Terminate,
        };
        match order {
            Order::Signal(signal) => killpg(group, signal).context("pass a signal on")?,
            Order::Terminate | Order::Kill => break order,
        }
    };
    if order == Order::Terminate {
        let _ = killpg(group, Signal::SIGTERM);
        // A stopped program receives SIGTERM only after it continues.
        let _ = killpg(group, Signal::SIGCONT);
        let _ = timeout(GRACE, child.wait()).await;
    }
    let _ = killpg(group, Signal::SIGKILL);
    Ok(child.wait().await?)
}

async fn read_order(control: &mut pipe::Receiver) -> Order {
    let mut byte = [0];
    match control.read(&mut byte).await {
        Ok(1) if byte[0] == KILL => Order::Kill,
        Ok(1) if byte[0] == DRAIN => Order::Signal(Signal::SIGTERM),
        Ok(1) if byte[0] == STOP => Order::Signal(Signal::SIGSTOP),
        Ok(1) if byte[0] == CONTINUE => Order::Signal(Signal::SIGCONT),
        Ok(_) | Err(_) => Order::Terminate,
    }
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}
