//! Measures what a simulated request costs by the size of the fleet.
//! Run it with `cargo bench -p sim --bench scale`, and `-- REQUESTS PODS...` for other sizes. Every pod gets the same
//! load, so that only the router's own cost grows with the fleet.
//!
//! ```text
//!   pods  sessions  requests     built   seconds  us/request  hit ratio  peak MB
//! ```
//! `built` are the seconds before the first request, in which pods are made; the other figures are of the run alone.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sim::pod::PodConfig;
use sim::router::RouterPolicy;
use sim::simulation::{
    Fleet, Outcome, RefusedRequest, Responses, SCRAPE_INTERVAL, SimRequest, Simulation, Workload,
};

/// Requests of one session; each prompt has everything that was said before, and something new.
const ROUNDS: usize = 10;
const QUESTION_TOKENS: usize = 100;
const ANSWER_TOKENS: usize = 20;
/// Time between an answer and the next question.
const PAUSE: Duration = Duration::from_secs(5);
/// Sessions per pod that begin in each second; pods are then busy a third of the time.
const SESSIONS_PER_POD: f64 = 0.2;
const FLEETS: [usize; 4] = [10, 100, 1_000, 10_000];
const REQUESTS: usize = 100_000;

/// Sessions that begin evenly and continue when they are answered.
struct Sessions {
    rng: ChaCha8Rng,
    /// Times at which sessions ask next.
    agenda: BinaryHeap<Reverse<(Duration, u32)>>,
    /// Conversation of each session, as long as it lasts.
    said: Vec<Vec<u32>>,
    n_asked: Vec<u8>,
    n_hit: u64,
    n_prompt: u64,
    n_ended: usize,
}

impl Sessions {
    fn new(n_requests: usize, n_pods: usize) -> Self {
        let n_sessions = n_requests.div_ceil(ROUNDS);
        let gap = 1.0 / (SESSIONS_PER_POD * n_pods as f64);
        let begins = |session: u32| Reverse((Duration::from_secs_f64(f64::from(session) * gap), session));
        let n_sessions_u32 = u32::try_from(n_sessions).expect("fewer than 2^32 sessions");
        Self {
            rng: ChaCha8Rng::seed_from_u64(1),
            agenda: (0..n_sessions_u32).map(begins).collect(),
            said: vec![Vec::new(); n_sessions],
            n_asked: vec![0; n_sessions],
            n_hit: 0,
            n_prompt: 0,
            n_ended: 0,
        }
    }

    fn ask(&mut self, session: u32) -> (u64, SimRequest) {
        let idx = session as usize;
        let rng = &mut self.rng;
        let said = &mut self.said[idx];
        said.extend((0..QUESTION_TOKENS).map(|_| rng.random_range(0..1_u32 << 16)));
        let prompt = said.clone();
        let output: Vec<u32> = (0..ANSWER_TOKENS).map(|_| rng.random_range(0..1_u32 << 16)).collect();
        said.extend(&output);
        self.n_asked[idx] += 1;
        if usize::from(self.n_asked[idx]) == ROUNDS {
            *said = Vec::new();
        }
        let mut text = String::with_capacity(4 * prompt.len());
        for token in &prompt {
            text.extend(
                (0..4).map(|digit| char::from(b'a' + u8::try_from(token >> (4 * digit) & 15).unwrap_or(0))),
            );
        }
        (u64::from(session), SimRequest { text, user: None, prompt, output })
    }
}

impl Workload for Sessions {
    fn next_due(&mut self, _now: Duration) -> Option<Duration> {
        self.agenda.peek().map(|Reverse((at, _))| *at)
    }

    fn due(&mut self, now: Duration) -> Vec<(u64, SimRequest)> {
        let mut requests = Vec::new();
        while let Some(Reverse((at, session))) = self.agenda.peek().copied()
            && at <= now
        {
            self.agenda.pop();
            requests.push(self.ask(session));
        }
        requests
    }

    fn refused(&mut self, refusal: RefusedRequest) {
        unreachable!("prompts fit: {refusal:?}")
    }

    fn ended(&mut self, outcome: &Outcome) {
        self.n_hit += u64::from(outcome.cached_tokens);
        self.n_prompt += u64::from(outcome.prompt_tokens);
        self.n_ended += 1;
        let session = u32::try_from(outcome.id).expect("ids are sessions");
        if usize::from(self.n_asked[session as usize]) < ROUNDS {
            self.agenda.push(Reverse((outcome.ended_at + PAUSE, session)));
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a bench measures wall time and prints it"
)]
fn run(n_pods: usize, n_requests: usize) {
    let pod = PodConfig::preset("a10-doc", true, 0.03).expect("the preset exists");
    let fleet = Fleet {
        pod,
        n_pods,
        policy: RouterPolicy::prefix(),
        index_block: None,
        scrape_interval: SCRAPE_INTERVAL,
        responses: Responses::Through,
        in_detail: false,
        seed: 1,
    };
    let mut sessions = Sessions::new(n_requests, n_pods);
    let start = Instant::now();
    let mut simulation = Simulation::try_new(fleet).expect("valid settings");
    let built = start.elapsed().as_secs_f64();
    simulation.run(&mut sessions);
    let seconds = start.elapsed().as_secs_f64() - built;
    assert_eq!(sessions.n_ended, n_requests, "requests were lost");
    println!(
        "{n_pods:>6} {:>9} {n_requests:>9} {built:>9.2} {seconds:>9.2} {:>11.1} {:>10.3} {:>8}",
        sessions.said.len(),
        seconds / n_requests as f64 * 1e6,
        sessions.n_hit as f64 / sessions.n_prompt as f64,
        peak_mb()
    );
}

/// Returns the peak memory of this process.
fn peak_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).map_or(0, |kb: u64| kb / 1024)
}

#[expect(clippy::print_stdout, reason = "a bench prints")]
fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let (n_requests, fleets) = match numbers.split_first() {
        None => (REQUESTS, FLEETS.to_vec()),
        Some((n_requests, [])) => (*n_requests, FLEETS.to_vec()),
        Some((n_requests, fleets)) => (*n_requests, fleets.to_vec()),
    };
    println!("  pods  sessions  requests     built   seconds  us/request  hit ratio  peak MB");
    for n_pods in fleets {
        run(n_pods, n_requests);
    }
}
