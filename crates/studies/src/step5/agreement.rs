//! Compares a run through the real Envoy with the same run in virtual time: the load, the picks and the times must
//! agree.

use load::stats::as_f64;

use crate::step5::judge::{Figures, Line, exactly, tokens};

/// Largest relative difference of 8081's mean TTFT.
const SHARE: f64 = 0.005;
/// Further seconds that the machine itself may take for a request in client, Envoy, picker and server. They are
/// multiplied by the time scale.
const MACHINE: f64 = 0.0022;

/// The runs that are compared; 8080 comes first.
#[derive(Clone, Copy, Debug)]
pub struct Pair<'a> {
    pub simulated: &'a [Figures; 2],
    pub real: &'a [Figures; 2],
    pub time_scale: f64,
}

impl Pair<'_> {
    pub fn lines(&self) -> Vec<Line> {
        let Self { simulated: [_, simulated], real: [plain, picked], time_scale } = self;
        let both = |name, of: fn(&Figures) -> f64| {
            let expected = of(simulated);
            Line::each(name, Some(expected), exactly(expected), vec![of(plain), of(picked)])
        };
        let n_requests = as_f64(simulated.summary.n_finished);
        let n_sessions = as_f64(simulated.sessions);
        let ttft = simulated.summary.ttft;
        vec![
            both("requests", |figures| as_f64(figures.summary.n_finished)),
            both("sessions", |figures| as_f64(figures.sessions)),
            both("input tokens", |figures| tokens(figures.input_tokens)),
            both("output tokens", |figures| tokens(figures.output_tokens)),
            // Envoy draws pods at random, and every session's first request is cold with any draw.
            Line::each("8080: cold requests", None, (n_sessions, n_requests), vec![as_f64(plain.cold)]),
            Line::each(
                "8081: cold requests",
                Some(as_f64(simulated.cold)),
                exactly(as_f64(simulated.cold)),
                vec![as_f64(picked.cold)],
            ),
            Line::each(
                "8081: requests on the same pod",
                Some(n_requests),
                exactly(n_requests),
                vec![as_f64(n_alike(&simulated.picks, &picked.picks))],
            ),
            Line::each(
                "8081: TTFT, mean [s]",
                Some(ttft),
                (ttft * (1.0 - SHARE), ttft * (1.0 + SHARE) + MACHINE * time_scale),
                vec![picked.summary.ttft],
            ),
        ]
    }
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
    use sim::model::ServedModel;

    use super::{Pair, n_alike};
    use crate::step5::judge::Figures;
    use crate::step5::side::{PolicyName, Side};
    use crate::step5::{SHORT, entries};

    #[test]
    fn pods_are_alike_under_other_numbers() {
        assert_eq!(n_alike(&[1, 0, 1, 2], &[0, 2, 0, 1]), 4);
        assert_eq!(n_alike(&[0, 0, 1], &[0, 1, 1]), 2);
        assert_eq!(n_alike(&[0, 0], &[]), 0);
    }

    /// Returns the names of the lines that a run of 8081 fails when compared with the simulated run of seed 1.
    fn failing(policy: PolicyName, seed: u64) -> Vec<&'static str> {
        let (entries, model) = (entries(None).unwrap(), ServedModel::qwen25().unwrap());
        let run = |policy, seed| -> Figures {
            let mut side = Side { jitter: 0.0, ..Side::published(policy, seed) };
            side.command.duration = SHORT;
            side.run(&entries, &model).unwrap()
        };
        let plain = run(PolicyName::LeastRequest, 1);
        let simulated = [plain.clone(), run(PolicyName::Prefix, 1)];
        let real = [plain, run(policy, seed)];
        let lines = Pair { simulated: &simulated, real: &real, time_scale: 1.0 }.lines();
        lines.iter().filter(|line| !line.holds()).map(|line| line.name).collect()
    }

    #[test]
    fn other_routers_and_other_draws_do_not_agree() {
        assert_eq!(failing(PolicyName::Prefix, 1), Vec::<&str>::new());
        assert_eq!(failing(PolicyName::Prefix, 2), ["8081: requests on the same pod"]);
        for policy in [PolicyName::LeastRequest, PolicyName::RoundRobin, PolicyName::NeverNoted] {
            let failing = failing(policy, 1);
            assert!(failing.contains(&"8081: cold requests"), "{policy:?}: {failing:?}");
        }
    }
}
