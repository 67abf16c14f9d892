//! `e2e compare`: policies against workloads that tell good routers from bad ones, in virtual time.

pub mod traces;
pub mod workloads;

use anyhow::{Result, anyhow, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use sim::router::Policy;
use sim::world::{Outcome, World};

use self::traces::Traced;
use self::workloads::{Poisson, Replay, WORKLOADS, Workload};
use crate::cli::{CompareArgs, End};
use crate::report::summary::new_table;
use crate::stats::{as_f64, mean, quantile};
use crate::ui::{self, Ui};

/// A policy and what it is called.
type Named = (&'static str, fn() -> Policy);

/// What is compared: the picker's default, what pure affinity would do, and what proxies do without a picker.
const POLICIES: [Named; 9] = [
    ("prefix (default)", Policy::prefix),
    ("prefix, never spilling", Policy::prefix_pure),
    ("prefix, guarded", Policy::guard),
    ("precise", Policy::precise),
    (ORACLE, || Policy::Oracle),
    ("load", || Policy::Load),
    ("least request", || Policy::LeastRequest),
    ("round robin", || Policy::RoundRobin),
    ("random", || Policy::Random),
];
/// It knows more than a router can, so the default is not measured against it.
const ORACLE: &str = "oracle";
/// The default is to be no worse than the best by more than this.
const MARGIN: f64 = 0.1;

/// One policy under one workload; means over the seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Cell {
    policy: &'static str,
    /// Seconds until the first token: over requests, and over seeds.
    ttft_mean: Estimate,
    ttft_p50: Estimate,
    ttft_p99: Estimate,
    /// Seconds per output token after the first.
    tpot_mean: Estimate,
    hit_ratio: Estimate,
    /// Requests of the busiest pod by those of the mean one.
    imbalance: Estimate,
}

/// A mean over seeds, and the half width of its interval of 95 % confidence by the normal approximation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Estimate {
    mean: f64,
    half_width: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Row {
    workload: String,
    cells: Vec<Cell>,
}

/// Where requests come from.
#[derive(Clone, Copy, Debug)]
enum Load<'a> {
    Drawn(&'a Workload),
    /// A trace, and its file's name.
    Traced(&'a str, &'a [Traced]),
}

pub fn run(args: &CompareArgs) -> Result<End> {
    let ui = Ui::new(false);
    let traces = traces(args, &ui)?;
    let drawn = WORKLOADS.iter().filter(|workload| args.traces.is_empty() && workload.is_wanted(&args.only));
    let traced = traces.iter().map(|(name, requests)| Load::Traced(name, requests));
    let mut rows = Vec::new();
    for load in drawn.map(Load::Drawn).chain(traced) {
        ui.step(&format!("{}: {} policies, {} seeds", load.name(), POLICIES.len(), args.seeds));
        let cells = POLICIES.iter().map(|(name, policy)| cell(name, policy(), load, args));
        rows.push(Row { workload: load.name().to_owned(), cells: cells.collect::<Result<_>>()? });
    }
    ui.finish();
    if rows.is_empty() {
        let names: Vec<&str> = WORKLOADS.iter().map(|workload| workload.name).collect();
        return Err(anyhow!("--only {}: the workloads are {}", args.only.join(", "), names.join(", ")));
    }
    ui::print(&match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&document(&rows, args))?),
        false => text(&rows, args),
    });
    Ok(if rows.iter().all(|row| row.excess() <= MARGIN) { End::Good } else { End::Failed })
}

/// The traces that are asked for, each with its file's name.
fn traces(args: &CompareArgs, ui: &Ui) -> Result<Vec<(String, Vec<Traced>)>> {
    let mut traces = Vec::new();
    for path in &args.traces {
        let (kept, n_left_out) = workloads::fitting(traces::read(path)?, args.speed);
        let name = path.display().to_string();
        if n_left_out > 0 {
            ui.note(&format!("{name}: {n_left_out} requests are too long for the pods, and left out"));
        }
        ensure!(!kept.is_empty(), "{name}: every request is too long for the pods");
        traces.push((name, kept));
    }
    Ok(traces)
}

impl Load<'_> {
    fn name(&self) -> &str {
        match self {
            Self::Drawn(workload) => workload.name,
            Self::Traced(name, _) => name,
        }
    }

    fn run(&self, policy: Policy, seed: u64) -> Result<Vec<Outcome>> {
        let world = World::try_new(workloads::fleet(policy, seed));
        let mut world = world.map_err(|error| anyhow!("{error}"))?;
        Ok(match self {
            Self::Drawn(workload) => {
                let mut load = Poisson::new(workload, seed);
                world.run(&mut load);
                load.finish()
            }
            Self::Traced(_, requests) => {
                let mut load = Replay::new(requests);
                world.run(&mut load);
                load.finish()
            }
        })
    }
}

