//! Tests of the fleet: its times are the model's, its runs repeat, and no request is lost.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod calibrate;
mod picks;

use std::time::Duration;

use sim::model::{ChatModel, Message};
use sim::pod::PodConfig;
use sim::router::RouterPolicy;
use sim::simulation::{
    Fleet, Outcome, RefusedRequest, Responses, SCRAPE_INTERVAL, SimRequest, Simulation, Workload,
};

/// Requests at fixed moments.
struct Planned {
    requests: Vec<(Duration, SimRequest)>,
    next_idx: usize,
    outcomes: Vec<Outcome>,
    refusals: Vec<RefusedRequest>,
}

impl Workload for Planned {
    fn next_due(&mut self, _now: Duration) -> Option<Duration> {
        self.requests.get(self.next_idx).map(|(at, _)| *at)
    }

    fn due(&mut self, now: Duration) -> Vec<(u64, SimRequest)> {
        let mut due = Vec::new();
        while let Some((_, request)) = self.requests.get(self.next_idx).filter(|(at, _)| *at <= now) {
            due.push((self.next_idx as u64, request.clone()));
            self.next_idx += 1;
        }
        due
    }

    fn ended(&mut self, outcome: &Outcome) {
        self.outcomes.push(*outcome);
    }

    fn refused(&mut self, refusal: RefusedRequest) {
        self.refusals.push(refusal);
    }
}

impl Planned {
    fn new(requests: &[(u64, SimRequest)]) -> Self {
        let requests = requests.iter().map(|(at, request)| (Duration::from_millis(*at), request.clone()));
        Self { requests: requests.collect(), next_idx: 0, outcomes: Vec::new(), refusals: Vec::new() }
    }
}

fn request(first_token: u32, n_tokens: u32, n_output: usize) -> SimRequest {
    let prompt: Vec<u32> = (first_token..first_token + n_tokens).collect();
    let text = prompt.iter().map(|id| format!("{id:05} ")).collect();
    SimRequest { text, user: None, prompt, output: vec![7; n_output] }
}

fn fleet(policy: RouterPolicy, n_pods: usize, (jitter, seed): (f64, u64)) -> Fleet {
    let pod = PodConfig::preset("a10-doc", true, jitter).unwrap();
    Fleet {
        pod,
        n_pods,
        policy,
        index_block: None,
        scrape_interval: SCRAPE_INTERVAL,
        responses: Responses::Through,
        in_detail: true,
        seed,
    }
}

fn simulation(policy: RouterPolicy, n_pods: usize, seeds: (f64, u64)) -> Simulation {
    Simulation::try_new(fleet(policy, n_pods, seeds)).unwrap()
}

fn run(
    policy: RouterPolicy,
    n_pods: usize,
    (jitter, seed): (f64, u64),
    requests: &[(u64, SimRequest)],
) -> Vec<Outcome> {
    let mut planned = Planned::new(requests);
    simulation(policy, n_pods, (jitter, seed)).run(&mut planned);
    planned.outcomes.sort_by_key(|outcome| outcome.id);
    planned.outcomes
}

/// Check values of the published model: a cold first turn of 2,176 tokens, and a warm one with 46 new tokens.
#[test]
fn an_idle_pod_takes_what_the_latency_model_says() {
    let cold = request(0, 2176, 4);
    // The prompt has the same start, and 46 tokens more than its full blocks.
    let warm = SimRequest { prompt: (0..2222).collect(), ..request(0, 2222, 4) };
    let outcomes = run(RouterPolicy::prefix(), 1, (0.0, 1), &[(0, cold), (60_000, warm)]);
    let ttft = |outcome: &Outcome| (outcome.first_token_at - outcome.sent_at).as_secs_f64();
    assert!((ttft(&outcomes[0]) - 0.690).abs() < 0.690 * 0.02, "{}", ttft(&outcomes[0]));
    assert!((ttft(&outcomes[1]) - 0.119).abs() < 0.119 * 0.02, "{}", ttft(&outcomes[1]));
    assert_eq!((outcomes[0].cached_tokens, outcomes[1].cached_tokens), (0, 2176));
}

