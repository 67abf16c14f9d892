//! Command line: reads flags and returns the exit code. Parsing has no effect outside.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::calibrate::CalibrateArgs;
use crate::check::Group;
use crate::cluster::programs::ProgramOptions;
use crate::multi_round_qa::cli::{self as qa, QaArgs};
use crate::step5::side::PolicyName;
use crate::{calibrate, commands, compare, guard, overhead, run, soak, step5, sweep};

const EXAMPLES: &str = "\
Examples:
  e2e                          run the tutorial, check its claims, write a report to ./report
  e2e --time-scale 10          the same with GPUs ten times as fast as real ones
  e2e --only tutorial          run one group of checks (repeat the flag for more)
  e2e up                       start everything, keep it running, print the tutorial's curl commands
  e2e logs epp | grep 'Do prefix'
  e2e overhead                 measure the time that the picker adds: 8081 against 8080
  e2e step5                    reproduce the tutorial's published table in seconds
  e2e compare                  compare policies under loads that distinguish them
  e2e sweep replicas           find when prefix-aware routing pays
  e2e calibrate steps.csv      fit the latency model's constants to times of a real GPU
  e2e soak --seconds 180       check that no request is lost while pods die and pickers are replaced

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
    Down(StateArgs),
    /// Show what `up` started: gateways, picker, pods
    Status(StatusArgs),
    /// Print the logs of what `up` started
    Logs(LogsArgs),
    /// Measure the time that the picker adds: 8081 against 8080 in turns, with bodies of 2 KB
    Overhead(OverheadArgs),
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
    /// Load an endpoint like the tutorial's step 5, with the flags of multi-round-qa.py
    MultiRoundQa(Box<QaArgs>),
    /// Send requests while pods die and pickers are replaced: none may be lost, and memory must stay flat
    Soak(SoakArgs),
    /// Run a program that must not outlive the driver
    #[command(hide = true)]
    Guard {
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Own the cluster of `up`
    #[command(hide = true)]
    Supervise { state_dir: PathBuf },
}

/// The cluster to start.
#[derive(Debug, Clone, Args)]
pub struct ClusterArgs {
    /// Directory of the Kubernetes objects to apply [default: manifests/doc of this checkout]
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Pods of every Deployment, in place of `spec.replicas`
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub replicas: Option<u32>,
    /// Picker processes, which report to each other where they send requests [default: 1; for `soak` 2]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8))]
    pub pickers: Option<u32>,
    /// Virtual seconds per second of wall time; 10 makes every GPU ten times faster [default: 1]
    #[arg(long, value_name = "F", value_parser = time_scale)]
    pub time_scale: Option<f64>,
    /// Write more to standard error
    #[arg(long, short)]
    pub verbose: bool,
    #[command(flatten, next_help_heading = "Programs")]
    pub programs: ProgramOptions,
}

#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Run this group only; repeat for several
    #[arg(long, value_name = "GROUP")]
    pub only: Vec<Group>,
    /// Directory for report.html, report.json, junit.xml and the logs
    #[arg(long, value_name = "DIR", default_value = "report")]
    pub report_dir: PathBuf,
    /// Keep everything running after the last check, until Ctrl-C
    #[arg(long)]
    pub keep: bool,
    /// Print the JSON report on standard output in place of the summary
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    #[command(flatten)]
    pub state: StateArgs,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// The place in which `up` keeps its state.
#[derive(Debug, Clone, Args)]
pub struct StateArgs {
    /// State directory of `up` [default: warmpath in $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, env = "WARMPATH_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    #[arg(long, env = "XDG_STATE_HOME", hide = true)]
    pub xdg_state_home: Option<PathBuf>,
    #[arg(long, env = "HOME", hide = true)]
    pub user_home: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// Logs whose names contain this: `epp`, `envoy`, `access`, a pod's name [default: all logs]
    #[arg(value_name = "NAME", default_value = "")]
    pub part: String,
    /// Print what is added, too, until Ctrl-C
    #[arg(long, short)]
    pub follow: bool,
    #[command(flatten)]
    pub state: StateArgs,
}

