//! Loads under which policies differ: by what requests share, by its size compared with the cache, and by the rate.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Result, bail};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution as _, Exp};
use sim::pod::PodConfig;
use sim::router::RouterPolicy;
use sim::simulation::{Fleet, Outcome, RefusedRequest, Responses, SCRAPE_INTERVAL, SimRequest, Workload};

use crate::compare::traces::Traced;

/// Pods of every fleet.
pub const PODS: usize = 4;
/// Blocks of a pod: 96,000 tokens of KV cache, and the null block.
const BLOCKS: u32 = 6_001;
/// Most tokens of a prompt and its answer for which a pod has room.
const MAX_MODEL_LEN: usize = 8192;
pub const DURATION: Duration = Duration::from_secs(200);
const JITTER: f64 = 0.03;
/// Number of token ids; each is written with four letters, the length of a mean English token.
const VOCABULARY: u32 = 1 << 16;

/// Requests that come at random moments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DrawnWorkload {
    pub name: &'static str,
    /// Requests per second.
    rate: f64,
    prefixes: Prefixes,
    /// Tokens after the prefix, different for each request.
    own_tokens: usize,
    output_tokens: usize,
}

/// Prefixes of the requests.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Prefixes {
    /// One of `count` prefixes, all equally likely.
    Even { count: u64, tokens: usize },
    /// The first prefix with probability `share`, otherwise one of the others.
    Hot { share: f64, others: u64, tokens: usize },
    /// No common prefixes.
    None,
}

pub const WORKLOADS: [DrawnWorkload; 6] = [
    DrawnWorkload {
        name: "cache thrash",
        rate: 4.0,
        prefixes: Prefixes::Even { count: 150, tokens: 2000 },
        own_tokens: 60,
        output_tokens: 60,
    },
    DrawnWorkload {
        name: "long documents",
        rate: 1.0,
        prefixes: Prefixes::Even { count: 24, tokens: 8000 },
        own_tokens: 60,
        output_tokens: 60,
    },
    DrawnWorkload {
        name: "long documents, half the rate",
        rate: 0.5,
        prefixes: Prefixes::Even { count: 24, tokens: 8000 },
        own_tokens: 60,
        output_tokens: 60,
    },
    DrawnWorkload {
        name: "hot prefix",
        rate: 10.0,
        prefixes: Prefixes::Hot { share: 0.8, others: 32, tokens: 4000 },
        own_tokens: 60,
        output_tokens: 100,
    },
    DrawnWorkload {
        name: "hot prefix, less load",
        rate: 4.0,
        prefixes: Prefixes::Hot { share: 0.8, others: 32, tokens: 4000 },
        own_tokens: 60,
        output_tokens: 100,
    },
    DrawnWorkload {
        name: "no sharing",
        rate: 6.0,
        prefixes: Prefixes::None,
        own_tokens: 1000,
        output_tokens: 60,
    },
];

impl DrawnWorkload {
    /// True if the name contains one of the words, or if there are no words.
    pub fn is_wanted(&self, words: &[String]) -> bool {
        words.is_empty() || words.iter().any(|word| self.name.contains(word.as_str()))
    }
}

pub fn fleet(policy: RouterPolicy, seed: u64) -> Fleet {
    let pod = PodConfig::preset("a10-doc", true, JITTER).expect("the preset exists").with_blocks(BLOCKS);
    Fleet {
        pod,
        n_pods: PODS,
        policy,
        index_block: None,
        scrape_interval: SCRAPE_INTERVAL,
        responses: Responses::default(),
        in_detail: true,
        seed,
    }
}

/// Returns the requests that a pod can take, `speed` times faster, and the number of the others.
pub fn fitting(traced: Vec<Traced>, speed: f64) -> (Vec<Traced>, usize) {
    let n_all = traced.len();
    let fits = |one: &Traced| one.input_tokens + one.output_tokens <= MAX_MODEL_LEN;
    let mut kept: Vec<Traced> = traced.into_iter().filter(fits).collect();
    for one in &mut kept {
        one.at = one.at.div_f64(speed);
    }
    let n_left_out = n_all - kept.len();
    (kept, n_left_out)
}

/// A workload's requests, drawn when they are due.
#[derive(Debug)]
pub struct Poisson {
    workload: DrawnWorkload,
    rng: ChaCha8Rng,
    gaps: Exp<f64>,
    next_at: Duration,
    next_id: u64,
    prefixes: HashMap<u64, Vec<u32>>,
    ends: Ends,
}

/// Results of the requests.
#[derive(Debug, Default)]
struct Ends {
    outcomes: Vec<Outcome>,
    refusals: Vec<RefusedRequest>,
}

impl Ends {
    fn finish(self) -> Result<Vec<Outcome>> {
        let Self { outcomes, refusals } = self;
        let n_all = outcomes.len() + refusals.len();
        match refusals.first() {
            None => Ok(outcomes),
            Some(RefusedRequest { id, pod_idx: _, error }) => {
                bail!("the pods refuse {} of {n_all} requests; request {id}: {error}", refusals.len())
            }
        }
    }
}

impl Poisson {
    /// Makes the requests of a workload at `load` times its rate.
    pub fn new(workload: &DrawnWorkload, load: f64, seed: u64) -> Self {
        let gaps = Exp::new(workload.rate * load).expect("rates are above 0");
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let next_at = Duration::from_secs_f64(gaps.sample(&mut rng));
        let (prefixes, ends) = (HashMap::new(), Ends::default());
        Self { workload: *workload, rng, gaps, next_at, next_id: 0, prefixes, ends }
    }

