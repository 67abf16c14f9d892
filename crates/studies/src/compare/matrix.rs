//! Runs every policy under every load, and keeps figures of each run and means over seeds.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, available_parallelism};
use std::time::Duration;

use anyhow::{Result, anyhow};
use load::stats::{as_f64, mean, quantile};
use serde::Serialize;
use sim::router::RouterPolicy;
use sim::simulation::{Outcome, Simulation};
use statrs::distribution::{ContinuousCDF as _, StudentsT};
use tracing::debug;

use crate::compare::shapes::Shape;
use crate::compare::traces::Traced;
use crate::compare::workloads::{self, DrawnWorkload, Poisson, Replay};

/// A policy and its name.
pub type Named = (&'static str, fn() -> RouterPolicy);

/// Name of a policy that knows more than a router can, so that no router is compared with it.
pub const ORACLE: &str = "oracle";
/// Policies to compare: the picker's default first, then others that use prefixes, then those that do not.
pub const POLICIES: [Named; 9] = [
    ("prefix (default)", RouterPolicy::prefix),
    ("prefix, never spilling", RouterPolicy::prefix_pure),
    ("prefix, guarded", RouterPolicy::guard),
    ("precise", RouterPolicy::precise),
    (ORACLE, || RouterPolicy::Oracle),
    ("load", || RouterPolicy::Load),
    ("least request", || RouterPolicy::LeastRequest),
    ("round robin", || RouterPolicy::RoundRobin),
    ("random", || RouterPolicy::Random),
];
/// Number of points of a cumulative distribution, from 0 to 1.
const CDF_POINTS: u32 = 40;
/// Number of parts of a run's time that are shown separately.
const SPANS: usize = 20;
/// A policy is past its knee if its mean TTFT is more than this many times the best one's at the lightest load.
const KNEE: f64 = 2.0;

/// Quantile at the upper end of a 95 % confidence interval.
const UPPER: f64 = 0.975;

/// Source of the requests.
#[derive(Clone, Copy, Debug)]
pub enum RequestSource<'a> {
    Drawn(&'a DrawnWorkload),
    /// Drawn with the shape of a public trace.
    Shaped(&'a Shape),
    /// A trace, with the name of its file.
    Traced(&'a str, &'a [Traced]),
}

/// One workload under every policy and at every load.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkloadRow {
    pub workload: String,
    /// Cells by ascending load, and for each load by policy.
    pub cells: Vec<Cell>,
    pub knees: Vec<Knee>,
    /// Details of the first seed at the load that is nearest to 1.
    pub details: Vec<Detail>,
}

/// Figures of one policy under one load; means over the seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    pub policy: &'static str,
    /// Multiple of the workload's own request rate.
    pub load: f64,
    /// Seconds until the first token.
    pub ttft: Spread,
    /// Seconds from each token to the next.
    pub itl: Spread,
    /// Share of prompt tokens that were cached.
    pub hit_ratio: Estimate,
    /// Share of prompt tokens that another pod had cached and the picked one had not.
    pub regret: Estimate,
    /// Requests of the busiest pod, divided by the mean over pods.
    pub imbalance: Estimate,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub mean: Estimate,
    pub p50: Estimate,
    pub p90: Estimate,
    pub p99: Estimate,
}

/// A mean over seeds, and the half width of its 95 % confidence interval by Student's t. The half width is 0 for one
/// seed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub mean: f64,
    pub half_width: f64,
}

/// Load up to which a policy keeps its pace.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Knee {
    pub policy: &'static str,
    /// Load at which the policy's mean TTFT passes the limit, interpolated between the loads that were run; `None` if
    /// it lies beyond the heaviest load.
    pub load: Option<f64>,
    /// Limit of the mean TTFT in seconds.
    pub limit: f64,
}

/// Details of one run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Detail {
    pub policy: &'static str,
    /// Quantiles of the seconds until the first token, at equal steps from the fastest to the slowest request.
    pub ttft_quantiles: Vec<f64>,
    /// Seconds of each part of the run.
    pub span: f64,
    /// Hit ratio of the requests that were sent in each part; `None` if there were none.
    pub hit_ratio: Vec<Option<f64>>,
    /// Number of requests by pod and part.
    pub requests: Vec<Vec<u32>>,
}

/// Results of a run.
struct Run {
    /// Mean, p50, p90 and p99 of TTFT, then of ITL; then hit ratio, regret and imbalance.
    values: [f64; 11],
    detail: Option<Detail>,
}

