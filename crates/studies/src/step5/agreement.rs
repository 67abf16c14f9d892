//! Compares a run through the real Envoy with the same run in virtual time: the load, the picks and the times must
//! agree.

use anyhow::Result;
use load::output;
use load::stats::{as_f64, mean, median};

use crate::step5::judge::{Figures, TableLine, Timed, exactly, tokens};

/// Largest relative difference of a TTFT on 8081.
const SHARE: f64 = 0.005;
/// Further seconds that the machine itself may take for a request in client, Envoy, picker and server: an idle laptop
/// takes a third of them. They are multiplied by the time scale.
const MACHINE: f64 = 0.008;

/// The runs that are compared; 8080 comes first.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    pub simulated: &'a [Figures; 2],
    pub real: &'a [Figures; 2],
    pub time_scale: f64,
}

/// The run that counts.
#[derive(Debug, PartialEq)]
pub struct Agreed<R> {
    pub run: R,
    pub agreement: Vec<TableLine>,
    /// Lines that each earlier attempt failed.
    pub earlier: Vec<Vec<&'static str>>,
}

/// Repeats a run until all its lines hold, at most `n_attempts` times, and returns the last one; `None` if it is
/// interrupted.
///
/// # Errors
/// Errors of the run.
pub async fn until_agreed<R>(
    n_attempts: usize,
    mut run: impl AsyncFnMut() -> Result<Option<(Vec<TableLine>, R)>>,
) -> Result<Option<Agreed<R>>> {
    let mut earlier = Vec::new();
    while let Some((agreement, run)) = run().await? {
        let failed: Vec<_> = agreement.iter().filter(|line| !line.holds()).map(|line| line.name).collect();
        let attempt = earlier.len() + 1;
        if failed.is_empty() || attempt >= n_attempts {
            return Ok(Some(Agreed { run, agreement, earlier }));
        }
        output::talk(&format!(
            "attempt {attempt} of {n_attempts} does not agree with virtual time, so it is repeated: {}",
            failed.join(", ")
        ));
        earlier.push(failed);
    }
    Ok(None)
}

impl Pair<'_> {
    pub fn lines(&self) -> Vec<TableLine> {
        let Self { simulated: [_, simulated], real: [plain, picked], time_scale } = self;
        let both = |name, of: fn(&Figures) -> f64| {
            let expected = of(simulated);
            TableLine::each(name, Some(expected), exactly(expected), vec![of(plain), of(picked)])
        };
        let n_requests = as_f64(simulated.summary.n_finished);
        let n_sessions = as_f64(simulated.sessions);
        let mut lines = vec![
            both("requests", |figures| as_f64(figures.summary.n_finished)),
            both("sessions", |figures| as_f64(figures.sessions)),
            both("input tokens", |figures| tokens(figures.input_tokens)),
            both("output tokens", |figures| tokens(figures.output_tokens)),
            // Envoy draws pods at random, and every session's first request is cold with any draw.
            TableLine::each(
                "8080: cold requests",
                None,
                (n_sessions, n_requests),
                vec![as_f64(plain.n_cold())],
            ),
            TableLine::each(
                "8081: cold requests",
                Some(as_f64(simulated.n_cold())),
                exactly(as_f64(simulated.n_cold())),
                vec![as_f64(picked.n_cold())],
            ),
            TableLine::each(
                "8081: requests on the same pod",
                Some(n_requests),
                exactly(n_requests),
                vec![as_f64(n_alike(&simulated.picks, &picked.picks))],
            ),
        ];
        let pair = (simulated, picked);
        lines.extend(later("8081: cold TTFT, later by [s]", pair, Timed::is_cold, *time_scale));
        lines.extend(later("8081: warm TTFT, later by [s]", pair, |one| !one.is_cold(), *time_scale));
        lines
    }
}

/// Returns the line about the requests of one kind: the median of the seconds by which their first tokens came later
/// than simulated; `None` if the simulated run has no such request. A machine that stops for a moment delays a few requests, and leaves the median where it is.
fn later(
    name: &'static str,
    (simulated, real): (&Figures, &Figures),
    is_of_kind: fn(&Timed) -> bool,
    time_scale: f64,
) -> Option<TableLine> {
    let pairs = simulated.requests.iter().zip(&real.requests).filter(|(simulated, _)| is_of_kind(simulated));
    let (ttfts, later): (Vec<f64>, Vec<f64>) =
        pairs.map(|(simulated, real)| (simulated.ttft, real.ttft - simulated.ttft)).unzip();
    let share = SHARE * mean(&ttfts).unwrap_or(0.0);
    let band = (-share, share + MACHINE * time_scale);
    let is_there = simulated.requests.iter().any(is_of_kind);
    is_there.then(|| TableLine::each(name, None, band, median(&later).into_iter().collect()))
}

