//! Four pods, a router and a workload in virtual time.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the simulation counts in thousands and in seconds"
)]

pub(crate) mod cache;
pub(crate) mod engine;
pub(crate) mod router;
pub(crate) mod workload;

use std::collections::VecDeque;

use self::engine::{Engine, Progress};
use self::router::{Router, Routing};
use self::workload::{Request, Workload};

pub(crate) const N_PODS: usize = 4;
/// Time from the pick to the engine's queue: gateway, web server, tokenizer, in seconds.
const TO_ENGINE: f64 = 0.060;
/// Time from the engine back to the client, in seconds.
const FROM_ENGINE: f64 = 0.009;
/// Time between two scrapes, in seconds.
const SCRAPE: f64 = 0.050;
/// Seeds of the runs; the figures of a workload are means over them.
const SEEDS: [u64; 3] = [1, 2, 3];

/// Measurements of the clients.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    /// Mean time to first token, in seconds.
    pub(crate) ttft: f64,
    /// 99th percentile of the time to first token, in seconds.
    pub(crate) p99: f64,
    /// Mean time per output token after the first, in seconds.
    pub(crate) tpot: f64,
    /// Share of prompt tokens that were found in the cache.
    pub(crate) hit: f64,
}

/// A run in virtual time.
struct Run {
    now: f64,
    requests: Vec<Request>,
    n_arrived: usize,
    /// Requests that are picked but not yet in the engine's queue: time of arrival there, pod, request.
    on_the_way: VecDeque<(f64, usize, usize)>,
    pods: [Engine; N_PODS],
    router: Router,
    next_scrape: f64,
    /// Times of the first tokens by request, in seconds.
    first_tokens: Vec<f64>,
    tpots: Vec<f64>,
    n_hit: usize,
}

/// Simulates the workload and returns the means over all seeds.
pub(crate) fn simulate(workload: &Workload, routing: Routing) -> Figures {
    let mut sum = Figures::default();
    let share = 1.0 / SEEDS.len() as f64;
    for seed in SEEDS {
        let Figures { ttft, p99, tpot, hit } = Run::new(workload, routing, seed).finish();
        sum.ttft += ttft * share;
        sum.p99 += p99 * share;
        sum.tpot += tpot * share;
        sum.hit += hit * share;
    }
    sum
}

impl Run {
    fn new(workload: &Workload, routing: Routing, seed: u64) -> Self {
        let requests = workload.requests(seed);
        Self {
            now: 0.0,
            n_arrived: 0,
            on_the_way: VecDeque::new(),
            pods: std::array::from_fn(|_| Engine::new(workload.n_kv_tokens)),
            router: Router::new(routing, workload.n_kv_tokens, seed),
            next_scrape: SCRAPE,
            first_tokens: vec![0.0; requests.len()],
            tpots: Vec::new(),
            n_hit: 0,
            requests,
        }
    }

    /// Runs until every request is answered.
    fn finish(mut self) -> Figures {
        while self.step() {}
        let mut ttfts: Vec<f64> = self
            .requests
            .iter()
            .zip(&self.first_tokens)
            .map(|(request, at)| at + FROM_ENGINE - request.arrival)
            .collect();
        ttfts.sort_by(f64::total_cmp);
        let n_prompt: usize = self.requests.iter().map(|request| request.n_prompt).sum();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        assert_eq!(self.tpots.len(), self.requests.len(), "every request is answered");
        Figures {
            ttft: mean(&ttfts),
            p99: ttfts[ttfts.len() * 99 / 100],
            tpot: mean(&self.tpots),
            hit: self.n_hit as f64 / n_prompt as f64,
        }
    }

    /// Processes the next event; returns false if there is none left.
    fn step(&mut self) -> bool {
        let arrival = self.requests.get(self.n_arrived).map_or(f64::INFINITY, |request| request.arrival);
        let queueing = self.on_the_way.front().map_or(f64::INFINITY, |(at, _, _)| *at);
        let step_ends = self.pods.each_ref().map(|pod| pod.step_end().unwrap_or(f64::INFINITY));
        let step_end = step_ends.into_iter().fold(f64::INFINITY, f64::min);
        self.now = arrival.min(queueing).min(step_end);
        if self.now == f64::INFINITY {
            return false;
        }
        self.scrape();
        if self.now == arrival {
            let request_idx = self.n_arrived;
            self.n_arrived += 1;
            let pod = self.router.pick(&self.requests[request_idx]);
            self.on_the_way.push_back((self.now + TO_ENGINE, pod, request_idx));
        } else if let Some((_, pod, request_idx)) = self.on_the_way.pop_front_if(|(at, _, _)| *at == self.now)
        {
            self.pods[pod].enqueue(self.requests[request_idx].clone(), self.now);
        } else if let Some(pod) = step_ends.into_iter().position(|at| at == self.now) {
            self.end_step(pod);
        }
        true
    }

    fn scrape(&mut self) {
        if self.now < self.next_scrape {
            return;
        }
        for (pod_idx, pod) in self.pods.iter().enumerate() {
            self.router.scraped(pod_idx, pod.n_waiting(), pod.kv_usage());
        }
        self.next_scrape = (self.now / SCRAPE).floor() * SCRAPE + SCRAPE;
    }

    fn end_step(&mut self, pod: usize) {
        for progress in self.pods[pod].end_step(self.now) {
            match progress {
                Progress::FirstToken { request, n_hit } => {
                    self.router.first_token(request);
                    self.first_tokens[request] = self.now;
                    self.n_hit += n_hit;
                }
                Progress::Finished { request } => {
                    self.router.finished(request);
                    let n_later = self.requests[request].n_output - 1;
                    self.tpots.push((self.now - self.first_tokens[request]) / n_later as f64);
                }
            }
        }
    }
}
