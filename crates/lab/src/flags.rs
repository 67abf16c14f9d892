//! Flags of every command with a cluster: they say what to start.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use gateway_config::attachment::{Responses, Share};

use crate::cluster::manifests::STANDARD_INPUT;
use crate::cluster::programs::ProgramOptions;
use crate::cluster::{Options, Strictness};
use crate::doc;

/// The cluster to start.
#[derive(Debug, Clone, Args)]
pub struct ClusterArgs {
    /// Files and directories of the Kubernetes objects to apply, `-` for standard input; a directory with a
    /// kustomization is its resources [default: the tutorial's, from manifests/doc if that is here]
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub manifests: Vec<PathBuf>,
    /// Refuse objects and fields that have no effect here, rather than list them
    #[arg(long)]
    pub strict: bool,
    /// Pods of every Deployment, in place of `spec.replicas`
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub replicas: Option<u32>,
    /// Picker processes, which report to each other where they send requests [default: 1; for `soak` 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8))]
    pub pickers: Option<u32>,
    /// Way of responses: past the picker and `observed`, which tells it how all have ended, and reports the bodies of a
    /// share, a twentieth if none is named; or `through` the picker, which then cuts them if it hangs or dies [default: observed]
    #[arg(long, value_name = "through|observed[=SHARE]")]
    pub responses: Option<Responses>,
    /// Virtual seconds per second of wall time; 10 makes every GPU ten times faster [default: 1]
    #[arg(long, value_name = "F", value_parser = time_scale)]
    pub time_scale: Option<f64>,
    /// Write more to standard error
    #[arg(long, short)]
    pub verbose: bool,
    #[command(flatten, next_help_heading = "Programs")]
    pub programs: ProgramOptions,
}

impl ClusterArgs {
    pub fn time_scale(&self) -> f64 {
        self.time_scale.unwrap_or(1.0)
    }
}

/// Returns the options of the cluster from the flags.
///
/// # Errors
/// When the tutorial's manifests cannot be written to `run_dir`.
pub fn options(args: &ClusterArgs, run_dir: &Path) -> Result<Options> {
    let mut options = Options::new(PathBuf::new(), run_dir);
    options.manifests = sources(&args.manifests, run_dir)?;
    options.strictness = if args.strict { Strictness::Strict } else { Strictness::Lenient };
    options.replicas = args.replicas;
    options.pickers = args.pickers.unwrap_or(1);
    options.responses = args.responses.unwrap_or_default();
    options.time_scale = args.time_scale();
    Ok(options)
}

/// Returns the ways of responses to measure: the one asked for, otherwise each.
pub fn attachments(args: &ClusterArgs) -> Vec<Responses> {
    let each = || vec![Responses::Through, Responses::Observed(Share::TWENTIETH)];
    args.responses.map_or_else(each, |responses| vec![responses])
}

/// Returns the files and directories of the manifests to apply: those asked for, otherwise the tutorial's. Standard
/// input becomes a file in `run_dir`, so that it can be read again.
///
/// # Errors
/// When standard input cannot be read, or a file cannot be written.
pub fn sources(asked: &[PathBuf], run_dir: &Path) -> Result<Vec<PathBuf>> {
    if asked.is_empty() {
        return Ok(vec![doc::directory(run_dir)?]);
    }
    let source = |source: &PathBuf| {
        if source.as_os_str() != "-" {
            return Ok(source.clone());
        }
        let file = run_dir.join(STANDARD_INPUT);
        let text = std::io::read_to_string(std::io::stdin()).context("read standard input")?;
        std::fs::create_dir_all(run_dir).with_context(|| format!("create {}", run_dir.display()))?;
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        Ok(file)
    };
    asked.iter().map(source).collect()
}

/// Returns the directory of the requests: beside the manifests if they have some, otherwise the tutorial's.
///
/// # Errors
/// When the tutorial's cannot be written to the run's directory.
pub fn requests(options: &Options) -> Result<PathBuf> {
    let own = options.manifests.iter().map(|source| source.join("requests")).find(|dir| dir.is_dir());
    own.map_or_else(|| Ok(doc::directory(&options.run_dir)?.join("requests")), Ok)
}

/// Reads a positive factor of time.
///
/// # Errors
/// If it is not a number, or out of range.
pub fn time_scale(text: &str) -> std::result::Result<f64, String> {
    let scale: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match scale > 0.0 && scale <= 1000.0 {
        true => Ok(scale),
        false => Err("must be above 0 and at most 1000".to_owned()),
    }
}
