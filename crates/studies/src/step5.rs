//! `e2e step5`: runs the tutorial's load through standard HTTP routing and through prefix-aware routing, in virtual
//! time and through the real Envoy, and compares it with the vendor's published table.

pub mod agreement;
pub mod side;
pub mod wall;
pub mod judge;
pub mod data;
pub mod workload;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use lab::flags::ClusterArgs;
use lab::on::{InstallArgs, OnArgs};
use lab::session::{Session, Stage};
use load::ending::End;
use load::multi_round_qa::schedule::{Plan, ScheduleRules};
use load::multi_round_qa::sharegpt::{self, Entry};
use load::output;
use serde_json::{Value, json};
use sim::model::ChatModel;
use sim::simulation::SCRAPE_INTERVAL;

use self::agreement::{Agreed, Pair, until_agreed};
use self::judge::{Figures, Setup, TableLine};
use self::side::{Caching, PUBLISHED_LATENCY, PUBLISHED_PODS, PolicyName, Side};
use self::workload::Command;

/// The tutorial's command.
pub const COMMAND: Command = Command {
    plan: Plan { n_users: 8, n_rounds: 15, qps: 0.1, init_user_id: 0, rules: ScheduleRules::Original },
    words: (100, 2000),
    answer_len: 100,
    duration: Duration::from_secs(600),
    settle: SETTLE,
};
/// Time until the picker has read that every pod is idle again. Without it, the scrapes during the warm-up would decide
/// where the first request goes.
const SETTLE: Duration = Duration::from_millis(300);
/// Part of the load that goes through the real Envoy by default. It takes less than a minute, and half of its requests
/// are second rounds.
pub const SHORT: Duration = Duration::from_secs(200);
/// Runs through the real Envoy before its disagreement with the simulated one counts. A machine that is busy with other
/// things for a moment sends one run astray; a wrong router or engine sends all of them.
const ATTEMPTS: usize = 3;
/// Largest time scale; above it, the machine's own time for a request counts as much as a warm step.
const MAX_TIME_SCALE: f64 = 10.0;
const DATA: &str = include_str!("../data/sharegpt-like.json");

/// The ways to run the load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Through {
    VirtualTime,
    /// All of it in virtual time, and its beginning also through the real Envoy.
    Both,
    Envoy,
}

/// A run through the real Envoy, and the same run in virtual time; 8080 comes first.
struct Real {
    simulated: [Figures; 2],
    real: [Figures; 2],
    agreement: Vec<TableLine>,
    /// Lines that each earlier attempt failed.
    earlier: Vec<Vec<&'static str>>,
    duration: Duration,
    time_scale: f64,
}

/// Runs of the same seeds on both sides, and the lines that they are compared with.
struct Report {
    setup: Setup,
    plain: Vec<Figures>,
    picked: Vec<Figures>,
    lines: Vec<TableLine>,
    real: Option<Real>,
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
    #[command(flatten)]
    pub on: OnArgs,
    #[command(flatten)]
    pub install: InstallArgs,
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

#[derive(Debug, Clone, Args)]
pub struct SharegptArgs {
    /// File to write
    #[arg(long, value_name = "FILE", default_value = "ShareGPT.json")]
    pub output: PathBuf,
    /// Seed of the texts; token totals are the same for every seed
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,
}

pub async fn run(args: Step5Args) -> Result<End> {
    let entries = entries(args.sharegpt_file.as_deref())?;
    let through = args.through()?;
    let simulated = match through {
        Through::VirtualTime | Through::Both => Some(args.simulated(&entries)?),
        Through::Envoy => None,
    };
    let real = match through {
        Through::VirtualTime => None,
        Through::Both | Through::Envoy => match args.through_envoy(through, &entries).await? {
            Some(real) => Some(real),
            None => return Ok(End::Interrupted),
        },
    };
    let (plain, picked) = match (simulated, &real) {
        (Some(sides), _) => sides,
        (None, Some(Real { real: [plain, picked], .. })) => (vec![plain.clone()], vec![picked.clone()]),
        (None, None) => (Vec::new(), Vec::new()),
    };
    let setup = args.setup();
    let lines = judge::lines(setup, &plain, &picked);
    let report = Report { setup, plain, picked, lines, real };
    output::print(&match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&report.json())?),
        false => report.text(),
    });
    Ok(if report.failed().is_empty() { End::Good } else { End::Failed })
}

