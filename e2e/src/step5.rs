//! `e2e step5`: the tutorial's load through standard HTTP routing and through prefix-aware routing, in virtual time, against
//! the table that the vendor published.

pub mod data;
pub mod judge;
pub mod wall;
pub mod workload;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use clap::ValueEnum;
use serde::Serialize;
use sim::model::ServedModel;
use sim::pod::PodConfig;
use sim::router::Policy;
use sim::world::{Fleet, World};

use self::judge::{Figures, Line};
use self::workload::{Command, Measured, Tool, UserIds};
use crate::cli::{End, SharegptArgs, Step5Args};
use crate::multi_round_qa::records::{Colours, Record, Summary, Window};
use crate::multi_round_qa::schedule::{Pace, Plan};
use crate::multi_round_qa::sharegpt::{self, Entry};
use crate::stats::{as_f64, mean};
use crate::ui;

/// The tutorial's command.
pub const COMMAND: Command = Command {
    plan: Plan { n_users: 8, n_rounds: 15, qps: 0.1, init_user_id: 0, pace: Pace::Original },
    words: (100, 2000),
    answer_len: 100,
    duration: Duration::from_secs(600),
};
const DATA: &str = include_str!("../data/sharegpt-like.json");
/// Of each step and of the way in, as of real servers.
const JITTER: f64 = 0.03;
const SCRAPE_INTERVAL: Duration = Duration::from_millis(50);
/// A prompt that found less than this was computed from its start.
const COLD_TOKENS: u32 = 1000;

/// How 8081 places requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyName {
    /// By prefix, in estimation mode: the picker's own
    Prefix,
    /// As Envoy does on 8080
    LeastRequest,
    RoundRobin,
    Random,
    /// By load alone, the picker's DEFAULT
    Load,
    /// By the header x-user-id
    UserHeader,
    /// By prefix, with an index that is never told of a pick
    NeverNoted,
    /// By prefix, with blocks that are hashed each for itself
    Unchained,
}

/// Whether pods cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    On,
    Off,
}

/// One side of one run.
#[derive(Clone, Debug)]
pub struct Side {
    pub policy: PolicyName,
    pub n_pods: usize,
    /// Name of a preset.
    pub latency: String,
    pub caching: Caching,
    /// Blocks of KV cache; `None`: as many as fit.
    pub kv_blocks: Option<u32>,
    /// Of the policy `Prefix`.
    pub threshold: f64,
    pub scrape_interval: Duration,
    pub command: Command,
    pub seed: u64,
}

impl Side {
    /// As the published runs were: two of the tutorial's servers.
    pub fn published(policy: PolicyName, seed: u64) -> Self {
        Self {
            policy,
            n_pods: 2,
            latency: "a10-doc".to_owned(),
            caching: Caching::On,
            kv_blocks: None,
            threshold: 0.5,
            scrape_interval: SCRAPE_INTERVAL,
            command: COMMAND,
            seed,
        }
    }
}

pub async fn run(args: Step5Args) -> Result<End> {
    let entries = entries(args.sharegpt_file.as_deref())?;
    let (plain, picked) = match args.wall {
        true => match wall::run(&args, &entries).await? {
            Some((plain, picked)) => (vec![plain], vec![picked]),
            None => return Ok(End::Interrupted),
        },
        false => simulated(&args, &entries)?,
    };
    let lines = judge::lines(&plain, &picked);
    ui::print(&match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&judge::json(&plain, &picked, &lines))?),
        false => text(&plain, &picked, &lines),
    });
    Ok(if lines.iter().all(Line::holds) { End::Good } else { End::Failed })
}

/// Both sides, a run for each seed.
fn simulated(args: &Step5Args, entries: &[Entry]) -> Result<(Vec<Figures>, Vec<Figures>)> {
    let model = ServedModel::qwen25()?;
    let caching = if args.no_prefix_caching { Caching::Off } else { Caching::On };
    let (mut plain, mut picked) = (Vec::new(), Vec::new());
    for seed in args.first_seed..args.first_seed + u64::from(args.seeds) {
        let side = |policy| {
            let latency = args.latency_preset.clone();
            let n_pods = usize::try_from(args.replicas()).unwrap_or(usize::MAX);
            Side { n_pods, latency, caching, ..Side::published(policy, seed) }
        };
        plain.push(figures(&side(PolicyName::LeastRequest), entries, &model)?);
        picked.push(figures(&side(args.policy), entries, &model)?);
    }
    Ok((plain, picked))
}

