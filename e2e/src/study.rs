//! `e2e step5`, `compare`, `sweep`, `calibrate` and `sharegpt`: commands of the program `studies`, which takes this one's
//! place. It links the simulator, so it is built when it is first asked for, and with a client for Kubernetes when `--on`
//! is.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::Args;
use lab::cluster::programs::{ProgramOptions, WITH_KUBERNETES, Wanted, find};
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

/// The program for a command with these flags.
fn wanted(flags: &[OsString]) -> Wanted<'static> {
    let names_cluster =
        |flag: &OsString| flag.to_str().is_some_and(|flag| flag == "--on" || flag.starts_with("--on="));
    match flags.iter().any(names_cluster) {
        false => Wanted { programs: &["studies"], arguments: &[] },
        true => Wanted { programs: &["studies-kubernetes"], arguments: WITH_KUBERNETES },
    }
}

/// Becomes the program `studies` with this command; returns only if there is none, or if it is interrupted before.
pub async fn run(command: &str, args: StudyArgs) -> Result<End> {
    let StudyArgs { flags, cargo, package } = args;
    let options = ProgramOptions { cargo, package, ..ProgramOptions::default() };
    let interrupt = Interrupt::listen()?;
    let ui = Ui::new(false);
    let found = interrupt.unless(find(wanted(&flags), &options, &ui.progress())).await;
    ui.finish();
    let Some(programs) = found.transpose()? else { return Ok(End::Interrupted) };
    let program = programs.first().context("the program is not found")?;
    let error = Command::new(program).arg(command).args(flags).exec();
    Err(error).with_context(|| format!("start {}", program.display()))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::wanted;

    #[test]
    fn a_client_for_kubernetes_is_linked_if_it_is_asked_for() {
        let program = |flags: &[&str]| {
            let flags: Vec<OsString> = flags.iter().map(OsString::from).collect();
            wanted(&flags).programs
        };
        for flags in [&["--wall", "--on", "kind"][..], &["--on=cluster", "--wall"]] {
            assert_eq!(program(flags), ["studies-kubernetes"]);
        }
        for flags in [&["--wall"][..], &[], &["--only"]] {
            assert_eq!(program(flags), ["studies"]);
        }
    }
}