impl Step5Args {
    fn through(&self) -> Result<Through> {
        let is_control = self.policy != PolicyName::Prefix || self.no_prefix_caching;
        let through = match (self.through.wall, self.through.virtual_only || is_control) {
            (true, _) => Through::Envoy,
            (false, true) => Through::VirtualTime,
            (false, false) => Through::Both,
        };
        ensure!(
            through != Through::VirtualTime || self.on.on.is_none(),
            "--on: nothing goes through a cluster in virtual time"
        );
        let scale = self.time_scale();
        ensure!(
            through == Through::VirtualTime || scale <= MAX_TIME_SCALE,
            "--time-scale {scale}: at most {MAX_TIME_SCALE} through the real Envoy; with --virtual, time takes none"
        );
        Ok(through)
    }

    fn time_scale(&self) -> f64 {
        self.cluster.time_scale.unwrap_or(if self.through.wall { 1.0 } else { MAX_TIME_SCALE })
    }

    /// Returns the number of pods: two, as in the published runs, unless the flags say otherwise.
    fn n_pods(&self) -> usize {
        let asked = self.cluster.replicas.and_then(|replicas| usize::try_from(replicas).ok());
        asked.unwrap_or(PUBLISHED_PODS)
    }

    /// Returns the name of the latency preset.
    fn latency(&self) -> String {
        const GPU: &str = "a10";
        const MODEL: &str = "qwen2.5-7b";
        match (&self.latency_preset, &self.gpu, &self.model_preset) {
            (Some(name), _, _) => name.clone(),
            (None, None, None) => PUBLISHED_LATENCY.to_owned(),
            (None, gpu, model) => {
                format!("{}/{}", gpu.as_deref().unwrap_or(GPU), model.as_deref().unwrap_or(MODEL))
            }
        }
    }

    fn setup(&self) -> Setup {
        Setup {
            n_pods: self.n_pods(),
            is_published_server: self.latency() == PUBLISHED_LATENCY,
            is_own_data: self.sharegpt_file.is_none(),
        }
    }

    fn side(&self, policy: PolicyName, seed: u64) -> Side {
        let caching = if self.no_prefix_caching { Caching::Off } else { Caching::On };
        Side { n_pods: self.n_pods(), latency: self.latency(), caching, ..Side::published(policy, seed) }
    }

    /// Runs both sides in virtual time, once for each seed.
    fn simulated(&self, entries: &[Entry]) -> Result<(Vec<Figures>, Vec<Figures>)> {
        let model = ChatModel::qwen25()?;
        let seeds = self.first_seed..self.first_seed.saturating_add(u64::from(self.seeds));
        let side = |policy| {
            let runs = seeds.clone().map(|seed| self.side(policy, seed).run(entries, &model));
            runs.collect::<Result<Vec<Figures>>>()
        };
        Ok((side(PolicyName::LeastRequest)?, side(self.policy)?))
    }

    /// Runs both sides through the real Envoy where the flags say; `None` if it is interrupted.
    async fn through_envoy(&self, through: Through, entries: &[Entry]) -> Result<Option<Real>> {
        let session = Session::new(self.cluster.verbose)?;
        if self.on.on.is_some() {
            return self.on_kubernetes(through, entries, &session).await;
        }
        let Some(programs) = session.programs(&self.cluster.programs).await? else { return Ok(None) };
        self.real(through, entries, (&session, &programs)).await
    }

    #[cfg(feature = "kubernetes")]
    async fn on_kubernetes(
        &self,
        through: Through,
        entries: &[Entry],
        session: &Session,
    ) -> Result<Option<Real>> {
        let Self { on, install, cluster: ClusterArgs { programs, .. }, report_dir, .. } = self;
        let version = env!("PROGRAM_VERSION");
        let asked = lab_kube::stage::Asked { on, install, programs, version }.with_mocks()?;
        let work = async |stage: &_| self.real(through, entries, (session, stage)).await;
        asked.stage(session, &wall::run_dir(report_dir), work).await
    }

    #[cfg(not(feature = "kubernetes"))]
    #[expect(clippy::unused_async, reason = "with a client for Kubernetes it waits")]
    async fn on_kubernetes(&self, _: Through, _: &[Entry], _: &Session) -> Result<Option<Real>> {
        anyhow::bail!("--on: this program has no client for Kubernetes; `e2e step5` builds the one that has")
    }

