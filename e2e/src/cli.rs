//! Command line: reads flags and returns the exit code. Parsing has no effect outside.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use lab::watchdog;
use load::ending::{End, block_on};
use load::multi_round_qa::cli::{self as qa, QaArgs};

use crate::commands::{self, DownArgs, LogsArgs, StatusArgs, UpArgs};
use crate::explain::{self, ExplainArgs};
#[cfg(feature = "kubernetes")]
use crate::kubernetes;
#[cfg(not(feature = "kubernetes"))]
use crate::on;
use crate::on::{ImagesArgs, TutorialArgs};
use crate::overhead::{self, OverheadArgs};
use crate::run::{self, RunArgs};
use crate::soak::{self, SoakArgs};
use crate::study::{self, StudyArgs};

const EXAMPLES: &str = "\
Examples:
  e2e                          run the tutorial, check its claims, write a report to ./report
  e2e --time-scale 10          the same with GPUs ten times as fast as real ones
  e2e --only tutorial          run one group of checks (repeat the flag for more)
  e2e up                       start everything, keep it running, print the tutorial's curl commands
  e2e logs epp | grep 'Do prefix'
  e2e up --manifests k8s/      the same with your own manifests
  e2e up --manifests k8s/ --picker theirs=./my-epp
  e2e explain-manifests k8s/   tell what becomes of each object, without starting anything
  e2e overhead                 measure the time that the picker adds: 8081 against 8080
  e2e step5                    reproduce the tutorial's published table in seconds
  e2e compare                  compare policies under loads that distinguish them
  e2e sweep replicas           find when prefix-aware routing pays
  e2e calibrate steps.csv      fit the latency model's constants to times of a real GPU
  e2e soak --seconds 180       check that no request is lost while pods die and pickers are replaced
  e2e --on kind                the checks on a Kubernetes cluster that is made for them, with stock Envoy Gateway
  e2e up --on kind             a Kubernetes cluster in place of processes: the tutorial's kubectl and curl commands work
  e2e tutorial --on kind       run the tutorial's own commands there, and check what each prints

Environment:
  RUST_LOG     log on standard error what is started, sent and inflicted: `debug`, or levels by crate as in
               `warn,lab=debug,load=trace` (lab, load, studies) [default: nothing]

Exit codes:
  0    every check passed
  1    a check failed (the report shows its expected and its seen value)
  2    wrong usage, or the programs could not be started
  130  interrupted; everything that was started has ended";

/// Starts the prefix-cache-aware routing tutorial on this machine (real Envoy, the endpoint picker, mock vLLM pods),
/// runs its steps, checks its claims, ends everything and writes a report.
#[derive(Debug, Parser)]
#[command(name = "e2e", version = env!("PROGRAM_VERSION"), after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the tutorial and check its claims (the default command)
    Run(RunArgs),
    /// Start everything, keep it running, and print the tutorial's commands
    Up(UpArgs),
    /// End what `up` started
    Down(DownArgs),
    /// Show what `up` started: gateways, picker, pods
    Status(StatusArgs),
    /// Print the logs of what `up` started
    Logs(LogsArgs),
    /// Tell what each object of some manifests comes to, without starting anything; fails if one is refused
    ExplainManifests(ExplainArgs),
    /// Measure the time that the picker adds: 8081 against 8080 in turns, with bodies of 2 KB
    Overhead(OverheadArgs),
    /// Reproduce the tutorial's published table: its load through 8080 and 8081, in virtual time
    #[command(disable_help_flag = true)]
    Step5(StudyArgs),
    /// Compare policies under workloads that distinguish them, in virtual time
    #[command(disable_help_flag = true)]
    Compare(StudyArgs),
    /// Change one setting of step 5 at a time, to find when prefix-aware routing pays
    #[command(disable_help_flag = true)]
    Sweep(StudyArgs),
    /// Fit the latency model's constants to times measured on a real GPU
    #[command(disable_help_flag = true)]
    Calibrate(StudyArgs),
    /// Generate the conversations that `step5` asks from
    #[command(disable_help_flag = true)]
    Sharegpt(StudyArgs),
    /// Load an endpoint like the tutorial's step 5, with the flags of multi-round-qa.py
    MultiRoundQa(Box<QaArgs>),
    /// Send requests while pods die and pickers are replaced: none may be lost or cut, and memory must stay flat
    Soak(SoakArgs),
    /// Follow the tutorial on Kubernetes: its commands as printed, with what each must print
    Tutorial(TutorialArgs),
    /// Make container images of the programs, with Docker
    Images(ImagesArgs),
    /// Run a program that must not outlive the driver
    #[command(hide = true)]
    Watchdog {
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Own the cluster of `up`
    #[command(hide = true)]
    Supervise { state_dir: PathBuf },
}

/// Parses the command line, runs the command and returns how it ended.
pub fn main() -> ExitCode {
    let Cli { command, run } = Cli::parse();
    let command = command.unwrap_or(Command::Run(run));
    if let Command::Watchdog { command } = command {
        return watchdog::run(&command);
    }
    block_on(dispatch(command))
}