/// Everything that is to be run.
#[derive(Clone, Debug)]
pub struct Matrix<'a> {
    pub sources: Vec<RequestSource<'a>>,
    /// Loads in ascending order.
    pub loads: Vec<f64>,
    pub seeds: u32,
}

#[derive(Clone, Copy, Debug)]
struct Job {
    source_idx: usize,
    load_idx: usize,
    policy_idx: usize,
    seed: u32,
}

impl Matrix<'_> {
    /// Runs everything on every core. Calls `progress` with the number of finished runs and of all runs.
    ///
    /// # Errors
    /// When the engine refuses its settings.
    pub fn run(&self, progress: &(impl Fn(usize, usize) + Sync)) -> Result<Vec<WorkloadRow>> {
        let jobs = self.jobs();
        let results: Mutex<Vec<Option<Result<Run>>>> = Mutex::new(jobs.iter().map(|_| None).collect());
        let (next, n_done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..available_parallelism().map_or(1, NonZeroUsize::get) {
                scope.spawn(|| {
                    while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let run = self.run_job(job);
                        let idx = job.idx(self);
                        results.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[idx] = Some(run);
                        progress(n_done.fetch_add(1, Ordering::Relaxed) + 1, jobs.len());
                    }
                });
            }
        });
        let results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let runs = results.into_iter().flatten().collect::<Result<Vec<Run>>>()?;
        let per_source = self.loads.len() * POLICIES.len() * self.n_seeds();
        let rows = self.sources.iter().zip(runs.chunks(per_source.max(1)));
        Ok(rows.map(|(source, runs)| self.row(source, runs)).collect())
    }

    fn n_seeds(&self) -> usize {
        usize::try_from(self.seeds).unwrap_or(usize::MAX)
    }

    fn jobs(&self) -> Vec<Job> {
        let mut jobs = Vec::new();
        for source_idx in 0..self.sources.len() {
            for load_idx in 0..self.loads.len() {
                for policy_idx in 0..POLICIES.len() {
                    jobs.extend((1..=self.seeds).map(|seed| Job { source_idx, load_idx, policy_idx, seed }));
                }
            }
        }
        jobs
    }

    fn detailed_load(&self) -> usize {
        let distance = |idx: &usize| (self.loads[*idx] - 1.0).abs();
        (0..self.loads.len()).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0)
    }

    fn run_job(&self, job: &Job) -> Result<Run> {
        let Job { source_idx, load_idx, policy_idx, seed } = *job;
        let (name, policy) = POLICIES[policy_idx];
        let source = self.sources[source_idx];
        debug!(
            workload = source.name(),
            load = self.loads[load_idx],
            policy = name,
            seed,
            "Running a policy"
        );
        let (outcomes, gaps) = source.run(policy(), self.loads[load_idx], u64::from(seed))?;
        let is_shown = seed == 1 && load_idx == self.detailed_load();
        let detail = is_shown.then(|| Detail::of(name, &outcomes));
        Ok(Run { values: figures(&outcomes, &gaps), detail })
    }

    fn row(&self, source: &RequestSource<'_>, runs: &[Run]) -> WorkloadRow {
        let cell = |(idx, runs): (usize, &[Run])| {
            let (load_idx, policy_idx) = (idx / POLICIES.len(), idx % POLICIES.len());
            Cell::of(POLICIES[policy_idx].0, self.loads[load_idx], runs)
        };
        let cells: Vec<Cell> = runs.chunks(self.n_seeds().max(1)).enumerate().map(cell).collect();
        let details = runs.iter().filter_map(|run| run.detail.clone()).collect();
        WorkloadRow { workload: source.name().to_owned(), knees: knees(&cells), cells, details }
    }
}

impl Job {
    fn idx(&self, matrix: &Matrix<'_>) -> usize {
        let Self { source_idx, load_idx, policy_idx, seed } = *self;
        let seed_idx = usize::try_from(seed - 1).unwrap_or(usize::MAX);
        ((source_idx * matrix.loads.len() + load_idx) * POLICIES.len() + policy_idx) * matrix.n_seeds()
            + seed_idx
    }
}