    /// Runs both sides on clusters of this stage, and the same in virtual time; `None` if it is interrupted.
    async fn real(
        &self,
        through: Through,
        entries: &[Entry],
        staged: (&Session, &impl Stage),
    ) -> Result<Option<Real>> {
        let time_scale = self.time_scale();
        let duration = if through == Through::Envoy { COMMAND.duration } else { SHORT };
        let side = |policy| {
            // The real picker scrapes at the same intervals of wall time.
            let command = Command { duration, settle: SETTLE.mul_f64(time_scale), ..COMMAND };
            let scrape_interval = SCRAPE_INTERVAL.mul_f64(time_scale);
            // Without jitter, the runs differ only by the machine's own time.
            Side { command, scrape_interval, jitter: 0.0, ..self.side(policy, self.first_seed) }
        };
        let picked = side(PolicyName::Prefix);
        let wall_settings = wall::WallSettings {
            cluster: self.cluster.clone(),
            n_pods: u32::try_from(self.n_pods())?,
            latency: self.latency(),
            duration,
            time_scale,
            picker_seed: picked.fleet()?.router_seed(),
            report_dir: self.report_dir.clone(),
        };
        let model = ChatModel::qwen25()?;
        let simulated = [side(PolicyName::LeastRequest).run(entries, &model)?, picked.run(entries, &model)?];
        let n_attempts = if through == Through::Envoy { 1 } else { ATTEMPTS };
        let agreed = until_agreed(n_attempts, async || {
            let real = wall::run(&wall_settings, entries, staged)
                .await
                .context("through the real Envoy (--virtual does without)");
            Ok(real?.map(|real| (Pair { simulated: &simulated, real: &real, time_scale }.lines(), real)))
        });
        Ok(agreed.await?.map(|Agreed { run: real, agreement, earlier }| Real {
            simulated,
            real,
            agreement,
            earlier,
            duration,
            time_scale,
        }))
    }
}

impl Report {
    fn failed(&self) -> Vec<&'static str> {
        let agreement = self.real.iter().flat_map(|real| &real.agreement);
        self.lines.iter().chain(agreement).filter(|line| !line.holds()).map(|line| line.name).collect()
    }

    fn text(&self) -> String {
        let Self { setup, plain, picked, lines, real } = self;
        let mut text = format!(
            "The tutorial's summaries, and {} of {} here\n{}\n\n{}\n",
            if plain.len() == 1 { "that".to_owned() } else { format!("means of {} runs", plain.len()) },
            setup.describe(),
            judge::summaries(plain, picked),
            judge::table(lines, "published"),
        );
        if let Some(Real { agreement, earlier, duration, time_scale, .. }) = real {
            text += &format!(
                "\nThrough the real Envoy, {} s at time scale {time_scale}, against the same in virtual time{}\n{}\n",
                duration.as_secs(),
                match earlier.len() {
                    0 => String::new(),
                    n_earlier => format!(" (attempt {} of {ATTEMPTS})", n_earlier + 1),
                },
                judge::table(agreement, "simulated")
            );
        }
        for (name, runs) in [("8080", plain), ("8081", picked)] {
            if let Some(failed) = runs.iter().find_map(Figures::failed) {
                text += &format!("{name}: {failed}\n");
            }
        }
        let failed = self.failed();
        text += &match failed.is_empty() {
            true => format!("PASS: {}\n", setup.claim()),
            false => format!("FAIL: {}\n", failed.join(", ")),
        };
        text
    }

    fn json(&self) -> Value {
        let Self { setup: _, plain, picked, lines, real } = self;
        let side = |runs: &[Figures]| runs.iter().map(judge::json).collect::<Vec<Value>>();
        let through_envoy = real.as_ref().map(|real| {
            let Real { simulated, real, agreement, earlier, duration, time_scale } = real;
            json!({
                "seconds": duration.as_secs(),
                "time_scale": time_scale,
                "lines": agreement,
                "failed_in_earlier_attempts": earlier,
                "8080": judge::json(&real[0]),
                "8081": judge::json(&real[1]),
                "simulated": {"8080": judge::json(&simulated[0]), "8081": judge::json(&simulated[1])},
            })
        });
        json!({
            "passed": self.failed().is_empty(),
            "failed": self.failed(),
            "lines": lines,
            "8080": side(plain),
            "8081": side(picked),
            "through_envoy": through_envoy,
        })
    }
}

/// Generates the data file again.
pub fn make_data(args: &SharegptArgs) -> Result<End> {
    let model = ChatModel::qwen25()?;
    let entries = data::generate(args.seed, COMMAND, &model)?;
    std::fs::write(&args.output, data::to_json(&entries)?)
        .with_context(|| format!("write {}", args.output.display()))?;
    let (input, output) = data::totals(&entries, COMMAND, &model)?;
    output::print(&format!("{}: {input} input and {output} output tokens\n", args.output.display()));
    Ok(End::Good)
}

/// Returns the conversations of a file, or the built-in ones.
///
/// # Errors
/// When the file cannot be read or is not a ShareGPT file.
pub fn entries(file: Option<&Path>) -> Result<Vec<Entry>> {
    let text = match file {
        None => DATA.to_owned(),
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?,
    };
    let named =
        || file.map_or_else(|| "the built-in data".to_owned(), |path: &Path| path.display().to_string());
    sharegpt::parse(&text, usize::try_from(COMMAND.plan.n_rounds)?)
        .with_context(|| format!("{} is no ShareGPT file", named()))
}