fn cell(name: &'static str, policy: Policy, load: Load<'_>, args: &CompareArgs) -> Result<Cell> {
    let mut runs: [Vec<f64>; 6] = Default::default();
    for seed in 1..=u64::from(args.seeds) {
        let outcomes = load.run(policy, seed)?;
        let n_pods = workloads::PODS;
        let ttft: Vec<f64> =
            outcomes.iter().map(|outcome| (outcome.first_token_at - outcome.sent_at).as_secs_f64()).collect();
        let tpot: Vec<f64> = outcomes
            .iter()
            .map(|outcome| {
                let n_after = f64::from(outcome.output_tokens.saturating_sub(1).max(1));
                (outcome.ended_at - outcome.first_token_at).as_secs_f64() / n_after
            })
            .collect();
        let of = |part: fn(&Outcome) -> u32| outcomes.iter().map(|one| f64::from(part(one))).sum::<f64>();
        let busiest =
            (0..n_pods).map(|pod| outcomes.iter().filter(|outcome| outcome.pod_idx == pod).count()).max();
        let values = [
            mean(&ttft).unwrap_or(0.0),
            quantile(&ttft, 0.5).unwrap_or(0.0),
            quantile(&ttft, 0.99).unwrap_or(0.0),
            mean(&tpot).unwrap_or(0.0),
            of(|outcome| outcome.cached_tokens) / of(|outcome| outcome.prompt_tokens).max(1.0),
            as_f64(busiest.unwrap_or(0)) * as_f64(n_pods) / as_f64(outcomes.len().max(1)),
        ];
        runs.iter_mut().zip(values).for_each(|(run, value)| run.push(value));
    }
    let [ttft_mean, ttft_p50, ttft_p99, tpot_mean, hit_ratio, imbalance] = runs.map(|run| Estimate::of(&run));
    Ok(Cell { policy: name, ttft_mean, ttft_p50, ttft_p99, tpot_mean, hit_ratio, imbalance })
}

impl Estimate {
    fn of(sample: &[f64]) -> Self {
        const Z: f64 = 1.96;
        let middle = mean(sample).unwrap_or(0.0);
        let n = as_f64(sample.len());
        let squares: f64 = sample.iter().map(|value| (value - middle).powi(2)).sum();
        let half_width = if n > 1.0 { Z * (squares / (n - 1.0) / n).sqrt() } else { 0.0 };
        Self { mean: middle, half_width }
    }
}

impl Row {
    fn best(&self) -> f64 {
        let routers = self.cells.iter().filter(|cell| cell.policy != ORACLE);
        routers.map(|cell| cell.ttft_mean.mean).fold(f64::INFINITY, f64::min)
    }

    /// By how much the default's mean TTFT is above the best one's.
    fn excess(&self) -> f64 {
        self.cells.first().map_or(0.0, |cell| cell.ttft_mean.mean / self.best() - 1.0)
    }
}

fn text(rows: &[Row], args: &CompareArgs) -> String {
    let mut text = String::new();
    for row in rows {
        let mut table = new_table(
            &[&row.workload, "TTFT mean", "p50", "p99", "per token", "hit ratio", "busiest by mean"],
            1,
        );
        for cell in &row.cells {
            let Cell { policy, ttft_mean, ttft_p50, ttft_p99, tpot_mean, hit_ratio, imbalance } = cell;
            let Estimate { mean, half_width } = ttft_mean;
            let mark = if *mean <= row.best() { " *" } else { "" };
            table.add_row([
                (*policy).to_owned(),
                format!("{mean:.3} ± {half_width:.3} s{mark}"),
                format!("{:.3} s", ttft_p50.mean),
                format!("{:.2} s", ttft_p99.mean),
                format!("{:.0} ms", tpot_mean.mean * 1e3),
                format!("{:.0} %", hit_ratio.mean * 100.0),
                format!("{:.2}", imbalance.mean),
            ]);
        }
        let excess = row.excess() * 100.0;
        text += &format!("{table}\nthe default is {excess:.1} % above the best\n\n");
    }
    text + &format!("{} seeds each, ± 95 % confidence of the mean; * the best mean TTFT\n", args.seeds)
}

fn document(rows: &[Row], args: &CompareArgs) -> Value {
    let workloads: Vec<Value> = rows
        .iter()
        .map(|row| json!({"workload": row.workload, "default_above_best": row.excess(), "policies": row.cells}))
        .collect();
    json!({"seeds": args.seeds, "margin": MARGIN, "workloads": workloads})
}

#[cfg(test)]
mod tests {
    use super::Estimate;

    #[test]
    fn an_interval_covers_the_scatter_of_the_seeds() {
        let estimate = Estimate::of(&[1.0, 2.0, 3.0]);
        assert!(
            (estimate.mean - 2.0).abs() < 1e-12 && (estimate.half_width - 1.96 / 3.0_f64.sqrt()).abs() < 1e-9
        );
        assert!(Estimate::of(&[5.0]).half_width < 1e-12);
    }
}