    /// Returns the outcomes of the requests.
    ///
    /// # Errors
    /// When the pods refuse a request, because the figures of the others are not those of the workload.
    pub fn finish(self) -> Result<Vec<Outcome>> {
        self.ends.finish()
    }

    fn request(&mut self) -> SimRequest {
        let DrawnWorkload { prefixes, own_tokens, output_tokens, .. } = self.workload;
        let prefix = match prefixes {
            Prefixes::None => None,
            Prefixes::Even { count, tokens } => Some((self.rng.random_range(0..count), tokens)),
            Prefixes::Hot { share, others, tokens } => {
                let which = if self.rng.random_bool(share) { 0 } else { self.rng.random_range(1..=others) };
                Some((which, tokens))
            }
        };
        let mut prompt = prefix.map_or_else(Vec::new, |(which, n)| self.prefix(which, n));
        prompt.extend((0..own_tokens).map(|_| self.rng.random_range(0..VOCABULARY)));
        let output = (0..output_tokens).map(|_| self.rng.random_range(0..VOCABULARY)).collect();
        let text = text_of(&prompt);
        SimRequest { text, user: None, prompt, output }
    }

    fn prefix(&mut self, which: u64, n_tokens: usize) -> Vec<u32> {
        // The prefix is the same for every policy and seed.
        let draw = || {
            let mut rng = ChaCha8Rng::seed_from_u64(which);
            (0..n_tokens).map(|_| rng.random_range(0..VOCABULARY)).collect()
        };
        self.prefixes.entry(which).or_insert_with(draw).clone()
    }
}

impl Workload for Poisson {
    fn next_due(&mut self, _now: Duration) -> Option<Duration> {
        (self.next_at < DURATION).then_some(self.next_at)
    }

    fn due(&mut self, now: Duration) -> Vec<(u64, SimRequest)> {
        let mut requests = Vec::new();
        while self.next_at <= now {
            self.next_id += 1;
            requests.push((self.next_id, self.request()));
            self.next_at += Duration::from_secs_f64(self.gaps.sample(&mut self.rng));
        }
        requests
    }

    fn ended(&mut self, outcome: &Outcome) {
        self.ends.outcomes.push(*outcome);
    }

    fn refused(&mut self, refusal: RefusedRequest) {
        self.ends.refusals.push(refusal);
    }
}

/// A trace's requests, at the times of the trace.
#[derive(Debug)]
pub struct Replay<'a> {
    requests: &'a [Traced],
    load: f64,
    next_idx: usize,
    ends: Ends,
}

impl<'a> Replay<'a> {
    /// Replays requests `load` times as fast as they were recorded.
    pub fn new(requests: &'a [Traced], load: f64) -> Self {
        Self { requests, load, next_idx: 0, ends: Ends::default() }
    }

    /// Returns the outcomes of the requests.
    ///
    /// # Errors
    /// When the pods refuse a request, because the figures of the others are not those of the trace.
    pub fn finish(self) -> Result<Vec<Outcome>> {
        self.ends.finish()
    }
}

impl Workload for Replay<'_> {
    fn next_due(&mut self, _now: Duration) -> Option<Duration> {
        self.requests.get(self.next_idx).map(|one| one.at.div_f64(self.load))
    }

    fn due(&mut self, now: Duration) -> Vec<(u64, SimRequest)> {
        let mut requests = Vec::new();
        while let Some(one) = self.requests.get(self.next_idx).filter(|one| one.at.div_f64(self.load) <= now)
        {
            self.next_idx += 1;
            let id = self.next_idx as u64;
            let prompt = one.prompt(id);
            let text = text_of(&prompt);
            requests.push((id, SimRequest { text, user: None, prompt, output: vec![0; one.output_tokens] }));
        }
        requests
    }

    fn ended(&mut self, outcome: &Outcome) {
        self.ends.outcomes.push(*outcome);
    }

    fn refused(&mut self, refusal: RefusedRequest) {
        self.ends.refusals.push(refusal);
    }
}

fn text_of(prompt: &[u32]) -> String {
    prompt.iter().map(|id| format!("{id:04x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sim::router::RouterPolicy;
    use sim::simulation::Simulation;

    use super::{MAX_MODEL_LEN, Replay, Responses, fitting, fleet};
    use crate::compare::traces::Traced;

    #[test]
    fn simulated_answers_go_the_way_of_the_lab() {
        let Responses::Observed { bodies } = Responses::default() else {
            panic!("answers go through the picker")
        };
        let lab = lab::cluster::Options::new("", "").responses;
        assert_eq!(lab.to_string(), format!("observed={bodies}"));
    }

    #[test]
    fn a_request_that_the_pods_refuse_fails_the_run() {
        let traced = |input_tokens| {
            let one = |secs, input_tokens| Traced {
                at: Duration::from_secs(secs),
                input_tokens,
                output_tokens: 2,
                hash_ids: Vec::new(),
            };
            vec![one(0, 100), one(1, input_tokens), one(2, 100)]
        };
        let run = |requests: &[Traced]| {
            let mut simulation = Simulation::try_new(fleet(RouterPolicy::prefix(), 1)).unwrap();
            let mut replay = Replay::new(requests, 1.0);
            simulation.run(&mut replay);
            replay.finish().map(|outcomes| outcomes.len())
        };
        let error = run(&traced(MAX_MODEL_LEN)).unwrap_err().to_string();
        assert!(error.starts_with("the pods refuse 1 of 3 requests; request 2: "), "{error}");
        assert_eq!(run(&traced(MAX_MODEL_LEN - 2)).unwrap(), 3);
        let (kept, n_left_out) = fitting(traced(MAX_MODEL_LEN), 1.0);
        assert_eq!((run(&kept).unwrap(), n_left_out), (2, 1));
    }
}