impl Step5Args {
    /// The published figures are those of two.
    fn replicas(&self) -> u32 {
        const PUBLISHED: u32 = 2;
        self.cluster.replicas.unwrap_or(PUBLISHED)
    }
}

/// Makes the data file anew.
pub fn make_data(args: &SharegptArgs) -> Result<End> {
    let model = ServedModel::qwen25()?;
    let entries = data::generate(args.seed, COMMAND, &model)?;
    std::fs::write(&args.output, data::to_json(&entries)?)
        .with_context(|| format!("write {}", args.output.display()))?;
    let (input, output) = data::totals(&entries, COMMAND, &model)?;
    ui::print(&format!("{}: {input} input and {output} output tokens\n", args.output.display()));
    Ok(End::Good)
}

/// The conversations of a file, or the own ones.
///
/// # Errors
/// When the file cannot be read or is no ShareGPT file.
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

/// Runs one side.
///
/// # Errors
/// When the data do not go with the command.
pub fn figures(side: &Side, entries: &[Entry], model: &ServedModel) -> Result<Figures> {
    let Side { policy, n_pods, latency, caching, kv_blocks, threshold, scrape_interval, command, seed } =
        side;
    let pod = PodConfig::preset(latency, *caching == Caching::On, JITTER).with_context(|| {
        format!("--latency-preset {latency}: `mock-vllm latency` lists those that there are")
    })?;
    let pod = match kv_blocks {
        Some(n_blocks) => pod.with_blocks(*n_blocks),
        None => pod,
    };
    let policy = policy.policy(*threshold);
    let fleet = Fleet {
        pod,
        n_pods: *n_pods,
        policy,
        scrape_interval: *scrape_interval,
        in_detail: false,
        seed: *seed,
    };
    // A user's id must make no difference to a router that goes by prefixes.
    let mut tool = Tool::new(*command, entries, model, UserIds::Stripped);
    let mut world = World::try_new(fleet).map_err(|error| anyhow!("{error}"))?;
    world.run(&mut tool);
    let (measured, (start, end)) = tool.finish()?;
    let records: Vec<Record> = measured.iter().map(|measured| measured.record).collect();
    let window =
        Window { qps: COMMAND.plan.qps, n_pending: 0, n_failed: 0, start, end, pace: COMMAND.plan.pace };
    let of = |tokens: fn(&Measured) -> u32| {
        measured.iter().map(|measured| f64::from(tokens(measured))).sum::<f64>()
    };
    let users: std::collections::BTreeSet<u32> = records.iter().map(|record| record.user_id).collect();
    let busiest =
        (0..*n_pods).map(|pod| measured.iter().filter(|measured| measured.pod_idx == pod).count()).max();
    Ok(Figures {
        summary: Summary::of(&records, window),
        sessions: users.len(),
        input_tokens: records.iter().map(|record| u64::from(record.prompt_tokens)).sum(),
        output_tokens: records.iter().map(|record| u64::from(record.generation_tokens)).sum(),
        cold: measured.iter().filter(|measured| measured.cached_tokens < COLD_TOKENS).count(),
        hit_ratio: of(|measured| measured.cached_tokens) / of(|measured| measured.record.prompt_tokens),
        busiest_share: busiest.map(|busiest| as_f64(busiest) / as_f64(measured.len().max(1))),
    })
}

impl PolicyName {
    /// `threshold`: of [`Self::Prefix`].
    fn policy(self, threshold: f64) -> Policy {
        match self {
            Self::Prefix => Policy::prefix_above(threshold),
            Self::LeastRequest => Policy::LeastRequest,
            Self::RoundRobin => Policy::RoundRobin,
            Self::Random => Policy::Random,
            Self::Load => Policy::Load,
            Self::UserHeader => Policy::User,
            Self::NeverNoted => Policy::prefix_never_noted(),
            Self::Unchained => Policy::prefix_unchained(),
        }
    }
}

