//! A cluster that outlives the command that started it: `e2e up`, `status`, `logs`, `down`.
//!
//! `up` starts this program again, detached, as `e2e supervise`; that process owns the cluster and a lock on the state
//! directory. The state file tells the others where everything is.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::cluster::programs::Programs;
use crate::cluster::{Options, Progress, Status};

/// What `state.json` holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// The supervisor's.
    pub pid: u32,
    pub run_dir: PathBuf,
    pub manifests: PathBuf,
    pub phase: Phase,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    Starting,
    Running { status: Status },
    Failed { error: String },
}

/// Starts a detached cluster and returns its state when it is ready; progress is passed on meanwhile.
///
/// # Errors
/// When one is up already, naming its pid and addresses; when it cannot be started, with the reason.
pub async fn up(
    state_dir: &Path,
    options: &Options,
    programs: &Programs,
    progress: &Progress,
) -> Result<State> {
    let _ = (state_dir, options, programs, progress);
    anyhow::bail!("a cluster cannot be started yet")
}

/// Body of the hidden `e2e supervise <STATE_DIR>`: runs the cluster that [`up`] described until SIGTERM or SIGINT.
pub async fn supervise(state_dir: &Path) -> Result<()> {
    let _ = state_dir;
    anyhow::bail!("a cluster cannot be started yet")
}

/// The running cluster's state, with its newest status; `None` when none is up.
pub fn status(state_dir: &Path) -> Result<Option<State>> {
    let _ = state_dir;
    Ok(None)
}

/// Ends the running cluster and waits for it; false when none was up.
pub async fn down(state_dir: &Path) -> Result<bool> {
    let _ = state_dir;
    Ok(false)
}

/// Log files of the running cluster whose name contains `part` (all when it is empty), such as `epp`, `envoy`, `qwen`.
pub fn logs(state_dir: &Path, part: &str) -> Result<Vec<PathBuf>> {
    let _ = (state_dir, part);
    Ok(Vec::new())
}