#[derive(Debug, Clone, Args)]
pub struct OverheadArgs {
    /// Requests on each path
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(10..))]
    pub requests: u32,
    /// Bytes of each request body
    #[arg(long, value_name = "BYTES", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(256..=1_000_000))]
    pub body_bytes: u32,
    /// Requests per second on each path [default: as fast as they are answered]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: Option<u32>,
    /// Fail if the picker adds more than this at the median
    #[arg(long, value_name = "MS")]
    pub max_added_p50_ms: Option<f64>,
    /// Fail if the picker adds more than this at the 99th percentile
    #[arg(long, value_name = "MS")]
    pub max_added_p99_ms: Option<f64>,
    /// Directory for generated files and logs
    #[arg(long, value_name = "DIR", default_value = "report")]
    pub report_dir: PathBuf,
    /// Print JSON in place of the table
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

#[derive(Debug, Clone, Args)]
pub struct Step5Args {
    /// Runs of each side, each with its own seed
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub seeds: u32,
    /// The first seed
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub first_seed: u64,
    #[command(flatten)]
    pub through: ThroughArgs,
    /// Policy of 8081; all but `prefix` are controls that must fail, in virtual time only
    #[arg(long, value_enum, value_name = "POLICY", default_value_t = PolicyName::Prefix)]
    pub policy: PolicyName,
    /// GPU of the servers, from `mock-vllm latency --list` [default: the tutorial's A10]
    #[arg(long, value_name = "NAME")]
    pub gpu: Option<String>,
    /// Model of the servers, from the same list, with its size and KV cache; prompts remain Qwen2.5's tokens [default:
    /// qwen2.5-7b]
    #[arg(long, value_name = "NAME")]
    pub model_preset: Option<String>,
    /// GPU and model in one name, like h100/qwen3-8b; a10-doc is the tutorial's server
    #[arg(long, value_name = "NAME", conflicts_with_all = ["gpu", "model_preset"])]
    pub latency_preset: Option<String>,
    /// Switch the pods' prefix caches off: a control that must fail, in virtual time only
    #[arg(long)]
    pub no_prefix_caching: bool,
    /// File of conversations to ask from [default: the built-in ones]
    #[arg(long, value_name = "FILE")]
    pub sharegpt_file: Option<PathBuf>,
    /// Directory for CSVs, and for generated files and logs of the real run
    #[arg(long, value_name = "DIR", default_value = "report")]
    pub report_dir: PathBuf,
    /// Print JSON in place of the summaries and the table
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// The ways that step 5's load takes. By default it runs in virtual time, and its first 200 s also through the real
/// Envoy.
#[derive(Debug, Clone, Copy, Args)]
pub struct ThroughArgs {
    /// Send all 600 s once through the real Envoy, picker and mock servers, in place of runs in virtual time. This
    /// takes 20 minutes, or 2 with --time-scale 10; above that, the machine's own delays count too much
    #[arg(long, conflicts_with_all = ["seeds", "policy", "no_prefix_caching"])]
    pub wall: bool,
    /// Run in virtual time only, and start no programs
    #[arg(long = "virtual", conflicts_with = "wall")]
    pub virtual_only: bool,
}

const COMPARE_HELP: &str = "\
Each policy routes each load over four A10s with 96,000 tokens of KV cache each, with the code of the picker and the
mock servers. Two of the loads have the shape of public traces; --trace reads a trace itself.

Examples:
  e2e compare --report-dir report         every workload; report/compare.html has the charts
  e2e compare --only 'hot prefix' --loads 0.5,1,1.5,2,3 --seeds 10
  e2e compare --trace conversation_trace.jsonl --speed 0.1

Exit codes:
  0    the default policy is within 10 % of the best router everywhere, and policies rank as published elsewhere
  1    one of the two does not hold
  2    wrong usage, or a file that cannot be read";

#[derive(Debug, Clone, Args)]
#[command(after_help = COMPARE_HELP)]
pub struct CompareArgs {
    /// Runs of each policy under each workload
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub seeds: u32,
    /// Run only workloads whose names contain this word; repeat for several
    #[arg(long, value_name = "WORD")]
    pub only: Vec<String>,
    /// Run this recorded load instead, in Mooncake's JSON lines or Azure's CSV; repeat for several
    #[arg(long = "trace", value_name = "FILE", conflicts_with = "only")]
    pub traces: Vec<PathBuf>,
    /// Play traces this many times faster
    #[arg(long, value_name = "F", default_value_t = 1.0, value_parser = time_scale)]
    pub speed: f64,
    /// Multiples of each load's own rate to run
    #[arg(long, value_name = "F,F", value_delimiter = ',', default_value = "0.5,1,1.5", value_parser = time_scale)]
    pub loads: Vec<f64>,
    /// Directory for compare.html, compare.json and compare.md
    #[arg(long, value_name = "DIR")]
    pub report_dir: Option<PathBuf>,
    /// Print JSON in place of the tables
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct SweepArgs {
    /// Setting to change
    #[arg(value_enum)]
    pub knob: sweep::Knob,
    /// Values of the setting [default: values around the tutorial's]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub values: Vec<u32>,
    /// Runs of each side at each value
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub seeds: u32,
    /// Print JSON in place of the table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct SharegptArgs {
    /// File to write
    #[arg(long, value_name = "FILE", default_value = "ShareGPT.json")]
    pub output: PathBuf,
    /// Seed of the texts; token totals are the same for every seed
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
}

#[derive(Debug, Clone, Args)]
pub struct SoakArgs {
    /// Seconds for which requests are sent
    #[arg(long, value_name = "N", default_value_t = 1800, value_parser = clap::value_parser!(u32).range(10..))]
    pub seconds: u32,
    /// Requests per second
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=2000))]
    pub rate: u32,
    /// Seconds between two kills of a pod
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub kill_every: u32,
    /// Number of times that a picker is replaced, evenly over the run
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub replacements: u32,
    /// Seed that chooses the texts and the pods that die
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
    /// Directory for generated files and logs
    #[arg(long, value_name = "DIR", default_value = "report")]
    pub report_dir: PathBuf,
    /// Print JSON in place of the table
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub cluster: ClusterArgs,
}

