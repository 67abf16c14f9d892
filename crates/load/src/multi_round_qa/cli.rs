//! Command line of the tool: the original's flags, and a few of ours.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser};
use indicatif::ProgressBar;

use crate::ending::End;
use crate::interrupt::Interrupt;
use crate::multi_round_qa::records::{self, Colours, Summary, Window};
use crate::multi_round_qa::run::{Listener, Questions, RunResults, Settings, run};
use crate::multi_round_qa::schedule::{Plan, ScheduleRules};
use crate::multi_round_qa::sharegpt;
use crate::output;

/// File in which the original looks for conversations.
const SHAREGPT: &str = "ShareGPT.json";
/// Number of times that OpenAI's SDK repeats a request that failed.
const SDK_RETRIES: u32 = 2;

const AFTER_HELP: &str = "\
The tutorial's command:
  multi-round-qa --num-users 8 --num-rounds 15 --qps 0.1 --shared-system-prompt 100 --sharegpt \\
    --user-history-prompt 2000 --answer-len 100 --model /model/qwen --time 600 --base-url http://127.0.0.1:8081/v1

A session is one user: it sends a question, waits for the answer and for its next turn, and never has two requests
in flight. Sessions that exist at the start begin in the middle of their conversations. As in the original, rounds
drift by up to a tick of 0.1 s, a failed request ends its session, and retries are part of the time to first token;
--strict changes these three.

RUST_LOG=debug logs each request on standard error.

Exit codes: 0 when every request was answered, 1 when some failed, 2 for wrong usage, 130 when interrupted.";

/// Loads an OpenAI endpoint with conversations of many rounds, as vLLM production-stack's multi-round-qa.py does.
#[derive(Debug, Parser)]
#[command(name = "multi-round-qa", version = env!("PROGRAM_VERSION"), after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    args: QaArgs,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct QaArgs {
    /// Number of sessions at the same time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(required_unless_present = "process_summary")]
    num_users: Option<u32>,
    /// Questions that each session asks
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(required_unless_present = "process_summary")]
    num_rounds: Option<u32>,
    /// Requests per second over all sessions
    #[arg(long, value_name = "RATE", value_parser = positive, required_unless_present = "process_summary")]
    qps: Option<f64>,
    /// Words of the system prompt that all users share
    #[arg(long, value_name = "N", required_unless_present = "process_summary")]
    shared_system_prompt: Option<usize>,
    /// Words of each user's own history
    #[arg(long, value_name = "N", required_unless_present = "process_summary")]
    user_history_prompt: Option<usize>,
    /// max_tokens of each answer; with --sharegpt the upper bound
    #[arg(long, value_name = "N", required_unless_present = "process_summary")]
    answer_len: Option<u32>,
    /// Name of the model, sent unchanged
    #[arg(long, value_name = "NAME", required_unless_present = "process_summary")]
    model: Option<String>,
    /// URL of the endpoint, up to and with /v1
    #[arg(long, value_name = "URL", required_unless_present = "process_summary")]
    base_url: Option<String>,
    /// API key, sent as the bearer token
    #[arg(long, value_name = "KEY", default_value = "EMPTY")]
    api_key: String,
    /// Stop sending after this many seconds [default: until Ctrl-C]
    #[arg(long, value_name = "SECONDS")]
    time: Option<u64>,
    /// CSV file with one row per answer, written as answers come
    #[arg(long, value_name = "FILE", default_value = "summary.csv")]
    output: PathBuf,
    /// Number to add to all user ids, which begin at 1
    #[arg(long, value_name = "ID", default_value_t = 0)]
    init_user_id: u32,
    /// No effect, as in the original: the header x-user-id is always sent
    #[arg(long)]
    request_with_user_id: bool,
    /// Seconds between two summaries
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    log_interval: u64,
    /// Ask questions of real conversations, with answers as long as theirs: from ShareGPT.json or from --sharegpt-file
    #[arg(long)]
    sharegpt: bool,
    /// File of conversations for --sharegpt
    #[arg(long, value_name = "FILE", default_value = SHAREGPT)]
    sharegpt_file: PathBuf,
    /// Print the summary of this CSV and exit
    #[arg(long, value_name = "FILE")]
    process_summary: Option<PathBuf>,
    /// Keep to the schedule: no drift, no retries, and a session goes on after a failure
    #[arg(long)]
    strict: bool,
    /// Print the figures of the last summary as JSON
    #[arg(long)]
    json: bool,
    /// Write more to standard error
    #[arg(long = "verbose")]
    talk: bool,
}

/// Parses the command line of the separate program and runs it; `main` returns the result.
pub fn main() -> ExitCode {
    let Cli { args } = Cli::parse();
    crate::ending::block_on(command(args))
}

/// Runs the tool.
pub async fn command(args: QaArgs) -> Result<End> {
    if let Some(path) = &args.process_summary {
        output::print(&processed(path)?.text(colours()));
        return Ok(End::Good);
    }
    let interrupt = Interrupt::listen()?;
    let settings = args.settings()?;
    let console = Console::new(args.talk);
    let measured = run(&settings, &console, interrupt.requested()).await?;
    let Some(RunResults { summary, failures, .. }) = measured else { return Ok(End::Interrupted) };
    console.bar.finish_and_clear();
    output::print(&match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&summary.json())?),
        false => summary.text(colours()),
    });
    Ok(match (failures.is_empty(), interrupt.is_requested() && settings.duration.is_some()) {
        (_, true) => End::Interrupted,
        (true, false) => End::Good,
        (false, false) => End::Failed,
    })
}