fn text(plain: &[Figures], picked: &[Figures], lines: &[Line]) -> String {
    let mut text = String::new();
    for (name, side) in [("8080, standard HTTP routing", plain), ("8081, prefix-aware routing", picked)] {
        if let Some(first) = side.first() {
            text += &format!("{name}, first seed:{}", first.summary.text(Colours::Plain));
        }
    }
    let ttft = |side: &[Figures]| mean(&side.iter().map(|figures| figures.summary.ttft).collect::<Vec<_>>());
    text += &judge::table(lines).to_string();
    let (plain, picked) = (ttft(plain).unwrap_or(0.0), ttft(picked).unwrap_or(0.0));
    text += &format!(
        "\n\nmean TTFT: {plain:.4} s on 8080, {picked:.4} s on 8081; published 0.3669 s and 0.2761 s\n"
    );
    let failed: Vec<&str> = lines.iter().filter(|line| !line.holds()).map(|line| line.name).collect();
    text += &match failed.is_empty() {
        true => "PASS: the published table holds within its bands\n".to_owned(),
        false => format!("FAIL: {}\n", failed.join(", ")),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::judge::{self, Line};
    use super::{COMMAND, Caching, PolicyName, Side, data, entries, figures};
    use crate::multi_round_qa::sharegpt;
    use sim::model::ServedModel;

    /// Names of the lines that fail over five seeds.
    fn failing(policy: PolicyName, caching: Caching) -> Vec<&'static str> {
        let model = ServedModel::qwen25().unwrap();
        let entries = entries(None).unwrap();
        let run = |policy, seed| {
            let side = Side { caching, ..Side::published(policy, seed) };
            figures(&side, &entries, &model).unwrap()
        };
        let plain: Vec<_> = (1..=5).map(|seed| run(PolicyName::LeastRequest, seed)).collect();
        let picked: Vec<_> = (1..=5).map(|seed| run(policy, seed)).collect();
        let lines = judge::lines(&plain, &picked);
        lines.iter().filter(|line| !line.holds()).map(|line: &Line| line.name).collect()
    }

    #[test]
    fn the_published_table_is_reproduced() {
        assert_eq!(failing(PolicyName::Prefix, Caching::On), Vec::<&str>::new());
    }

    /// Each wrong system fails what it is there to fail.
    #[test]
    fn wrong_routers_and_pods_fail() {
        let cold = "8081: cold requests";
        for (policy, caching, expected) in [
            (PolicyName::LeastRequest, Caching::On, "TTFT, 8081 by 8080"),
            (PolicyName::Random, Caching::On, cold),
            (PolicyName::RoundRobin, Caching::On, cold),
            (PolicyName::Load, Caching::On, cold),
            (PolicyName::NeverNoted, Caching::On, cold),
            (PolicyName::UserHeader, Caching::On, cold),
            // All texts look alike, so all go to one pod.
            (PolicyName::Unchained, Caching::On, "8081: busiest pod's share, mean"),
            (PolicyName::Prefix, Caching::Off, "8080: TTFT, mean [s]"),
        ] {
            let failing = failing(policy, caching);
            assert!(failing.contains(&expected), "{policy:?}: {failing:?}");
        }
    }

    #[test]
    fn the_data_are_made_anew_from_their_seed() {
        let model = ServedModel::qwen25().unwrap();
        let made = data::to_json(&data::generate(1, COMMAND, &model).unwrap()).unwrap();
        assert!(made == super::DATA, "e2e sharegpt --output e2e/data/sharegpt-like.json makes another file");
        let entries = sharegpt::parse(&made, 15).unwrap();
        let totals = data::totals(&entries, COMMAND, &model).unwrap();
        assert_eq!(totals, (data::INPUT_TOKENS, data::OUTPUT_TOKENS));
    }
}