#[cfg(test)]
mod tests {
    use super::judge::{self, Figures, Setup, TableLine};
    use super::side::{Caching, PolicyName, Side};
    use super::{COMMAND, data, entries};
    use load::multi_round_qa::sharegpt::{self, Entry};
    use sim::model::ChatModel;

    const PUBLISHED: Setup = Setup { n_pods: 2, is_published_server: true, is_own_data: true };

    /// Returns the names of the lines that fail over five seeds.
    fn failing(policy: PolicyName, caching: Caching) -> Vec<&'static str> {
        let model = ChatModel::qwen25().unwrap();
        let entries = entries(None).unwrap();
        let run = |policy, seed| {
            let side = Side { caching, ..Side::published(policy, seed) };
            side.run(&entries, &model).unwrap()
        };
        let plain: Vec<_> = (1..=5).map(|seed| run(PolicyName::LeastRequest, seed)).collect();
        let picked: Vec<_> = (1..=5).map(|seed| run(policy, seed)).collect();
        let lines = judge::lines(PUBLISHED, &plain, &picked);
        lines.iter().filter(|line| !line.holds()).map(|line: &TableLine| line.name).collect()
    }

    #[test]
    fn the_published_table_is_reproduced() {
        assert_eq!(failing(PolicyName::Prefix, Caching::On), Vec::<&str>::new());
    }

    /// Each wrong system must fail the line that is there to detect it.
    #[test]
    fn wrong_routers_and_pods_fail() {
        if test_skips::skips_slow() {
            return;
        }
        let cold = "8081: cold requests";
        for (policy, caching, expected) in [
            (PolicyName::LeastRequest, Caching::On, "TTFT, 8081 by 8080"),
            (PolicyName::Random, Caching::On, cold),
            (PolicyName::RoundRobin, Caching::On, cold),
            (PolicyName::Load, Caching::On, cold),
            (PolicyName::NeverNoted, Caching::On, cold),
            (PolicyName::UserHeader, Caching::On, cold),
            // All texts look alike to it, so they all go to one pod.
            (PolicyName::Unchained, Caching::On, "8081: busiest pod's share, mean"),
            (PolicyName::Prefix, Caching::Off, "8080: TTFT, mean [s]"),
        ] {
            let failing = failing(policy, caching);
            assert!(failing.contains(&expected), "{policy:?}: {failing:?}");
        }
    }

    /// A session ends if its question is longer than the model's context; the others go on unchanged.
    #[test]
    fn a_turn_beyond_the_context_fails_its_session_and_no_other() {
        const LONG: usize = 9;
        let model = ChatModel::qwen25().unwrap();
        let own = entries(None).unwrap();
        let mut long = own.clone();
        let question = long[LONG].num_round % 2 + 2;
        long[LONG].conversations[question].value = "word ".repeat(9000);
        let run = |entries: &[Entry]| Side::published(PolicyName::Prefix, 1).run(entries, &model).unwrap();
        let (own, long) = (run(&own), run(&long));
        // The session has eight turns: the first is answered, the second fails, and the others are never sent.
        assert_eq!((own.summary.n_finished, long.summary.n_finished), (63, 56));
        assert_eq!((own.summary.window.n_failed, long.summary.window.n_failed), (0, 1));
        let failed = long.failed().unwrap();
        assert!(
            failed.starts_with("1 of 57 requests failed; the first is of user 9, question 2: "),
            "{failed}"
        );
        assert_eq!(own.failed(), None);
        let setup = Setup { is_own_data: false, ..PUBLISHED };
        let line = |figures: &Figures| {
            let side = std::slice::from_ref(figures);
            let lines = judge::lines(setup, side, side);
            lines.into_iter().find(|line| line.name == judge::FAILED_REQUESTS).map(|line| line.holds)
        };
        assert_eq!((line(&own), line(&long)), (None, Some(false)));
    }

    #[test]
    fn the_data_are_made_anew_from_their_seed() {
        if test_skips::skips_slow() {
            return;
        }
        let model = ChatModel::qwen25().unwrap();
        let made = data::to_json(&data::generate(1, COMMAND, &model).unwrap()).unwrap();
        assert!(
            made == super::DATA,
            "e2e sharegpt --output crates/studies/data/sharegpt-like.json makes another file"
        );
        let entries = sharegpt::parse(&made, 15).unwrap();
        let totals = data::totals(&entries, COMMAND, &model).unwrap();
        assert_eq!(totals, (data::INPUT_TOKENS, data::OUTPUT_TOKENS));
    }
}