/// Returns the number of requests whose pods have the same number, if pods are numbered by first use.
fn n_alike(one: &[usize], other: &[usize]) -> usize {
    let by_first_use = |picks: &[usize]| {
        let mut order = Vec::new();
        let number = |pick: &usize| {
            order.iter().position(|known| known == pick).unwrap_or_else(|| {
                order.push(*pick);
                order.len() - 1
            })
        };
        picks.iter().map(number).collect::<Vec<usize>>()
    };
    by_first_use(one).iter().zip(&by_first_use(other)).filter(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use sim::model::ChatModel;

    use super::{Agreed, Pair, n_alike, until_agreed};
    use crate::step5::judge::{Figures, TableLine, Timed};
    use crate::step5::side::{PolicyName, Side};
    use crate::step5::{SHORT, entries};

    /// Returns the number of attempts, of three at most, the number of them that did not count, and whether the last
    /// one agrees, if all attempts from the given one on do.
    async fn attempts(first_good: usize) -> (usize, usize, bool) {
        let mut n_attempts = 0;
        let agreed = until_agreed(3, async || {
            n_attempts += 1;
            let holds = n_attempts >= first_good;
            Ok(Some((
                vec![TableLine::each("requests", None, (1.0, 1.0), vec![if holds { 1.0 } else { 0.0 }])],
                (),
            )))
        });
        let Agreed { agreement, earlier, .. } = agreed.await.unwrap().unwrap();
        (n_attempts, earlier.len(), agreement.iter().all(TableLine::holds))
    }

    #[tokio::test]
    async fn a_run_that_never_agrees_fails_after_three_attempts() {
        assert_eq!(attempts(1).await, (1, 0, true));
        assert_eq!(attempts(3).await, (3, 2, true));
        assert_eq!(attempts(4).await, (3, 2, false));
        let interrupted = until_agreed(3, async || Ok(None::<(Vec<TableLine>, ())>)).await.unwrap();
        assert_eq!(interrupted, None);
    }

    #[test]
    fn pods_are_alike_under_other_numbers() {
        assert_eq!(n_alike(&[1, 0, 1, 2], &[0, 2, 0, 1]), 4);
        assert_eq!(n_alike(&[0, 0, 1], &[0, 1, 1]), 2);
        assert_eq!(n_alike(&[0, 0], &[]), 0);
    }

    /// Returns the figures of a simulated run without jitter.
    fn run(policy: PolicyName, seed: u64) -> Figures {
        let (entries, model) = (entries(None).unwrap(), ChatModel::qwen25().unwrap());
        let mut side = Side { jitter: 0.0, ..Side::published(policy, seed) };
        side.command.duration = SHORT;
        side.run(&entries, &model).unwrap()
    }

    /// Returns the names of the lines that a run of 8081 fails when compared with the simulated run of seed 1.
    fn failing(picked: Figures) -> Vec<&'static str> {
        let plain = run(PolicyName::LeastRequest, 1);
        let simulated = [plain.clone(), run(PolicyName::Prefix, 1)];
        let lines = Pair { simulated: &simulated, real: &[plain, picked], time_scale: 1.0 }.lines();
        lines.iter().filter(|line| !line.holds()).map(|line| line.name).collect()
    }

    #[test]
    fn a_slower_engine_does_not_agree_and_a_stalled_machine_does() {
        if test_skips::skips_slow() {
            return;
        }
        let delayed = |delay: fn(usize, &mut Timed)| {
            let mut picked = run(PolicyName::Prefix, 1);
            picked.requests.iter_mut().enumerate().for_each(|(idx, request)| delay(idx, request));
            failing(picked)
        };
        let stalled = delayed(|idx, request| request.ttft += if idx % 4 == 0 { 1.0 } else { 0.0 });
        assert_eq!(stalled, Vec::<&str>::new());
        let slow_prefill = delayed(|_, request| request.ttft *= if request.is_cold() { 1.02 } else { 1.0 });
        assert_eq!(slow_prefill, ["8081: cold TTFT, later by [s]"]);
        let slow_start = delayed(|_, request| request.ttft += if request.is_cold() { 0.0 } else { 0.01 });
        assert_eq!(slow_start, ["8081: warm TTFT, later by [s]"]);
        let fast = delayed(|_, request| request.ttft *= 0.98);
        assert_eq!(fast, ["8081: cold TTFT, later by [s]", "8081: warm TTFT, later by [s]"]);
    }

    #[test]
    fn prompts_without_a_warm_request_are_judged_by_the_cold_ones() {
        let mut picked = run(PolicyName::Prefix, 1);
        picked.requests.iter_mut().for_each(|request| request.cached_tokens = 0);
        let lines = Pair {
            simulated: &[picked.clone(), picked.clone()],
            real: &[picked.clone(), picked],
            time_scale: 1.0,
        }
        .lines();
        let names: Vec<&str> =
            lines.iter().map(|line| line.name).filter(|name| name.contains("TTFT")).collect();
        assert_eq!(names, ["8081: cold TTFT, later by [s]"]);
        assert!(lines.iter().all(TableLine::holds));
    }

    #[test]
    fn other_routers_and_other_draws_do_not_agree() {
        if test_skips::skips_slow() {
            return;
        }
        assert_eq!(failing(run(PolicyName::Prefix, 1)), Vec::<&str>::new());
        assert_eq!(failing(run(PolicyName::Prefix, 2)), ["8081: requests on the same pod"]);
        for policy in [PolicyName::LeastRequest, PolicyName::RoundRobin, PolicyName::NeverNoted] {
            let failing = failing(run(policy, 1));
            assert!(failing.contains(&"8081: cold requests"), "{policy:?}: {failing:?}");
        }
    }
}
