//! The fleet and its clock. Events happen in the order of their times, and at equal times in the order in which they
//! were planned.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::num::NonZeroU64;
use std::time::Duration;

use picking::picker;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use vllm_engine::config::ConfigError;
use vllm_engine::request::AddError;
use vllm_engine::step::OutputToken;

use crate::pod::{Pod, PodConfig, Work};
use crate::router::{RequestView, RoutedRequest, Router, RouterPolicy};

/// Time between two scrapes with the picker's defaults.
pub const SCRAPE_INTERVAL: Duration = picker::SCRAPE_INTERVAL;
/// Time from the last token to the end of the stream, as in the mock server.
const END_OF_STREAM: Duration = Duration::from_millis(2);

/// Time from the end of an answer that goes past the picker until it knows: half of the 20 ms for which Envoy gathers
/// entries of its access log, and 1 ms until they are read. Measured with Envoy 1.40 on a busy machine, a tenth of 400
/// ends was known within 2.2 ms, half within 11.1 ms, nine tenths within 21.3 ms and 99 % within 83 ms.
const REPORT_DELAY: Duration = Duration::from_millis(11);

/// The way of answers, by which the router hears of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Responses {
    /// Answers go through the picker: it hears of each first token and end at once.
    Through,
    /// Answers go past the picker. Those of this share are reported token by token, and of the others only the end, a
    /// little later.
    Observed { bodies: f64 },
}

impl Default for Responses {
    /// The lab's default.
    fn default() -> Self {
        Self::Observed { bodies: 0.05 }
    }
}

/// Settings of a fleet.
#[derive(Clone, Debug)]
pub struct Fleet {
    pub pod: PodConfig,
    pub n_pods: usize,
    pub policy: RouterPolicy,
    /// Bytes of the blocks in which prefixes are matched; `None` for the index's own schedule.
    pub index_block: Option<NonZeroU64>,
    /// Time between two reads of the pods' gauges by the router.
    pub scrape_interval: Duration,
    pub responses: Responses,
    /// True to ask every pod at each pick how much of the prompt it has, and to keep all times between tokens.
    pub in_detail: bool,
    pub seed: u64,
}

/// A request that a workload sends.
#[derive(Clone, Debug)]
pub struct SimRequest {
    /// The text whose prefixes are matched.
    pub text: String,
    pub user: Option<u32>,
    pub prompt: Vec<u32>,
    /// Tokens of the answer; at least one.
    pub output: Vec<u32>,
}

/// Result of a request. Moments are counted from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub id: u64,
    pub pod_idx: usize,
    pub sent_at: Duration,
    pub first_token_at: Duration,
    pub ended_at: Duration,
    pub prompt_tokens: u32,
    pub cached_tokens: u32,
    pub output_tokens: u32,
    /// Tokens of the prompt that another pod had at the pick and the picked one did not; only with
    /// [`Fleet::in_detail`].
    pub regret_tokens: Option<u32>,
}

/// A request that its pod refused, so that it has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedRequest {
    pub id: u64,
    pub pod_idx: usize,
    pub error: AddError,
}

/// Sends requests, and learns once for each that it has ended or was refused.
pub trait Workload {
    /// Returns when it wants to be asked next; `None` if only after a request has ended, or never.
    fn next_due(&mut self, now: Duration) -> Option<Duration>;

    /// Returns the requests that it sends now, each with a unique id.
    fn due(&mut self, now: Duration) -> Vec<(u64, SimRequest)>;

    fn ended(&mut self, outcome: &Outcome);

    fn refused(&mut self, refusal: RefusedRequest);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The workload asked to be called now.
    Due,
    Scrape,
    /// A request reaches its pod.
    Enter(u64),
    StepEnd(usize),
    /// The client receives the first token.
    FirstToken(u64),
    End(u64),
    /// The router hears of the end.
    Report(u64),
}

#[derive(Debug)]
struct Live {
    placed: RoutedRequest,
    /// True if the router sees the first token and the end at once.
    is_seen: bool,
    sent_at: Duration,
    first_token_at: Duration,
    last_token_at: Duration,
    prompt_tokens: u32,
    cached_tokens: u32,
    output_tokens: u32,
    regret_tokens: Option<u32>,
}

/// A running fleet.
#[derive(Debug)]
pub struct Simulation {
    fleet: Fleet,
    pods: Vec<Pod>,
    router: Router,
    agenda: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    next_seq: u64,
    live: HashMap<u64, Live>,
    /// Requests that have ended and of which the router has not heard.
    unreported: HashMap<u64, RoutedRequest>,
    /// Chooses the answers that are seen.
    rng: ChaCha8Rng,
    now: Duration,
    /// Time at which the workload is to be asked, if it is on the agenda.
    due: Option<Duration>,
    gaps: Vec<Duration>,
}