#[test]
fn one_seed_is_one_run_and_nothing_is_lost() {
    if test_skips::skips_slow() {
        return;
    }
    let requests: Vec<(u64, SimRequest)> =
        (0..200_u32).map(|n| (u64::from(n) * 37, request(n % 13 * 5000, 300 + n % 7 * 40, 5))).collect();
    for policy in [
        RouterPolicy::prefix(),
        RouterPolicy::LeastRequest,
        RouterPolicy::Random,
        RouterPolicy::RoundRobin,
        RouterPolicy::Load,
    ] {
        let once = run(policy, 3, (0.03, 5), &requests);
        assert_eq!(once.len(), requests.len());
        assert_eq!(once, run(policy, 3, (0.03, 5), &requests));
        assert_ne!(once, run(policy, 3, (0.03, 6), &requests));
        assert!(once.iter().all(|outcome| outcome.sent_at < outcome.first_token_at));
        assert!(once.iter().all(|outcome| outcome.first_token_at < outcome.ended_at));
    }
}

/// Mean time to the first token of requests that do not share prefixes and that load the fleet well.
fn mean_time_to_first_token(responses: Responses, scrape_interval: Duration) -> Duration {
    let requests: Vec<(u64, SimRequest)> =
        (0..300_u32).map(|n| (u64::from(n) * 150, request(n * 5000, 300 + n % 7 * 400, 60))).collect();
    let mut planned = Planned::new(&requests);
    let fleet = Fleet { responses, scrape_interval, ..fleet(RouterPolicy::prefix(), 5, (0.03, 5)) };
    Simulation::try_new(fleet).unwrap().run(&mut planned);
    assert_eq!(planned.outcomes.len(), requests.len());
    let times = planned.outcomes.iter().map(|outcome| outcome.first_token_at - outcome.sent_at);
    times.sum::<Duration>() / 300
}

#[test]
fn answers_past_the_picker_cost_little() {
    if test_skips::skips_slow() {
        return;
    }
    let through = mean_time_to_first_token(Responses::Through, SCRAPE_INTERVAL);
    assert_eq!(mean_time_to_first_token(Responses::Observed { bodies: 1.0 }, SCRAPE_INTERVAL), through);
    for bodies in [0.1, 0.0] {
        let past = mean_time_to_first_token(Responses::Observed { bodies }, SCRAPE_INTERVAL);
        assert!(past < through.mul_f64(1.02), "{bodies}: {past:?}, through the picker {through:?}");
    }
    // Control: a router that scrapes too seldom to hear the engines' counts takes prompts for work until their answers
    // end.
    let seldom = Duration::from_secs(3600);
    let unseen = mean_time_to_first_token(Responses::Observed { bodies: 0.0 }, seldom);
    let seen = mean_time_to_first_token(Responses::Through, seldom);
    assert!(unseen > seen.mul_f64(1.05), "{unseen:?}, seen {seen:?}");
}

#[test]
fn a_prefix_stays_with_its_pod_and_chance_does_not_keep_it() {
    let requests: Vec<(u64, SimRequest)> =
        (0..60_u32).map(|n| (u64::from(n) * 2000, request(n % 6 * 5000, 800 + n, 3))).collect();
    let cold = |policy| {
        let outcomes = run(policy, 4, (0.0, 3), &requests);
        outcomes.iter().filter(|outcome| outcome.cached_tokens < 500).count()
    };
    assert_eq!(cold(RouterPolicy::prefix()), 6);
    assert!(cold(RouterPolicy::Random) > 12);
}

/// The prompt of the next turn extends that of this one, as on the servers.
#[test]
fn a_conversation_has_the_servers_tokens() {
    let model = ChatModel::qwen25().unwrap();
    let message = |role, content: &str| Message { role, content: content.to_owned() };
    let question = message("user", "Why is the sky blue?");
    let prompt = model.prompt(std::slice::from_ref(&question)).unwrap();
    let reply = model.reply(&prompt, &question.content, 8);
    assert!((1..=8).contains(&reply.tokens.len()) && !reply.text.is_empty());
    let longer =
        model.prompt(&[question, message("assistant", &reply.text), message("user", "And?")]).unwrap();
    assert_eq!(longer[..prompt.len()], prompt[..], "the next turn extends this one");
}

/// Returns six prompts in turn, repeated; each pod of the fleet has room for two of them.
fn rotation() -> Vec<(u64, SimRequest)> {
    (0..120_u32).map(|n| (u64::from(n) * 1000, request(n % 6 * 5000, 1000 + n, 3))).collect()
}

