//! One side of step 5 in virtual time: its fleet, its router, and the figures of the tool's load.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use clap::ValueEnum;
use load::multi_round_qa::records::{Record, Summary, Window};
use load::multi_round_qa::sharegpt::Entry;
use serde::Serialize;
use sim::model::ChatModel;
use sim::pod::PodConfig;
use sim::router::RouterPolicy;
use sim::simulation::{Fleet, Responses, SCRAPE_INTERVAL, Simulation};
use tracing::debug;

use crate::step5::COMMAND;
use crate::step5::judge::{Figures, Timed};
use crate::step5::workload::{Command, Failure, Played, ServedRecord, Tool, UserIds};

/// Name of the latency preset for the published servers.
pub const PUBLISHED_LATENCY: &str = "a10-doc";
/// Number of servers in the published runs.
pub const PUBLISHED_PODS: usize = 2;
/// Jitter of real servers.
const JITTER: f64 = 0.03;

/// The way in which 8081 places requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyName {
    /// Prefix-aware, in estimation mode, like the picker
    Prefix,
    /// Like Envoy on 8080
    LeastRequest,
    RoundRobin,
    Random,
    /// Least loaded, the picker's DEFAULT
    Load,
    /// Chosen by the header x-user-id
    UserHeader,
    /// Prefix-aware, with an index that never learns of a pick
    NeverNoted,
    /// Prefix-aware, with blocks whose hashes ignore the blocks before
    Unchained,
}

/// State of the pods' prefix caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    On,
    Off,
}

/// Settings of one side of one run.
#[derive(Clone, Debug)]
pub struct Side {
    pub policy: PolicyName,
    pub n_pods: usize,
    /// Name of a latency preset.
    pub latency: String,
    pub caching: Caching,
    /// Blocks of KV cache; `None` for as many as fit.
    pub kv_blocks: Option<u32>,
    /// Threshold of [`PolicyName::Prefix`].
    pub threshold: f64,
    /// Bytes of the index's blocks; `None` for the index's own schedule.
    pub index_block: Option<NonZeroU64>,
    pub scrape_interval: Duration,
    /// Relative standard deviation of each step's time, and of the time on the way in.
    pub jitter: f64,
    pub command: Command,
    pub seed: u64,
}

impl Side {
    /// Makes a side as in the published runs: two of the tutorial's servers.
    pub fn published(policy: PolicyName, seed: u64) -> Self {
        Self {
            policy,
            n_pods: PUBLISHED_PODS,
            latency: PUBLISHED_LATENCY.to_owned(),
            caching: Caching::On,
            kv_blocks: None,
            threshold: 0.5,
            index_block: None,
            scrape_interval: SCRAPE_INTERVAL,
            jitter: JITTER,
            command: COMMAND,
            seed,
        }
    }

    /// Makes the fleet of simulated pods.
    ///
    /// # Errors
    /// When there is no such preset.
    pub fn fleet(&self) -> Result<Fleet> {
        let latency = &self.latency;
        let pod =
            PodConfig::preset(latency, self.caching == Caching::On, self.jitter).with_context(|| {
                format!("no preset {latency}: `mock-vllm latency --list` has those that there are")
            })?;
        let pod = match self.kv_blocks {
            Some(n_blocks) => pod.with_blocks(n_blocks),
            None => pod,
        };
        Ok(Fleet {
            pod,
            n_pods: self.n_pods,
            policy: self.policy.policy(self.threshold),
            index_block: self.index_block,
            scrape_interval: self.scrape_interval,
            responses: Responses::default(),
            in_detail: false,
            seed: self.seed,
        })
    }

    /// Runs this side.
    ///
    /// # Errors
    /// When the data do not fit the command, or the pods cannot serve it.
    pub fn run(&self, entries: &[Entry], model: &ChatModel) -> Result<Figures> {
        debug!(policy = ?self.policy, n_pods = self.n_pods, seed = self.seed, "Running a side in virtual time");
        // Routing by prefix must not depend on a user's id.
        let mut tool = Tool::new(self.command, entries, model, UserIds::Stripped);
        let simulation = Simulation::try_new(self.fleet()?);
        let mut simulation = simulation.map_err(|error| anyhow!("a pod of {}: {error}", self.latency))?;
        simulation.run(&mut tool);
        let Played { measured, failures, window: (start, end) } = tool.finish()?;
        let Command { plan, .. } = self.command;
        let n_failed = failures.len();
        let window = Window { qps: plan.qps, n_pending: 0, n_failed, start, end, rules: plan.rules };
        Ok(Figures { first_failure: failures.first().map(Failure::to_string), ..figures(measured, window) })
    }
}

fn figures(mut measured: Vec<ServedRecord>, window: Window) -> Figures {
    measured.sort_by_key(|measured| (measured.record.user_id, measured.record.question_id));
    let records: Vec<Record> = measured.iter().map(|measured| measured.record).collect();
    let of =
        |tokens: fn(&ServedRecord) -> u32| measured.iter().map(|one| f64::from(tokens(one))).sum::<f64>();
    Figures {
        summary: Summary::of(&records, window),
        sessions: records.iter().map(|record| record.user_id).collect::<BTreeSet<u32>>().len(),
        input_tokens: records.iter().map(|record| u64::from(record.prompt_tokens)).sum(),
        output_tokens: records.iter().map(|record| u64::from(record.generation_tokens)).sum(),
        requests: measured
            .iter()
            .map(|measured| Timed { ttft: measured.record.ttft, cached_tokens: measured.cached_tokens })
            .collect(),
        hit_ratio: of(|measured| measured.cached_tokens) / of(|measured| measured.record.prompt_tokens),
        picks: measured.iter().map(|measured| measured.pod_idx).collect(),
        first_failure: None,
    }
}

impl PolicyName {
    /// Returns the policy; `threshold` is that of [`Self::Prefix`].
    fn policy(self, threshold: f64) -> RouterPolicy {
        match self {
            Self::Prefix => RouterPolicy::prefix_above(threshold),
            Self::LeastRequest => RouterPolicy::LeastRequest,
            Self::RoundRobin => RouterPolicy::RoundRobin,
            Self::Random => RouterPolicy::Random,
            Self::Load => RouterPolicy::Load,
            Self::UserHeader => RouterPolicy::User,
            Self::NeverNoted => RouterPolicy::prefix_never_noted(),
            Self::Unchained => RouterPolicy::prefix_unchained(),
        }
    }
}
