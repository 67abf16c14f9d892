//! Expected order of the policies, as others have found for these workloads. A comparison with another order measures
//! something else.

use serde::Serialize;

use crate::compare::matrix::{Cell, WorkloadRow};

/// Seeds that are needed to rank; means over fewer may be in any order.
const MIN_SEEDS: u32 = 3;

/// The figure by which policies are ranked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    Ttft,
    Itl,
}

/// Order of the policies of one workload at load 1, from the lowest mean to the highest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Expected {
    workload: &'static str,
    figure: Figure,
    order: &'static [&'static str],
}

const DEFAULT: &str = "prefix (default)";
const PURE: &str = "prefix, never spilling";
const GUARDED: &str = "prefix, guarded";
const ROUND_ROBIN: &str = "round robin";
const LEAST_REQUEST: &str = "least request";

const EXPECTED: [Expected; 8] = [
    // The caches of all pods together hold what the cache of one pod cannot.
    Expected {
        workload: "cache thrash",
        figure: Figure::Ttft,
        order: &[DEFAULT, GUARDED, ROUND_ROBIN, LEAST_REQUEST],
    },
    Expected {
        workload: "long documents",
        figure: Figure::Ttft,
        order: &[DEFAULT, ROUND_ROBIN, LEAST_REQUEST],
    },
    Expected {
        workload: "long documents, half the rate",
        figure: Figure::Ttft,
        order: &[DEFAULT, ROUND_ROBIN, LEAST_REQUEST],
    },
    // Most requests share one prefix, which is too much for one pod: sending all of them there slows every answer down.
    Expected { workload: "hot prefix", figure: Figure::Ttft, order: &[DEFAULT, GUARDED, LEAST_REQUEST] },
    Expected { workload: "hot prefix", figure: Figure::Itl, order: &[DEFAULT, LEAST_REQUEST, PURE] },
    Expected {
        workload: "hot prefix, less load",
        figure: Figure::Ttft,
        order: &[DEFAULT, PURE, GUARDED, ROUND_ROBIN, LEAST_REQUEST],
    },
    // If requests share nothing, the picker must not be worse than Envoy's own policy.
    Expected { workload: "no sharing", figure: Figure::Ttft, order: &[DEFAULT, LEAST_REQUEST] },
    Expected { workload: "no sharing", figure: Figure::Ttft, order: &[ROUND_ROBIN, LEAST_REQUEST] },
];

/// An expectation, and what was seen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ranking {
    pub workload: &'static str,
    pub figure: Figure,
    /// Policies in the expected order.
    pub policies: &'static [&'static str],
    /// Means in seconds, in the same order.
    pub means: Vec<f64>,
    pub holds: bool,
}

/// Returns the rankings of the workloads that were run at load 1, if there are enough seeds.
pub fn rankings(rows: &[WorkloadRow], seeds: u32) -> Vec<Ranking> {
    let expected = EXPECTED.iter().filter(|_| seeds >= MIN_SEEDS);
    expected
        .filter_map(|expected| ranking(rows.iter().find(|row| row.workload == expected.workload)?, expected))
        .collect()
}

fn ranking(row: &WorkloadRow, expected: &Expected) -> Option<Ranking> {
    let Expected { workload, figure, order } = *expected;
    let cells = row.by_load().find(|cells| cells.iter().all(|cell| (cell.load - 1.0).abs() < 1e-9))?;
    let mean = |cell: &Cell| match figure {
        Figure::Ttft => cell.ttft.mean.mean,
        Figure::Itl => cell.itl.mean.mean,
    };
    let of = |policy: &&str| cells.iter().find(|cell| cell.policy == *policy).map(mean);
    let means = order.iter().map(of).collect::<Option<Vec<f64>>>()?;
    let holds = means.windows(2).all(|pair| pair[0] < pair[1]);
    Some(Ranking { workload, figure, policies: order, means, holds })
}

impl Ranking {
    /// Describes the ranking in one line.
    pub fn text(&self) -> String {
        let Self { workload, figure, policies, means, holds } = self;
        let name = match figure {
            Figure::Ttft => "TTFT",
            Figure::Itl => "ITL",
        };
        let order: Vec<String> =
            policies.iter().zip(means).map(|(policy, mean)| format!("{policy} {mean:.3} s")).collect();
        let verdict = if *holds { "ok" } else { "FAILED" };
        format!("{verdict}: {workload}, {name}: {}", order.join(" < "))
    }
}

#[cfg(test)]
mod tests {
    use super::{DEFAULT, EXPECTED, Figure, LEAST_REQUEST, rankings};
    use crate::compare::matrix::{Cell, Estimate, POLICIES, Spread, WorkloadRow};
    use crate::compare::workloads::WORKLOADS;

    fn cell(policy: &'static str, load: f64, seconds: f64) -> Cell {
        let estimate = Estimate { mean: seconds, half_width: 0.0 };
        let spread = Spread { mean: estimate, p50: estimate, p90: estimate, p99: estimate };
        let [hit_ratio, regret, imbalance] = [estimate; 3];
        Cell { policy, load, ttft: spread, itl: spread, hit_ratio, regret, imbalance }
    }

    fn row(load: f64, seconds: impl Fn(&str) -> f64) -> WorkloadRow {
        let cells = POLICIES.iter().map(|(policy, _)| cell(policy, load, seconds(policy))).collect();
        WorkloadRow { workload: "no sharing".to_owned(), cells, knees: Vec::new(), details: Vec::new() }
    }

    #[test]
    fn an_order_that_is_not_the_expected_one_fails() {
        let holds = |row: WorkloadRow, seeds| {
            rankings(&[row], seeds).iter().map(|ranking| ranking.holds).collect::<Vec<bool>>()
        };
        let right = |policy: &str| if policy == LEAST_REQUEST { 2.0 } else { 1.0 };
        assert_eq!(holds(row(1.0, right), 3), [true, true]);
        assert_eq!(
            holds(row(1.0, |policy| if policy == DEFAULT { 3.0 } else { right(policy) }), 3),
            [false, true]
        );
        assert_eq!(holds(row(1.0, |_| 1.0), 3), [false, false], "equal is not before");
        assert!(holds(row(0.5, right), 3).is_empty(), "it is of load 1");
        assert!(holds(row(1.0, right), 2).is_empty(), "too few seeds");
    }

    #[test]
    fn a_default_that_is_slower_than_the_best_router_is_above_it() {
        let seconds = |policy: &str| if policy == DEFAULT { 1.2 } else { 1.0 };
        assert!((row(1.0, seconds).excess() - 0.2).abs() < 1e-9);
        assert!(row(1.0, |policy| if policy == "oracle" { 0.1 } else { 1.0 }).excess() < 1e-9);
    }

    #[test]
    fn what_is_expected_names_workloads_and_policies() {
        for expected in &EXPECTED {
            assert!(WORKLOADS.iter().any(|workload| workload.name == expected.workload), "{expected:?}");
            let is_policy = |name: &&str| POLICIES.iter().any(|(policy, _)| policy == name);
            assert!(expected.order.iter().all(is_policy), "{expected:?}");
        }
        assert_eq!(EXPECTED.iter().filter(|one| one.figure == Figure::Itl).count(), 1);
    }
}
