//! A cluster that outlives the command that started it: `e2e up`, `status`, `logs`, `down`.
//!
//! `up` starts this program again, detached, as `e2e supervise`. That process owns the cluster and holds a lock on the
//! state directory, which the kernel releases however the process ends. The other commands read from `state.json` where
//! everything is.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use load::interrupt::Interrupt;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, setsid};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::{sleep, timeout};
use tracing::info;

use crate::cluster::envoy::write_whole;
use crate::cluster::local::handle::LocalCluster;
use crate::cluster::programs::Programs;
use crate::cluster::{Options, Progress, ProgressEvent, Status, log_tail};

/// Time between two looks at another process's files.
const POLL: Duration = Duration::from_millis(50);
/// Longest wait for a supervisor to end; its children have 5 s.
const DOWN: Duration = Duration::from_secs(10);
/// Number of tries to take the lock, [`POLL`] apart.
const LOCK_TRIES: usize = 10;
/// Lines of the supervisor's log that an error shows.
const TAIL_LINES: usize = 20;

/// Content of `state.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterState {
    /// Process id of the supervisor.
    pub pid: u32,
    pub run_dir: PathBuf,
    pub manifests: Vec<PathBuf>,
    pub phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    Starting,
    Running { status: Status },
    Failed { error: String },
}

/// Settings that `up` passes to the process that it starts.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    options: Options,
    programs: Programs,
}

/// Starts a detached cluster, passes its progress on, and returns its state when it is ready. Returns `None` if `stop`
/// resolves first; then everything has ended.
///
/// # Errors
/// When a cluster is up already (the error has its pid and addresses), or when this one cannot be started.
pub async fn up(
    state_dir: &Path,
    options: &Options,
    programs: &Programs,
    progress: &Progress,
    stop: impl Future<Output = ()>,
) -> Result<Option<ClusterState>> {
    tokio::pin!(stop);
    std::fs::create_dir_all(state_dir).with_context(|| format!("create {}", state_dir.display()))?;
    if let Some(state) = status(state_dir)? {
        bail!("a cluster is up already ({}): end it with `e2e down`", describe(&state));
    }
    let mut options = options.clone();
    for source in &mut options.manifests {
        *source = std::path::absolute(&*source)?;
    }
    options.run_dir = std::path::absolute(&options.run_dir)?;
    for file in [state_file(state_dir), events_file(state_dir)] {
        if file.exists() {
            std::fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
        }
    }
    let order = Order { options, programs: programs.clone() };
    write_whole(&order_file(state_dir), &serde_json::to_string_pretty(&order)?)?;
    let log = File::create(log_file(state_dir)).context("create the supervisor's log")?;
    let mut supervisor = Command::new(&programs.driver)
        .arg("supervise")
        .arg(state_dir)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {}", programs.driver.display()))?;
    info!(program = %programs.driver.display(), pid = supervisor.id(), "Started the supervisor, which logs to its own file");
    let mut n_events = 0;
    loop {
        let ended = supervisor.try_wait()?;
        pass_on(state_dir, &mut n_events, progress);
        let state = read_state(state_dir)?;
        match (state.as_ref().map(|state| &state.phase), ended) {
            (Some(Phase::Running { .. }), None) => return Ok(state),
            (Some(Phase::Failed { error }), _) => bail!("{error}"),
            (_, Some(status)) => {
                bail!("the supervisor has ended ({status}):\n{}", log_tail(&log_file(state_dir), TAIL_LINES))
            }
            (Some(Phase::Starting) | None, None) => {}
        }
        tokio::select! {
            () = sleep(POLL) => {}
            () = &mut stop => {
                // The supervisor is this command's child, so end it whether it has the lock yet or not.
                terminate(supervisor.id().context("the supervisor has no id")?)?;
                let ended = timeout(DOWN, supervisor.wait()).await;
                ended.with_context(|| format!("the supervisor has not ended after {DOWN:?}"))??;
                return Ok(None);
            }
        }
    }
}

/// Runs the cluster that [`up`] described until SIGTERM or SIGINT: the hidden command `e2e supervise <STATE_DIR>`.
///
/// # Errors
/// When the cluster cannot be started or kept; the state file has the reason, too.
pub async fn supervise(state_dir: &Path) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    // Leave the terminal's session, because closing the terminal must not end the cluster. This fails for a group
    // leader, which need not leave.
    let _ = setsid();
    let _lock = own(state_dir).await?;
    let text = std::fs::read_to_string(order_file(state_dir)).context("read what to start")?;
    let Order { options, programs } = serde_json::from_str(&text).context("parse what to start")?;
    let mut state = ClusterState {
        pid: std::process::id(),
        run_dir: options.run_dir.clone(),
        manifests: options.manifests.clone(),
        phase: Phase::Starting,
    };
    write_state(state_dir, &state)?;
    let outcome = keep(state_dir, &mut state, (options, programs), &interrupt).await;
    if let Err(error) = &outcome {
        state.phase = Phase::Failed { error: format!("{error:#}") };
        write_state(state_dir, &state)?;
    }
    outcome
}