impl RequestSource<'_> {
    pub fn name(&self) -> &str {
        match self {
            Self::Drawn(workload) => workload.name,
            Self::Shaped(shape) => shape.name,
            Self::Traced(name, _) => name,
        }
    }

    fn run(&self, policy: RouterPolicy, load: f64, seed: u64) -> Result<(Vec<Outcome>, Vec<Duration>)> {
        let simulation = Simulation::try_new(workloads::fleet(policy, seed));
        let mut simulation = simulation.map_err(|error| anyhow!("{error}"))?;
        let outcomes = match self {
            Self::Drawn(workload) => {
                let mut drawn = Poisson::new(workload, load, seed);
                simulation.run(&mut drawn);
                drawn.finish()?
            }
            Self::Shaped(shape) => {
                let requests = shape.draw(workloads::DURATION.mul_f64(load), seed);
                let mut replay = Replay::new(&requests, load);
                simulation.run(&mut replay);
                replay.finish()?
            }
            Self::Traced(_, requests) => {
                let mut replay = Replay::new(requests, load);
                simulation.run(&mut replay);
                replay.finish()?
            }
        };
        Ok((outcomes, simulation.gaps().to_vec()))
    }
}

fn ttft(outcome: &Outcome) -> f64 {
    (outcome.first_token_at - outcome.sent_at).as_secs_f64()
}

fn figures(outcomes: &[Outcome], gaps: &[Duration]) -> [f64; 11] {
    let spread = |mut sample: Vec<f64>| {
        sample.sort_by(f64::total_cmp);
        let at = |q| quantile(&sample, q).unwrap_or(0.0);
        [mean(&sample).unwrap_or(0.0), at(0.5), at(0.9), at(0.99)]
    };
    let [ttft_mean, ttft_p50, ttft_p90, ttft_p99] = spread(outcomes.iter().map(ttft).collect());
    let [itl_mean, itl_p50, itl_p90, itl_p99] = spread(gaps.iter().map(Duration::as_secs_f64).collect());
    let of = |part: fn(&Outcome) -> u32| outcomes.iter().map(|one| f64::from(part(one))).sum::<f64>();
    let n_prompt = of(|outcome| outcome.prompt_tokens).max(1.0);
    let of_pod = |pod| outcomes.iter().filter(|outcome| outcome.pod_idx == pod).count();
    let busiest = (0..workloads::PODS).map(of_pod).max().unwrap_or(0);
    [
        ttft_mean,
        ttft_p50,
        ttft_p90,
        ttft_p99,
        itl_mean,
        itl_p50,
        itl_p90,
        itl_p99,
        of(|outcome| outcome.cached_tokens) / n_prompt,
        of(|outcome| outcome.regret_tokens.unwrap_or(0)) / n_prompt,
        as_f64(busiest) * as_f64(workloads::PODS) / as_f64(outcomes.len().max(1)),
    ]
}

impl Cell {
    fn of(policy: &'static str, load: f64, runs: &[Run]) -> Self {
        let estimate =
            |idx: usize| Estimate::of(&runs.iter().map(|run| run.values[idx]).collect::<Vec<f64>>());
        let spread = |first: usize| Spread {
            mean: estimate(first),
            p50: estimate(first + 1),
            p90: estimate(first + 2),
            p99: estimate(first + 3),
        };
        Self {
            policy,
            load,
            ttft: spread(0),
            itl: spread(4),
            hit_ratio: estimate(8),
            regret: estimate(9),
            imbalance: estimate(10),
        }
    }
}

impl Estimate {
    fn of(sample: &[f64]) -> Self {
        let middle = mean(sample).unwrap_or(0.0);
        let n = as_f64(sample.len());
        let squares: f64 = sample.iter().map(|value| (value - middle).powi(2)).sum();
        // The distribution needs at least one degree of freedom.
        let t = StudentsT::new(0.0, 1.0, n - 1.0).map_or(0.0, |t| t.inverse_cdf(UPPER));
        let half_width = if n > 1.0 { t * (squares / (n - 1.0) / n).sqrt() } else { 0.0 };
        Self { mean: middle, half_width }
    }
}

