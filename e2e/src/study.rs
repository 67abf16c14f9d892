//! `e2e step5`, `compare`, `sweep`, `calibrate` and `sharegpt`: commands of the program `studies`, which takes this one's
//! place. It links the simulator, so it is built when it is first asked for.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::Args;
use lab::cluster::programs::{ProgramOptions, Wanted, find};
use lab::ui::Ui;
use load::ending::End;
use load::interrupt::Interrupt;

#[derive(Debug, Clone, Args)]
pub struct StudyArgs {
    /// Flags and values of the command; `--help` after it lists them
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub flags: Vec<OsString>,
    #[arg(long, env = "CARGO", hide = true)]
    cargo: Option<std::path::PathBuf>,
    #[arg(long, env = "CARGO_MANIFEST_DIR", hide = true)]
    package: Option<std::path::PathBuf>,
}

/// Becomes the program `studies` with this command; returns only if there is none, or if it is interrupted before.
pub async fn run(command: &str, args: StudyArgs) -> Result<End> {
    let StudyArgs { flags, cargo, package } = args;
    let options = ProgramOptions { cargo, package, ..ProgramOptions::default() };
    let interrupt = Interrupt::listen()?;
    let ui = Ui::new(false);
    let wanted = Wanted { programs: &["studies"], arguments: &[] };
    let found = interrupt.unless(find(wanted, &options, &ui.progress())).await;
    ui.finish();
    let Some(programs) = found.transpose()? else { return Ok(End::Interrupted) };
    let program = programs.first().context("the program is not found")?;
    let error = Command::new(program).arg(command).args(flags).exec();
    Err(error).with_context(|| format!("start {}", program.display()))
}