impl Fleet {
    /// Returns the router's seed. A picker with the same seed breaks ties in the same way.
    #[must_use]
    pub fn router_seed(&self) -> u64 {
        self.seeds().nth(self.n_pods).expect("they never end")
    }

    /// Returns the seeds: one for each pod, and then the router's.
    fn seeds(&self) -> impl Iterator<Item = u64> + use<> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        std::iter::repeat_with(move || rng.random())
    }
}

impl Simulation {
    /// Makes a fleet.
    ///
    /// # Errors
    /// When the engine's settings contradict each other.
    pub fn try_new(mut fleet: Fleet) -> Result<Self, ConfigError> {
        fleet.pod.engine.kv_events = fleet.policy.uses_kv_events();
        let pods = fleet.seeds().take(fleet.n_pods);
        let pods = pods.map(|seed| Pod::try_new(&fleet.pod, seed)).collect::<Result<_, _>>()?;
        let router = Router::new(fleet.policy, fleet.n_pods, fleet.router_seed())
            .with_blocks_of(fleet.index_block.unwrap_or(NonZeroU64::MIN));
        let (agenda, live) = (BinaryHeap::new(), HashMap::new());
        let rng = ChaCha8Rng::seed_from_u64(fleet.router_seed().wrapping_add(1));
        Ok(Self {
            fleet,
            pods,
            router,
            agenda,
            next_seq: 0,
            live,
            unreported: HashMap::new(),
            rng,
            now: Duration::ZERO,
            due: None,
            gaps: Vec::new(),
        })
    }

    /// Runs until the workload wants nothing more and every request has ended.
    pub fn run(&mut self, workload: &mut impl Workload) {
        self.begin(workload);
        while self.advance(workload) {}
    }

    /// Starts the run and asks the workload for the first time.
    pub fn begin(&mut self, workload: &mut impl Workload) {
        self.ask(workload);
        self.plan(self.now, Event::Scrape);
    }

    /// Processes the next event; returns false if there is none.
    pub fn advance(&mut self, workload: &mut impl Workload) -> bool {
        let Some(Reverse((at, _, event))) = self.agenda.pop() else { return false };
        self.now = at;
        match event {
            Event::Due if self.due == Some(at) => {
                self.due = None;
                for (id, request) in workload.due(at) {
                    self.send(id, request);
                }
                self.ask(workload);
            }
            Event::Due => {}
            Event::Scrape => self.scrape(),
            Event::Enter(id) => {
                if let Err(refusal) = self.enter(id) {
                    workload.refused(refusal);
                    self.ask(workload);
                }
            }
            Event::StepEnd(pod_idx) => self.end_step(pod_idx),
            Event::FirstToken(id) => {
                if let Some(live) = self.live.get_mut(&id).filter(|live| live.is_seen) {
                    self.router.on_first_token(&mut live.placed);
                }
            }
            Event::Report(id) => {
                if let Some(placed) = self.unreported.remove(&id) {
                    self.router.on_end(placed);
                }
            }
            Event::End(id) => {
                if let Some(outcome) = self.end(id) {
                    workload.ended(&outcome);
                    self.ask(workload);
                }
            }
        }
        true
    }

    /// Returns the prompt tokens that all pods have looked up in their caches, and those that they have found.
    #[must_use]
    pub fn cache_counters(&self) -> (u64, u64) {
        let counters = self.pods.iter().map(Pod::cache_counters);
        counters.fold((0, 0), |(queries, hits), (own, found)| (queries + own, hits + found))
    }

    /// Returns the times between successive tokens of an answer, as the client sees them; only with
    /// [`Fleet::in_detail`].
    #[must_use]
    pub fn gaps(&self) -> &[Duration] {
        &self.gaps
    }

    fn ask(&mut self, workload: &mut impl Workload) {
        let Some(due) = workload.next_due(self.now) else { return };
        let due = due.max(self.now);
        if self.due.is_none_or(|planned| due < planned) {
            self.due = Some(due);
            self.plan(due, Event::Due);
        }
    }

    fn scrape(&mut self) {
        for (pod_idx, pod) in self.pods.iter().enumerate() {
            self.router.on_scrape(pod_idx, pod.gauges(), self.now);
        }
        // Nothing changes while nothing is in flight and nothing is due, so stop the scrapes.
        if !self.live.is_empty() || self.due.is_some() {
            let next = match (self.live.is_empty(), self.due) {
                (true, Some(due)) => due.max(self.now + self.fleet.scrape_interval),
                (_, _) => self.now + self.fleet.scrape_interval,
            };
            self.plan(next, Event::Scrape);
        }
    }

