//! The command line: vLLM's own flags and the mock's, and what the program does with them.

mod config_file;
mod latency;
mod run;
mod flags;
mod log;
mod serve;

use crate::check_trace;
use crate::faults::guide;
use crate::oracle::{self, OracleArgs};
use crate::server::PodSettings;
use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use latency::LatencyCommand;
use serve::ServeArgs;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

const EXIT_FAILURE: u8 = 1;
const EXIT_USAGE: u8 = 2;

/// vLLM without the GPU: same tokens, blocks, scheduler steps, metrics and wire bytes; made-up text, modelled time.
#[derive(Debug, Parser)]
#[command(name = "mock-vllm", version = env!("PROGRAM_VERSION"), after_help = EXIT_CODES, args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a model as `vllm serve` does, with vLLM's own command line
    #[command(infer_long_args = true)]
    Serve(Box<ServeArgs>),
    /// Replay recorded vLLM workloads through the engine and compare every field of every step
    CheckTrace {
        /// Trace files, JSON or gzip
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Report for each request what every pod had cached, and what the router's choice cost
    Oracle(OracleArgs),
    /// Print how long steps take with a GPU, a preset or a calibration file; --list shows what there is
    Latency(LatencyCommand),
    /// List the faults that can be injected: with --fault, with a header of a request, or live
    Faults,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done; for `serve`: stopped by SIGTERM or SIGINT
  1  failed: port taken, file not readable; for `check-trace`: a trace differs; for `oracle`: see its help
  2  wrong usage; for `check-trace`: a file is not a trace; for `oracle`: a file is not a cache log

Try:
  mock-vllm serve Qwen/Qwen2.5-7B-Instruct --served-model-name /model/qwen --port 8000
  curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{\"model\":\"/model/qwen\",\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"max_tokens\":20}'
  curl localhost:8000/metrics";

/// Runs the program. stdout is data; stderr is for messages.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let (args, ignored) = match normalize(args) {
        Ok(normalized) => normalized,
        Err(error) => {
            let _stderr_gone =
                writeln!(std::io::stderr(), "error: {error}\n\nFor all flags, try 'mock-vllm serve --help'.");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            let _output_gone = error.print();
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    let result = match cli.command {
        Command::Serve(args) => run::serve(*args, &ignored),
        Command::CheckTrace { files } => check_trace::check_files(&files, &mut std::io::stdout().lock())
            .context("write the results")
            .map(ExitCode::from),
        Command::Oracle(args) => oracle::run(&args, &mut std::io::stdout().lock(), &mut std::io::stderr())
            .context("write the report")
            .map(ExitCode::from),
        Command::Latency(args) => latency::run(&args).map_err(anyhow::Error::new).and_then(print),
        Command::Faults => print(guide::text()),
    };
    result.unwrap_or_else(|error| {
        log::say(format!("error: {error:#}\n"));
        ExitCode::from(if error.is::<UsageError>() { EXIT_USAGE } else { EXIT_FAILURE })
    })
}

fn print(text: impl AsRef<[u8]>) -> anyhow::Result<ExitCode> {
    std::io::stdout().write_all(text.as_ref()).context("write the list")?;
    Ok(ExitCode::SUCCESS)
}

/// Parses a command line of `serve` into the pod that it describes. `args` begin with the program's name.
///
/// # Errors
/// Returns the message that the program would print.
pub fn pod_settings(args: impl Iterator<Item = OsString>) -> Result<PodSettings, String> {
    let (args, _ignored) = normalize(args)?;
    let cli = Cli::try_parse_from(args).map_err(|error| error.to_string())?;
    match cli.command {
        Command::Serve(args) => args.into_settings(),
        Command::CheckTrace { .. } | Command::Oracle(_) | Command::Latency(_) | Command::Faults => {
            Err("only `serve` serves".to_owned())
        }
    }
}

/// Brings the command line into the parser's own form, with the flags of a `--config` file put in.
fn normalize(args: impl Iterator<Item = OsString>) -> Result<(Vec<OsString>, Vec<flags::Ignored>), String> {
    let args = config_file::expand(args.collect()).map_err(|error| error.to_string())?;
    flags::normalize(args, &Cli::command()).map_err(|error| error.to_string())
}

/// Error about flags that parse one by one but contradict each other.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct UsageError(String);