/// A policy that knows the engines' caches never misses a prefix that another pod has; random picks often do.
#[test]
fn who_knows_the_caches_regrets_nothing() {
    if test_skips::skips_slow() {
        return;
    }
    let regret = |policy| {
        let outcomes = run(policy, 3, (0.0, 2), &rotation());
        outcomes.iter().map(|outcome| outcome.regret_tokens.unwrap()).sum::<u32>()
    };
    assert_eq!(regret(RouterPolicy::precise()), 0);
    assert_eq!(regret(RouterPolicy::Oracle), 0);
    assert!(regret(RouterPolicy::Random) > 10_000);
}

/// Without other requests the oracle's forecast comes true, so its pick is the soonest of all pods.
#[test]
fn the_oracle_is_no_later_than_others_when_requests_come_alone() {
    if test_skips::skips_slow() {
        return;
    }
    let total = |policy| {
        let outcomes = run(policy, 3, (0.0, 2), &rotation());
        let ttft = |outcome: &Outcome| outcome.first_token_at - outcome.sent_at;
        outcomes.iter().map(ttft).sum::<Duration>()
    };
    let oracle = total(RouterPolicy::Oracle);
    for policy in [
        RouterPolicy::prefix(),
        RouterPolicy::precise(),
        RouterPolicy::guard(),
        RouterPolicy::Load,
        RouterPolicy::RoundRobin,
    ] {
        assert!(oracle <= total(policy), "{policy:?}: {:?} < {oracle:?}", total(policy));
    }
    assert!(oracle.mul_f64(1.1) < total(RouterPolicy::Random));
}

/// A burst with one prefix spreads to other pods; pure affinity keeps it on one.
#[test]
fn the_guard_relieves_a_busy_holder() {
    let burst: Vec<(u64, SimRequest)> =
        (0..40_u32).map(|n| (u64::from(n), request(0, 2000 + n, 50))).collect();
    let busiest = |policy| {
        let outcomes = run(policy, 4, (0.0, 2), &burst);
        (0..4).map(|pod| outcomes.iter().filter(|outcome| outcome.pod_idx == pod).count()).max().unwrap()
    };
    assert_eq!(busiest(RouterPolicy::prefix_pure()), 40);
    assert!(busiest(RouterPolicy::guard()) < 20);
}

/// Runs at most `n_events` events; returns true if the simulation came to its end.
fn comes_to_its_end(simulation: &mut Simulation, workload: &mut Planned, n_events: usize) -> bool {
    simulation.begin(workload);
    (0..n_events).any(|_| !simulation.advance(workload))
}

/// A prompt as long as the model's context is refused, reported once, and leaves no trace in the load. A prompt with
/// one token less is served.
#[test]
fn what_the_engine_refuses_is_told_and_the_run_ends() {
    const CONTEXT: u32 = 8192;
    let load = |n_tokens| -> Vec<(u64, SimRequest)> {
        vec![(0, request(0, 300, 3)), (1, request(10_000, n_tokens, 1)), (2000, request(0, 310, 3))]
    };
    for policy in [
        RouterPolicy::prefix(),
        RouterPolicy::precise(),
        RouterPolicy::guard(),
        RouterPolicy::Oracle,
        RouterPolicy::LeastRequest,
    ] {
        let run = |n_tokens| {
            let mut planned = Planned::new(&load(n_tokens));
            let mut simulation = simulation(policy, 2, (0.0, 1));
            assert!(comes_to_its_end(&mut simulation, &mut planned, 10_000), "{policy:?}: no end");
            planned
        };
        let (long, short) = (run(CONTEXT), run(CONTEXT - 1));
        let ids = |planned: &Planned| {
            let mut ids: Vec<u64> = planned.outcomes.iter().map(|outcome| outcome.id).collect();
            ids.sort_unstable();
            ids
        };
        assert_eq!((ids(&long), ids(&short)), (vec![0, 2], vec![0, 1, 2]), "{policy:?}");
        assert!(short.refusals.is_empty());
        assert!(
            matches!(&long.refusals[..], [RefusedRequest { id: 1, .. }]),
            "{policy:?}: {:?}",
            long.refusals
        );
        assert!(long.refusals[0].error.to_string().contains("8192"), "{}", long.refusals[0].error);
    }
}
