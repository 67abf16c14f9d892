//! Command line: the commands of `e2e` that need the simulator.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lab::watchdog;
use load::ending::{End, block_on};

use crate::calibrate::{self, CalibrateArgs};
use crate::compare::{self, CompareArgs};
use crate::step5::{self, SharegptArgs, Step5Args};
use crate::sweep::{self, SweepArgs};

/// Studies in virtual time. `e2e` starts this program for the commands of the same names.
#[derive(Debug, Parser)]
#[command(after_help = "RUST_LOG=debug logs on standard error what is run, started and sent.")]
#[command(name = "studies", bin_name = "e2e", version = env!("PROGRAM_VERSION"))]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Reproduce the tutorial's published table: its load through 8080 and 8081, in virtual time
    Step5(Box<Step5Args>),
    /// Compare policies under workloads that distinguish them, in virtual time
    Compare(CompareArgs),
    /// Change one setting of step 5 at a time, to find when prefix-aware routing pays
    Sweep(SweepArgs),
    /// Fit the latency model's constants to times measured on a real GPU
    Calibrate(Box<CalibrateArgs>),
    /// Generate the conversations that `step5` asks from
    Sharegpt(SharegptArgs),
    /// Run a program that must not outlive the driver
    #[command(hide = true)]
    Watchdog {
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

/// Parses the command line, runs the command and returns how it ended.
pub fn main() -> ExitCode {
    let Cli { command } = Cli::parse();
    match command {
        Command::Watchdog { command } => watchdog::run(&command),
        command => block_on(dispatch(command)),
    }
}

async fn dispatch(command: Command) -> anyhow::Result<End> {
    match command {
        Command::Step5(args) => step5::run(*args).await,
        Command::Compare(args) => compare::run(&args),
        Command::Sweep(args) => sweep::run(&args),
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Sharegpt(args) => step5::make_data(&args),
        Command::Watchdog { command: _ } => Ok(End::Good),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Cli;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
