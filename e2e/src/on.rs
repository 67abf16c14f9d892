//! Flags of the commands that exist on Kubernetes only, and the program that knows what to do there. It links a client
//! for Kubernetes, so it is built when it is first asked for.

use std::path::PathBuf;

use clap::Args;
use lab::cluster::programs::ProgramOptions;
use lab::on::{InstallArgs, OnArgs};

/// Flags of `images`.
#[derive(Debug, Clone, Args)]
pub struct ImagesArgs {
    /// Folder to fill for Docker; it is made again
    #[arg(long, value_name = "DIR", default_value = "report/images")]
    pub context_dir: PathBuf,
    #[command(flatten, next_help_heading = "Programs")]
    pub programs: ProgramOptions,
}

/// Flags of `tutorial`.
#[derive(Debug, Clone, Args)]
pub struct TutorialArgs {
    /// Seconds of each of step 5's two runs; the tutorial prints 600
    #[arg(long, value_name = "SECONDS", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    pub time: u64,
    /// Directory for the transcript, and for the files that the commands use and write
    #[arg(long, value_name = "DIR", default_value = "report")]
    pub report_dir: PathBuf,
    /// Leave the cluster running
    #[arg(long)]
    pub keep: bool,
    /// Write more to standard error
    #[arg(long, short)]
    pub verbose: bool,
    #[command(flatten)]
    pub on: OnArgs,
    #[command(flatten)]
    pub install: InstallArgs,
    #[command(flatten, next_help_heading = "Programs")]
    pub programs: ProgramOptions,
}

/// Place to build the other program, as cargo says it.
#[cfg(not(feature = "kubernetes"))]
#[derive(Debug, Clone, Args)]
struct CargoArgs {
    #[arg(long, env = "CARGO", hide = true)]
    cargo: Option<PathBuf>,
    #[arg(long, env = "CARGO_MANIFEST_DIR", hide = true)]
    package: Option<PathBuf>,
}

#[cfg(not(feature = "kubernetes"))]
mod other {
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    use anyhow::{Context as _, Result};
    use clap::Parser as _;
    use lab::cluster::programs::{ProgramOptions, WITH_KUBERNETES, Wanted, find};
    use lab::ui::Ui;
    use load::ending::End;
    use load::interrupt::Interrupt;

    const WANTED: Wanted<'_> = Wanted { programs: &["e2e-kubernetes"], arguments: WITH_KUBERNETES };

    #[derive(Debug, clap::Parser)]
    struct Environment {
        #[command(flatten)]
        cargo: super::CargoArgs,
    }

    /// Becomes the program for Kubernetes with the same command line; returns only if there is none, or if it is
    /// interrupted before.
    pub async fn run() -> Result<End> {
        let super::CargoArgs { cargo, package } = Environment::parse_from(["e2e"]).cargo;
        let options = ProgramOptions { cargo, package, ..ProgramOptions::default() };
        let interrupt = Interrupt::listen()?;
        let ui = Ui::new(false);
        let found = interrupt.unless(find(WANTED, &options, &ui.progress())).await;
        ui.finish();
        let Some(programs) = found.transpose()? else { return Ok(End::Interrupted) };
        let program = programs.first().context("the program is not found")?;
        let error = Command::new(program).args(std::env::args_os().skip(1)).exec();
        Err(error).with_context(|| format!("start {}", program.display()))
    }
}
#[cfg(not(feature = "kubernetes"))]
pub use other::run;