impl QaArgs {
    fn settings(&self) -> Result<Settings> {
        let missing = |flag: &str| format!("{flag} is missing");
        let n_rounds = self.num_rounds.with_context(|| missing("--num-rounds"))?;
        let plan = Plan {
            n_users: self.num_users.with_context(|| missing("--num-users"))?,
            n_rounds,
            qps: self.qps.with_context(|| missing("--qps"))?,
            init_user_id: self.init_user_id,
            rules: if self.strict { ScheduleRules::Strict } else { ScheduleRules::Original },
        };
        let base_url = self.base_url.clone().with_context(|| missing("--base-url"))?;
        let is_http = base_url.starts_with("http://") || base_url.starts_with("https://");
        ensure!(is_http, "--base-url {base_url}: expected http://… or https://…, up to and with /v1");
        Ok(Settings {
            plan,
            words: (
                self.shared_system_prompt.with_context(|| missing("--shared-system-prompt"))?,
                self.user_history_prompt.with_context(|| missing("--user-history-prompt"))?,
            ),
            answer_len: self.answer_len.with_context(|| missing("--answer-len"))?,
            model: self.model.clone().with_context(|| missing("--model"))?,
            base_url,
            api_key: self.api_key.clone(),
            duration: self.time.map(Duration::from_secs),
            questions: if self.sharegpt {
                conversations(&self.sharegpt_file, n_rounds)?
            } else {
                Questions::Numbered
            },
            output: Some(self.output.clone()),
            log_interval: Duration::from_secs(self.log_interval),
            n_retries: if self.strict { 0 } else { SDK_RETRIES },
            repeatable: None,
            time_scale: 1.0,
        })
    }
}

/// Reads the conversations of a ShareGPT file that are long enough.
///
/// # Errors
/// When it cannot be read or holds none.
pub fn conversations(path: &Path, n_rounds: u32) -> Result<Questions> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("read {} (--sharegpt-file names another)", path.display()))?;
    let entries = sharegpt::parse(&text, usize::try_from(n_rounds)?)
        .with_context(|| format!("{} is not a ShareGPT file", path.display()))?;
    ensure!(
        !entries.is_empty(),
        "{} has no conversation of more than {} turns, which --num-rounds {n_rounds} needs",
        path.display(),
        2 * n_rounds
    );
    Ok(Questions::ShareGpt(Arc::from(entries)))
}

/// Sums a CSV up as the original does: over all rows, with a configured rate of 0.
fn processed(path: &Path) -> Result<Summary> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let records = records::parse(&text).with_context(|| format!("read {}", path.display()))?;
    let start = records.iter().map(|record| record.launch_time).fold(f64::INFINITY, f64::min);
    let end = records.iter().map(|record| record.finish_time).fold(0.0, f64::max);
    ensure!(start <= end, "{} has no rows", path.display());
    let window = Window { qps: 0.0, n_pending: 0, n_failed: 0, start, end, rules: ScheduleRules::Original };
    Ok(Summary::of(&records, window))
}

fn colours() -> Colours {
    if std::io::stdout().is_terminal() { Colours::Ansi } else { Colours::Plain }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate.is_finite() => Ok(rate),
        Ok(_) | Err(_) => Err("expected a number above 0".to_owned()),
    }
}

/// Terminal output: progress on the last line, summaries and failures above it.
struct Console {
    bar: ProgressBar,
    talks: bool,
}

impl Console {
    fn new(talks: bool) -> Self {
        Self { bar: output::spinner(), talks }
    }
}

impl Listener for Console {
    fn summary(&self, summary: &Summary) {
        output::talk(summary.text(Colours::Plain).trim_end());
    }

    fn progress(&self, elapsed: Duration, (sent, answered, failed): (usize, usize, usize)) {
        let line = format!("{} s: {sent} sent, {answered} answered, {failed} failed", elapsed.as_secs());
        self.bar.set_message(line.clone());
        self.bar.tick();
        if self.talks && self.bar.is_hidden() {
            output::talk(&line);
        }
    }

    fn failure(&self, user_id: u32, error: &str) {
        output::talk(&format!("user {user_id}, {error}"));
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::{Cli, processed};

    const TUTORIAL: &str = "multi-round-qa --num-users 8 --num-rounds 15 --qps 0.1 --shared-system-prompt 100 \
        --user-history-prompt 2000 --answer-len 100 --model /model/qwen --time 600 --base-url http://h/v1";

    #[test]
    fn the_tutorials_command_is_understood() {
        Cli::command().debug_assert();
        let settings = Cli::try_parse_from(TUTORIAL.split_whitespace()).unwrap().args.settings().unwrap();
        assert_eq!((settings.plan.n_users, settings.words, settings.n_retries), (8, (100, 2000), 2));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let error = |text: &str| Cli::try_parse_from(text.split_whitespace()).unwrap_err().to_string();
        assert!(error("multi-round-qa --num-users 8").contains("--qps"));
        assert!(error(&TUTORIAL.replace("0.1", "0")).contains("above 0"));
        let parsed = Cli::try_parse_from(TUTORIAL.replace("http://h/v1", "h/v1").split_whitespace()).unwrap();
        assert!(parsed.args.settings().unwrap_err().to_string().contains("http://"));
        let summary = Cli::try_parse_from(["multi-round-qa", "--process-summary", "x.csv"]).unwrap();
        let path = summary.args.process_summary.unwrap();
        assert!(processed(&path).unwrap_err().to_string().contains("x.csv"));
    }
}
