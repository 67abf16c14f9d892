//! Envoy's files and process. A configuration is validated as a whole, then written file by file, each with a rename.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use gateway_config::render::{Rendered, XdsFile};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;
use tracing::debug;

use crate::cluster::process::Program;

/// Longest time for a validation; it takes 0.1 s on an idle machine.
const VALIDATION: Duration = Duration::from_secs(30);

/// The directory that Envoy watches.
#[derive(Debug)]
pub(super) struct EnvoyFiles {
    dir: PathBuf,
    /// Version of each written file, by file name.
    written: BTreeMap<String, String>,
}

impl EnvoyFiles {
    /// Creates the directory, without files of an earlier run.
    pub(super) fn create(dir: PathBuf) -> Result<Self> {
        let files = Self { dir, written: BTreeMap::new() };
        if files.xds_dir().exists() {
            std::fs::remove_dir_all(files.xds_dir()).context("remove the files of an earlier run")?;
        }
        std::fs::create_dir_all(files.xds_dir())
            .with_context(|| format!("create {}", files.xds_dir().display()))?;
        Ok(files)
    }

    pub(super) fn xds_dir(&self) -> PathBuf {
        self.dir.join("xds")
    }

    /// True if more than endpoints has changed since the last write, so that Envoy must validate it first.
    pub(super) fn needs_validation(&self, rendered: &Rendered) -> bool {
        let changed = |file: &XdsFile| self.written.get(&file.name) != Some(&file.version);
        rendered.files.iter().any(|file| !file.name.starts_with("eds-") && changed(file))
    }

    /// Lets Envoy validate a configuration.
    ///
    /// # Errors
    /// When Envoy refuses the configuration, with its reason.
    pub(super) async fn validate(&self, envoy: &Path, static_equivalent: &Value) -> Result<()> {
        let path = self.dir.join("static.json");
        write_whole(&path, &serde_json::to_string_pretty(static_equivalent)?)?;
        let mut command = Command::new(envoy);
        command
            .args(["--mode", "validate", "--use-dynamic-base-id", "--log-level", "error", "-c"])
            .arg(&path);
        command.stdin(Stdio::null()).kill_on_drop(true);
        debug!(command = ?command.as_std(), "Validating Envoy's configuration");
        let output = timeout(VALIDATION, command.output())
            .await
            .context("Envoy took too long to validate its configuration")?
            .with_context(|| format!("start {}", envoy.display()))?;
        if !output.status.success() {
            bail!("Envoy refuses the configuration: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Writes the files that changed. Returns all statistics and versions that Envoy must report once it uses them.
    pub(super) fn write(&mut self, rendered: &Rendered) -> Result<Vec<(String, String)>> {
        let dir = self.xds_dir();
        write_whole(&self.dir.join("bootstrap.json"), &serde_json::to_string_pretty(&rendered.bootstrap)?)?;
        for file in &rendered.files {
            if self.written.get(&file.name) != Some(&file.version) {
                write_whole(&dir.join(&file.name), &serde_json::to_string_pretty(&file.content)?)?;
                self.written.insert(file.name.clone(), file.version.clone());
            }
        }
        let is_current = |name: &String| rendered.files.iter().any(|file| file.name == *name);
        let stale: Vec<String> = self.written.keys().filter(|name| !is_current(name)).cloned().collect();
        for name in stale {
            std::fs::remove_file(dir.join(&name)).with_context(|| format!("remove {name}"))?;
            self.written.remove(&name);
        }
        Ok(rendered.files.iter().map(|file| (file.version_stat.clone(), file.version.clone())).collect())
    }

    pub(super) fn program(&self, envoy: &Path, log: PathBuf) -> Program {
        let config = self.dir.join("bootstrap.json");
        let flags =
            "--use-dynamic-base-id --concurrency 2 --file-flush-interval-msec 100 --log-level warning -c";
        let mut args: Vec<String> = flags.split(' ').map(str::to_owned).collect();
        args.push(config.display().to_string());
        Program { path: envoy.to_owned(), args, env: Vec::new(), log }
    }
}

/// Replaces a file with a rename, so that readers see the old or the new text and never a part.
pub(super) fn write_whole(path: &Path, text: &str) -> Result<()> {
    let part = path.with_extension("part");
    std::fs::write(&part, text).with_context(|| format!("write {}", part.display()))?;
    std::fs::rename(&part, path).with_context(|| format!("replace {}", path.display()))
}
