//! The fleet from outside: its times are the model's, its runs repeat, and nothing is lost in it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod calibrate;

use std::time::Duration;

use sim::model::{Message, ServedModel};
use sim::pod::PodConfig;
use sim::router::Policy;
use sim::world::{Fleet, Outcome, Request, Workload, World};

/// Requests at fixed moments.
struct Planned {
    requests: Vec<(Duration, Request)>,
    next_idx: usize,
    outcomes: Vec<Outcome>,
}

impl Workload for Planned {
    fn next_due(&mut self, _now: Duration) -> Option<Duration> {
        self.requests.get(self.next_idx).map(|(at, _)| *at)
    }

    fn due(&mut self, now: Duration) -> Vec<(u64, Request)> {
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
}

fn request(first_token: u32, n_tokens: u32, n_output: usize) -> Request {
    let prompt: Vec<u32> = (first_token..first_token + n_tokens).collect();
    let text = prompt.iter().map(|id| format!("{id:05} ")).collect();
    Request { text, user: None, prompt, output: vec![7; n_output] }
}

fn run(
    policy: Policy,
    n_pods: usize,
    (jitter, seed): (f64, u64),
    requests: &[(u64, Request)],
) -> Vec<Outcome> {
    let pod = PodConfig::preset("a10-doc", true, jitter).unwrap();
    let scrape_interval = Duration::from_millis(50);
    let mut world = World::try_new(Fleet {
        pod,
        n_pods,
        policy,
        index_block: None,
        scrape_interval,
        in_detail: true,
        seed,
    })
    .unwrap();
    let requests = requests.iter().map(|(at, request)| (Duration::from_millis(*at), request.clone()));
    let mut planned = Planned { requests: requests.collect(), next_idx: 0, outcomes: Vec::new() };
    world.run(&mut planned);
    planned.outcomes.sort_by_key(|outcome| outcome.id);
    planned.outcomes
}

/// The published model's own check values: a cold first turn of 2,176 tokens, a warm one of which 46 are new.
#[test]
fn an_idle_pod_takes_what_the_latency_model_says() {
    let cold = request(0, 2176, 4);
    // The same start, and 46 tokens more than its full blocks.
    let warm = Request { prompt: (0..2222).collect(), ..request(0, 2222, 4) };
    let outcomes = run(Policy::prefix(), 1, (0.0, 1), &[(0, cold), (60_000, warm)]);
    let ttft = |outcome: &Outcome| (outcome.first_token_at - outcome.sent_at).as_secs_f64();
    assert!((ttft(&outcomes[0]) - 0.690).abs() < 0.690 * 0.02, "{}", ttft(&outcomes[0]));
    assert!((ttft(&outcomes[1]) - 0.119).abs() < 0.119 * 0.02, "{}", ttft(&outcomes[1]));
    assert_eq!((outcomes[0].cached_tokens, outcomes[1].cached_tokens), (0, 2176));
}

#[test]
fn one_seed_is_one_run_and_nothing_is_lost() {
    let requests: Vec<(u64, Request)> =
        (0..200_u32).map(|n| (u64::from(n) * 37, request(n % 13 * 5000, 300 + n % 7 * 40, 5))).collect();
    for policy in [Policy::prefix(), Policy::LeastRequest, Policy::Random, Policy::RoundRobin, Policy::Load] {
        let once = run(policy, 3, (0.03, 5), &requests);
        assert_eq!(once.len(), requests.len());
        assert_eq!(once, run(policy, 3, (0.03, 5), &requests));
        assert_ne!(once, run(policy, 3, (0.03, 6), &requests));
        assert!(once.iter().all(|outcome| outcome.sent_at < outcome.first_token_at));
        assert!(once.iter().all(|outcome| outcome.first_token_at < outcome.ended_at));
    }
}

#[test]
fn a_prefix_stays_with_its_pod_and_chance_does_not_keep_it() {
    let requests: Vec<(u64, Request)> =
        (0..60_u32).map(|n| (u64::from(n) * 2000, request(n % 6 * 5000, 800 + n, 3))).collect();
    let cold = |policy| {
        let outcomes = run(policy, 4, (0.0, 3), &requests);
        outcomes.iter().filter(|outcome| outcome.cached_tokens < 500).count()
    };
    assert_eq!(cold(Policy::prefix()), 6);
    assert!(cold(Policy::Random) > 12);
}

/// The tutorial's second round: as many tokens as the servers count.
#[test]
fn a_conversation_has_the_servers_tokens() {
    let model = ServedModel::qwen25().unwrap();
    let message = |role, content: &str| Message { role, content: content.to_owned() };
    let question = message("user", "Why is the sky blue?");
    let prompt = model.prompt(std::slice::from_ref(&question)).unwrap();
    let reply = model.reply(&prompt, &question.content, 8);
    assert!((1..=8).contains(&reply.tokens.len()) && !reply.text.is_empty());
    let longer =
        model.prompt(&[question, message("assistant", &reply.text), message("user", "And?")]).unwrap();
    assert_eq!(longer[..prompt.len()], prompt[..], "the next turn extends this one");
}

/// Six prompts in turn, twice over a fleet whose pods have room for two of them each.
fn rotation() -> Vec<(u64, Request)> {
    (0..120_u32).map(|n| (u64::from(n) * 1000, request(n % 6 * 5000, 1000 + n, 3))).collect()
}

/// What goes by the engines' own caches loses nothing that another pod had; chance loses most of it.
#[test]
fn who_knows_the_caches_regrets_nothing() {
    let regret = |policy| {
        let outcomes = run(policy, 3, (0.0, 2), &rotation());
        outcomes.iter().map(|outcome| outcome.regret_tokens.unwrap()).sum::<u32>()
    };
    assert_eq!(regret(Policy::precise()), 0);
    assert_eq!(regret(Policy::Oracle), 0);
    assert!(regret(Policy::Random) > 10_000);
}

/// The oracle's forecast is what happens where nothing else comes: its pick is the soonest of all pods.
#[test]
fn the_oracle_is_no_later_than_others_when_requests_come_alone() {
    let total = |policy| {
        let outcomes = run(policy, 3, (0.0, 2), &rotation());
        let ttft = |outcome: &Outcome| outcome.first_token_at - outcome.sent_at;
        outcomes.iter().map(ttft).sum::<Duration>()
    };
    let oracle = total(Policy::Oracle);
    for policy in [Policy::prefix(), Policy::precise(), Policy::guard(), Policy::Load, Policy::RoundRobin] {
        assert!(oracle <= total(policy), "{policy:?}: {:?} < {oracle:?}", total(policy));
    }
    assert!(oracle.mul_f64(1.1) < total(Policy::Random));
}

/// A burst on one prefix goes over to others; pure affinity keeps it in one place.
#[test]
fn the_guard_relieves_a_busy_holder() {
    let burst: Vec<(u64, Request)> = (0..40_u32).map(|n| (u64::from(n), request(0, 2000 + n, 50))).collect();
    let busiest = |policy| {
        let outcomes = run(policy, 4, (0.0, 2), &burst);
        (0..4).map(|pod| outcomes.iter().filter(|outcome| outcome.pod_idx == pod).count()).max().unwrap()
    };
    assert_eq!(busiest(Policy::prefix_pure()), 40);
    assert!(busiest(Policy::guard()) < 20);
}