impl Detail {
    fn of(policy: &'static str, outcomes: &[Outcome]) -> Self {
        let mut times: Vec<f64> = outcomes.iter().map(ttft).collect();
        times.sort_by(f64::total_cmp);
        let quantiles = (0..=CDF_POINTS).map(|point| f64::from(point) / f64::from(CDF_POINTS));
        let ttft_quantiles = quantiles.filter_map(|q| quantile(&times, q)).collect();
        let end = outcomes.iter().map(|one| one.sent_at.as_secs_f64()).fold(0.0, f64::max);
        let span = (end / as_f64(SPANS)).max(f64::MIN_POSITIVE);
        // Counting the parts before the request avoids a conversion from a float.
        let part = |one: &Outcome| {
            let sent_at = one.sent_at.as_secs_f64();
            (1..SPANS).filter(|idx| as_f64(*idx) * span <= sent_at).count()
        };
        let mut requests = vec![vec![0; SPANS]; workloads::PODS];
        let mut tokens = [(0.0, 0.0); SPANS];
        for one in outcomes {
            let idx = part(one);
            requests[one.pod_idx][idx] += 1;
            tokens[idx].0 += f64::from(one.cached_tokens);
            tokens[idx].1 += f64::from(one.prompt_tokens);
        }
        let hit_ratio = tokens.iter().map(|(cached, all)| (*all > 0.0).then(|| cached / all)).collect();
        Self { policy, ttft_quantiles, span, hit_ratio, requests }
    }
}

impl WorkloadRow {
    /// Returns the cells of each load.
    pub fn by_load(&self) -> impl Iterator<Item = &[Cell]> {
        self.cells.chunks(POLICIES.len())
    }

    /// Returns the largest share, over all loads, by which the default's mean TTFT exceeds the best router's.
    pub fn excess(&self) -> f64 {
        self.by_load().map(excess).fold(0.0, f64::max)
    }
}

/// Returns the best router's mean TTFT among the cells of one load, in seconds.
pub fn best(cells: &[Cell]) -> f64 {
    let routers = cells.iter().filter(|cell| cell.policy != ORACLE);
    routers.map(|cell| cell.ttft.mean.mean).fold(f64::INFINITY, f64::min)
}

/// Returns the share by which the default's mean TTFT exceeds the best router's at one load.
pub fn excess(cells: &[Cell]) -> f64 {
    cells.first().map_or(0.0, |cell| cell.ttft.mean.mean / best(cells) - 1.0)
}

/// Returns the load at which each policy's mean TTFT passes the limit, on a straight line between the two loads around
/// it.
fn knees(cells: &[Cell]) -> Vec<Knee> {
    let lightest = &cells[..POLICIES.len().min(cells.len())];
    let limit = KNEE * best(lightest);
    let knee = |policy: &'static str| {
        let points: Vec<(f64, f64)> = cells
            .iter()
            .filter(|cell| cell.policy == policy)
            .map(|cell| (cell.load, cell.ttft.mean.mean))
            .collect();
        let passed = points.iter().position(|(_, ttft)| *ttft > limit);
        let load = passed.map(|idx| match idx.checked_sub(1) {
            None => points[0].0,
            Some(before) => {
                let ((low, below), (high, above)) = (points[before], points[idx]);
                low + (high - low) * (limit - below) / (above - below)
            }
        });
        Knee { policy, load, limit }
    };
    POLICIES.iter().map(|(policy, _)| knee(policy)).collect()
}

#[cfg(test)]
mod tests {
    use super::{Cell, Estimate, POLICIES, Run, knees};

    fn cell(policy: &'static str, load: f64, ttft: f64) -> Cell {
        Cell::of(policy, load, &[Run { values: [ttft; 11], detail: None }])
    }

    #[test]
    fn an_interval_covers_the_scatter_of_the_seeds() {
        let estimate = Estimate::of(&[1.0, 2.0, 3.0]);
        assert!(
            (estimate.mean - 2.0).abs() < 1e-12
                // Value for two degrees of freedom, from a table of the distribution.
                && (estimate.half_width - 4.3027 / 3.0_f64.sqrt()).abs() < 1e-4
        );
        assert!(Estimate::of(&[5.0]).half_width < 1e-12);
    }

    #[test]
    fn a_knee_lies_where_the_line_passes_twice_the_best() {
        let at = |load, ttft| POLICIES.map(|(policy, _)| cell(policy, load, ttft));
        let mut cells: Vec<Cell> = at(1.0, 1.0).into_iter().chain(at(2.0, 1.5)).collect();
        assert!(knees(&cells).iter().all(|knee| knee.load.is_none()));
        // The mean grows from 1 s at load 1 to 5 s at load 2, so it is 2 s at load 1.25.
        cells[POLICIES.len() + 1] = cell(POLICIES[1].0, 2.0, 5.0);
        let knee = knees(&cells)[1].load.unwrap();
        assert!((knee - 1.25).abs() < 1e-9, "{knee}");
    }
}