async fn keep(
    state_dir: &Path,
    state: &mut ClusterState,
    (options, programs): (Options, Programs),
    interrupt: &Interrupt,
) -> Result<()> {
    let events = events_file(state_dir);
    let progress: Progress = Arc::new(move |event| {
        // There is no other way to report this error.
        let _ = append_event(&events, &event);
    });
    let started = LocalCluster::start_unless(options, programs, progress, interrupt.requested()).await?;
    let Some(mut cluster) = started else { return remove_state(state_dir) };
    state.phase = Phase::Running { status: Status::clone(&cluster.status()) };
    write_state(state_dir, state)?;
    loop {
        tokio::select! {
            () = interrupt.requested() => break,
            status = cluster.changed() => match status {
                Some(status) => {
                    state.phase = Phase::Running { status: Status::clone(&status) };
                    write_state(state_dir, state)?;
                }
                None => bail!("{}", cluster.status().summary()),
            },
        }
    }
    cluster.stop().await?;
    remove_state(state_dir)
}

/// Returns the running cluster's state with its newest status; `None` if no cluster is up.
///
/// # Errors
/// When the state directory cannot be read.
pub fn status(state_dir: &Path) -> Result<Option<ClusterState>> {
    if !state_dir.exists() || lock(state_dir)?.is_some() {
        return Ok(None);
    }
    read_state(state_dir)
}

/// Ends the running cluster and waits for it; returns false if none was up.
///
/// # Errors
/// When it does not end in time.
pub async fn down(state_dir: &Path) -> Result<bool> {
    let Some(state) = status(state_dir)? else { return Ok(false) };
    let pid = state.pid;
    terminate(pid)?;
    let gone = async {
        while lock(state_dir)?.is_none() {
            sleep(POLL).await;
        }
        anyhow::Ok(())
    };
    timeout(DOWN, gone)
        .await
        .with_context(|| format!("the supervisor {pid} has not ended after {DOWN:?}"))??;
    Ok(true)
}

/// Returns the log files of the running cluster, or of the last one, sorted. Only names that contain `part`, such as
/// `epp`, `envoy` or `qwen`; all if it is empty.
///
/// # Errors
/// When no cluster was ever started with this state directory, or its logs cannot be read.
pub fn logs(state_dir: &Path, part: &str) -> Result<Vec<PathBuf>> {
    let text =
        std::fs::read_to_string(order_file(state_dir)).context("no cluster was started yet: see `e2e up`")?;
    let order: Order = serde_json::from_str(&text).context("parse what was started")?;
    let dir = order.options.run_dir.join("logs");
    let entries = match std::fs::read_dir(&dir) {
        // A cluster that is starting has removed the logs of the last one.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("read {}", dir.display()))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().contains(part) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn terminate(pid: u32) -> Result<()> {
    kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM)
        .with_context(|| format!("end the supervisor {pid}"))
}

/// Takes the lock that a supervisor holds while it lives; `None` if one lives.
fn lock(state_dir: &Path) -> Result<Option<Flock<File>>> {
    let path = state_dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno).with_context(|| format!("lock {}", path.display())),
    }
}

/// Takes the lock for good. Commands that ask for the status hold it for a moment, so one refusal proves nothing.
async fn own(state_dir: &Path) -> Result<Flock<File>> {
    for _ in 0..LOCK_TRIES {
        if let Some(lock) = lock(state_dir)? {
            return Ok(lock);
        }
        sleep(POLL).await;
    }
    bail!("a cluster is up already")
}

fn describe(state: &ClusterState) -> String {
    match &state.phase {
        Phase::Running { status } => {
            let gateways = status.gateways.iter();
            let addresses: Vec<String> =
                gateways.map(|gateway| format!("{} on {}", gateway.listener, gateway.address)).collect();
            format!("pid {}, {}", state.pid, addresses.join(", "))
        }
        Phase::Starting | Phase::Failed { .. } => format!("pid {}", state.pid),
    }
}

fn read_state(state_dir: &Path) -> Result<Option<ClusterState>> {
    let path = state_file(state_dir);
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_str(&text).map(Some).with_context(|| format!("parse {}", path.display()))
}

fn write_state(state_dir: &Path, state: &ClusterState) -> Result<()> {
    write_whole(&state_file(state_dir), &serde_json::to_string_pretty(state)?)
}

fn remove_state(state_dir: &Path) -> Result<()> {
    std::fs::remove_file(state_file(state_dir)).context("remove the state file")
}

fn append_event(path: &Path, event: &ProgressEvent) -> Result<()> {
    use std::io::Write as _;
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(format!("{}\n", serde_json::to_string(event)?).as_bytes())?;
    Ok(())
}

/// Passes on the events written since the last call.
fn pass_on(state_dir: &Path, n_seen: &mut usize, progress: &Progress) {
    let text = std::fs::read_to_string(events_file(state_dir)).unwrap_or_default();
    let complete = text.rfind('\n').map_or("", |end| &text[..=end]);
    for line in complete.lines().skip(*n_seen) {
        *n_seen += 1;
        if let Ok(event) = serde_json::from_str(line) {
            progress(event);
        }
    }
}

fn state_file(state_dir: &Path) -> PathBuf {
    state_dir.join("state.json")
}

fn order_file(state_dir: &Path) -> PathBuf {
    state_dir.join("order.json")
}

fn events_file(state_dir: &Path) -> PathBuf {
    state_dir.join("events.jsonl")
}

fn log_file(state_dir: &Path) -> PathBuf {
    state_dir.join("supervisor.log")
}