    fn send(&mut self, id: u64, request: SimRequest) {
        let SimRequest { text, user, prompt, output } = request;
        let work = Work { id, prompt, output };
        let view = RequestView { text: &text, user, work: &work, now: self.now };
        let placed = self.router.place(view, &self.pods);
        let regret_tokens = self.fleet.in_detail.then(|| self.regret(&work.prompt, placed.pod_idx));
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let is_seen = match self.fleet.responses {
            Responses::Through => true,
            Responses::Observed { bodies } => self.rng.random_bool(bodies),
        };
        let live = Live {
            placed,
            is_seen,
            sent_at: self.now,
            first_token_at: Duration::ZERO,
            last_token_at: Duration::ZERO,
            prompt_tokens: count(work.prompt.len()),
            cached_tokens: 0,
            output_tokens: count(work.output.len()),
            regret_tokens,
        };
        let enters_at = self.now + self.pods[live.placed.pod_idx].send(work);
        self.live.insert(id, live);
        self.plan(enters_at, Event::Enter(id));
    }

    /// Returns the tokens of `prompt` that some pod has cached now, beyond those of the picked one.
    fn regret(&self, prompt: &[u32], picked_idx: usize) -> u32 {
        let hashes = self.pods[picked_idx].hashes(prompt);
        let most = self.pods.iter().map(|pod| pod.cached_tokens(&hashes)).max().unwrap_or(0);
        most.saturating_sub(self.pods[picked_idx].cached_tokens(&hashes))
    }

    /// Gives a request to its pod. A refused request has also ended for the router.
    fn enter(&mut self, id: u64) -> Result<(), RefusedRequest> {
        let pod_idx = self.live[&id].placed.pod_idx;
        if let Err(error) = self.pods[pod_idx].enter(id) {
            if let Some(Live { mut placed, .. }) = self.live.remove(&id) {
                self.router.on_first_token(&mut placed);
                self.router.on_end(placed);
            }
            return Err(RefusedRequest { id, pod_idx, error });
        }
        self.begin_step(pod_idx);
        Ok(())
    }

    fn begin_step(&mut self, pod_idx: usize) {
        if let Some(ends_at) = self.pods[pod_idx].begin_step(self.now) {
            self.plan(ends_at, Event::StepEnd(pod_idx));
        }
    }

    fn end_step(&mut self, pod_idx: usize) {
        let way_out = self.pods[pod_idx].way_out();
        let tokens: Vec<OutputToken> = self.pods[pod_idx].end_step().to_vec();
        let events = self.pods[pod_idx].take_kv_events();
        if !events.is_empty() {
            self.router.on_kv_events(pod_idx, events);
        }
        let seen_at = self.now + way_out;
        for OutputToken { id, output_idx, cached_tokens, finished, .. } in tokens {
            if let Some(live) = self.live.get_mut(&id.0) {
                if output_idx == 0 {
                    (live.first_token_at, live.cached_tokens) = (seen_at, cached_tokens);
                } else if self.fleet.in_detail {
                    self.gaps.push(seen_at - live.last_token_at);
                }
                live.last_token_at = seen_at;
            }
            if output_idx == 0 {
                self.plan(seen_at, Event::FirstToken(id.0));
            }
            if finished.is_some() {
                self.plan(seen_at + END_OF_STREAM, Event::End(id.0));
            }
        }
        self.begin_step(pod_idx);
    }

    fn end(&mut self, id: u64) -> Option<Outcome> {
        let Live {
            placed,
            is_seen,
            sent_at,
            first_token_at,
            last_token_at: _,
            prompt_tokens,
            cached_tokens,
            output_tokens,
            regret_tokens,
        } = self.live.remove(&id)?;
        let pod_idx = placed.pod_idx;
        if is_seen {
            self.router.on_end(placed);
        } else {
            self.unreported.insert(id, placed);
            self.plan(self.now + REPORT_DELAY, Event::Report(id));
        }
        let ended_at = self.now;
        Some(Outcome {
            id,
            pod_idx,
            sent_at,
            first_token_at,
            ended_at,
            prompt_tokens,
            cached_tokens,
            output_tokens,
            regret_tokens,
        })
    }

    fn plan(&mut self, at: Duration, event: Event) {
        self.agenda.push(Reverse((at, self.next_seq, event)));
        self.next_seq += 1;
    }
}