/// The end of a command that had no error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Good,
    Failed,
    Interrupted,
}

impl ClusterArgs {
    pub fn time_scale(&self) -> f64 {
        self.time_scale.unwrap_or(1.0)
    }
}

impl From<End> for ExitCode {
    fn from(end: End) -> Self {
        match end {
            End::Good => Self::SUCCESS,
            End::Failed => Self::from(1),
            End::Interrupted => Self::from(130),
        }
    }
}

/// Exit code for wrong usage and for programs that cannot be started; clap uses the same.
const EXIT_ENVIRONMENT: u8 = 2;

/// Parses the command line, runs the command and returns how it ended.
pub fn main() -> ExitCode {
    let Cli { command, run } = Cli::parse();
    let command = command.unwrap_or(Command::Run(run));
    if let Command::Guard { command } = command {
        return guard::run(&command);
    }
    block_on(dispatch(command))
}

/// Runs a command to its end and returns its exit code.
pub fn block_on(command: impl Future<Output = anyhow::Result<End>>) -> ExitCode {
    let end = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(command));
    match end {
        Ok(end) => end.into(),
        Err(error) => {
            crate::ui::complain(&format!("{error:#}"));
            ExitCode::from(EXIT_ENVIRONMENT)
        }
    }
}

async fn dispatch(command: Command) -> anyhow::Result<End> {
    match command {
        Command::Run(args) => run::run(args).await,
        Command::Up(args) => commands::up(args).await,
        Command::Down(state) => commands::down(&state).await,
        Command::Status(args) => commands::status(&args),
        Command::Logs(args) => commands::logs(&args).await,
        Command::Overhead(args) => overhead::run(args).await,
        Command::Step5(args) => step5::run(*args).await,
        Command::Compare(args) => compare::run(&args),
        Command::Sweep(args) => sweep::run(&args),
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Sharegpt(args) => step5::make_data(&args),
        Command::MultiRoundQa(args) => qa::command(*args).await,
        Command::Soak(args) => soak::run(args).await,
        Command::Supervise { state_dir } => commands::supervise(&state_dir).await,
        Command::Guard { command: _ } => Ok(End::Good),
    }
}

fn time_scale(text: &str) -> Result<f64, String> {
    let scale: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    match scale > 0.0 && scale <= 1000.0 {
        true => Ok(scale),
        false => Err("must be above 0 and at most 1000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::{Cli, Command};
    use crate::check::Group;

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
        for part in ["e2e up", "Exit codes", "130", "--time-scale"] {
            assert!(help.contains(part), "{part}");
        }
        assert!(!help.contains("guard") && !help.contains("--xdg"), "internals stay hidden");
    }

    #[test]
    fn guard_takes_a_foreign_command_line() {
        let cli = Cli::try_parse_from(["e2e", "guard", "--", "envoy", "--mode", "validate"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Guard { command }) if command.len() == 3));
    }
}
