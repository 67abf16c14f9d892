//! A Python interpreter with packages from PyPI, for clients that are not written in Rust.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Returns an environment with `packages` (`name==version`), which is made once under the target folder and kept.
/// Returns `None` if slow tests are left out: the first run downloads the packages.
///
/// # Panics
/// If Python is missing, or the network on the first run.
#[track_caller]
pub(crate) fn interpreter(packages: &[&str]) -> Option<PathBuf> {
    if test_skips::skips_slow() {
        return None;
    }
    let name = format!("python-{}", packages.join("-").replace('=', ""));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if !folder.exists() {
        make(&folder, packages).unwrap_or_else(|missing| panic!("python3 with pip is needed: {missing}"));
    }
    Some(folder.join("bin/python"))
}

/// Makes the environment beside its place first, so that one in place is complete, even if two tests make it at the
/// same time.
fn make(folder: &Path, packages: &[&str]) -> Result<(), String> {
    let draft = folder.with_extension(std::process::id().to_string());
    run(Command::new("python3").args(["-m", "venv"]).arg(&draft))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"];
    let installed = run(Command::new(draft.join("bin/python")).args(pip).args(packages));
    let placed = installed.and_then(|()| match std::fs::rename(&draft, folder) {
        Err(error) if !folder.exists() => Err(error.to_string()),
        Ok(()) | Err(_) => Ok(()),
    });
    // It is gone already if it was moved to its place.
    let _nothing_left = std::fs::remove_dir_all(&draft);
    placed
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(stderr.lines().last().unwrap_or("it failed without a word").to_owned())
}
