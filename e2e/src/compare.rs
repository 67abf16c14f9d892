//! `e2e compare`: policies against workloads that tell good routers from bad ones, in virtual time.

pub mod workloads;

use anyhow::{Result, anyhow};
use serde::Serialize;
use serde_json::{Value, json};
use sim::router::Policy;
use sim::world::World;

use self::workloads::{Poisson, WORKLOADS, Workload};
use crate::cli::{CompareArgs, End};
use crate::report::summary::new_table;
use crate::stats::{as_f64, mean, quantile};
use crate::ui::{self, Ui};

/// A policy and what it is called.
type Named = (&'static str, fn() -> Policy);

/// What is compared: the picker's default, what pure affinity would do, and what proxies do without a picker.
const POLICIES: [Named; 6] = [
    ("prefix (default)", Policy::prefix),
    ("prefix, never spilling", Policy::prefix_pure),
    ("load", || Policy::Load),
    ("least request", || Policy::LeastRequest),
    ("round robin", || Policy::RoundRobin),
    ("random", || Policy::Random),
];
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
    workload: &'static str,
    cells: Vec<Cell>,
}

pub fn run(args: &CompareArgs) -> Result<End> {
    let ui = Ui::new(false);
    let mut rows = Vec::new();
    for workload in WORKLOADS.iter().filter(|workload| workload.is_wanted(&args.only)) {
        ui.step(&format!("{}: {} policies, {} seeds", workload.name, POLICIES.len(), args.seeds));
        let cells = POLICIES.iter().map(|(name, policy)| cell(name, policy(), workload, args));
        rows.push(Row { workload: workload.name, cells: cells.collect::<Result<_>>()? });
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

fn cell(name: &'static str, policy: Policy, workload: &Workload, args: &CompareArgs) -> Result<Cell> {
    let mut runs: [Vec<f64>; 6] = Default::default();
    for seed in 1..=u64::from(args.seeds) {
        let fleet = workload.fleet(policy, seed);
        let n_pods = fleet.n_pods;
        let mut load = Poisson::new(workload, seed);
        let mut world = World::try_new(fleet).map_err(|error| anyhow!("{error}"))?;
        world.run(&mut load);
        let outcomes = load.finish();
        let ttft: Vec<f64> =
            outcomes.iter().map(|outcome| (outcome.first_token_at - outcome.sent_at).as_secs_f64()).collect();
        let tpot: Vec<f64> = outcomes
            .iter()
            .map(|outcome| {
                let n_after = f64::from(outcome.output_tokens.saturating_sub(1).max(1));
                (outcome.ended_at - outcome.first_token_at).as_secs_f64() / n_after
            })
            .collect();
        let of = |part: fn(&sim::world::Outcome) -> u32| {
            outcomes.iter().map(|one| f64::from(part(one))).sum::<f64>()
        };
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
        self.cells.iter().map(|cell| cell.ttft_mean.mean).fold(f64::INFINITY, f64::min)
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
            &[row.workload, "TTFT mean", "p50", "p99", "per token", "hit ratio", "busiest by mean"],
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