async fn dispatch(command: Command) -> anyhow::Result<End> {
    if command.is_for_kubernetes() {
        return on_kubernetes(command).await;
    }
    match command {
        Command::Run(args) => run::run(args).await,
        Command::Up(args) => commands::up(args).await,
        Command::Down(args) => commands::down(&args.state).await,
        Command::Status(args) => commands::status(&args),
        Command::Logs(args) => commands::logs(&args).await,
        Command::ExplainManifests(args) => explain::run(&args),
        Command::Overhead(args) => overhead::run(args).await,
        Command::Step5(args) => study::run("step5", args).await,
        Command::Compare(args) => study::run("compare", args).await,
        Command::Sweep(args) => study::run("sweep", args).await,
        Command::Calibrate(args) => study::run("calibrate", args).await,
        Command::Sharegpt(args) => study::run("sharegpt", args).await,
        Command::MultiRoundQa(args) => qa::command(*args).await,
        Command::Soak(args) => soak::run(args).await,
        Command::Supervise { state_dir } => commands::supervise(&state_dir).await,
        Command::Tutorial(_) | Command::Images(_) | Command::Watchdog { command: _ } => Ok(End::Good),
    }
}

#[cfg(not(feature = "kubernetes"))]
async fn on_kubernetes(_: Command) -> anyhow::Result<End> {
    on::run().await
}

#[cfg(feature = "kubernetes")]
async fn on_kubernetes(command: Command) -> anyhow::Result<End> {
    match command {
        Command::Run(args) => kubernetes::run(args).await,
        Command::Soak(args) => kubernetes::soak(args).await,
        Command::Overhead(args) => kubernetes::overhead(args).await,
        Command::Up(args) => kubernetes::up(args).await,
        Command::Down(args) => kubernetes::down(args).await,
        Command::Status(args) => kubernetes::status(args).await,
        Command::Logs(args) => kubernetes::logs(args).await,
        Command::Tutorial(args) => kubernetes::tutorial(args).await,
        Command::Images(args) => kubernetes::images(args).await,
        _ => anyhow::bail!("this command does not run on Kubernetes"),
    }
}

// === impl Command ===

impl Command {
    /// True if the command needs a client for Kubernetes.
    fn is_for_kubernetes(&self) -> bool {
        match self {
            Self::Up(args) => args.on.on.is_some(),
            Self::Down(args) => args.on.on.is_some(),
            Self::Status(args) => args.on.on.is_some(),
            Self::Logs(args) => args.on.on.is_some(),
            Self::Run(args) => args.on.on.is_some(),
            Self::Soak(args) => args.on.on.is_some(),
            Self::Overhead(args) => args.on.on.is_some(),
            Self::Tutorial(_) | Self::Images(_) => true,
            Self::ExplainManifests(_)
            | Self::Step5(_)
            | Self::Compare(_)
            | Self::Sweep(_)
            | Self::Calibrate(_)
            | Self::Sharegpt(_)
            | Self::MultiRoundQa(_)
            | Self::Watchdog { .. }
            | Self::Supervise { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};
    use lab::check::Group;

    use super::{Cli, Command};

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_subcommand_means_run_and_takes_its_flags() {
        let cli = Cli::try_parse_from(["e2e", "--only", "faults", "--time-scale", "10", "--json"]).unwrap();
        assert!(cli.command.is_none() && cli.run.json);
        assert_eq!((cli.run.only, cli.run.cluster.time_scale), (vec![Group::Faults], Some(10.0)));
    }

    #[test]
    fn usage_errors_are_refused() {
        for args in [
            &["e2e", "--time-scale", "0"][..],
            &["e2e", "--only", "nothing"],
            &["e2e", "--replicas", "0"],
            &["e2e", "x"],
        ] {
            assert!(Cli::try_parse_from(args).is_err(), "{args:?}");
        }
    }

    #[test]
    fn help_teaches_examples_and_exit_codes() {
        let help = Cli::command().render_long_help().to_string();
        for part in ["e2e up", "Exit codes", "130", "RUST_LOG", "--time-scale"] {
            assert!(help.contains(part), "{part}");
        }
        assert!(!help.contains("watchdog"), "internals stay hidden");
    }

    /// The program that knows these flags refuses wrong ones, and answers `--help`.
    #[test]
    fn the_flags_of_studies_are_passed_on() {
        for flags in [&["--seeds", "3", "--virtual"][..], &["--help"], &["-h"], &["--no-such-flag"]] {
            let cli = Cli::try_parse_from(["e2e", "step5"].iter().chain(flags)).unwrap();
            let Some(Command::Step5(args)) = cli.command else { panic!("{flags:?}") };
            assert_eq!(args.flags, flags);
        }
    }

    #[test]
    fn watchdog_takes_a_foreign_command_line() {
        let cli = Cli::try_parse_from(["e2e", "watchdog", "--", "envoy", "--mode", "validate"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Watchdog { command }) if command.len() == 3));
    }
}
