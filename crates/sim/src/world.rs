//! The fleet and its clock: events in the order of time, and of planning where times are equal.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::num::NonZeroU64;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use vllm_engine::config::ConfigError;
use vllm_engine::request::AddError;
use vllm_engine::step::OutputToken;

use crate::pod::{Pod, PodConfig, Work};
use crate::router::{Placed, Policy, Router, Ticket};

/// From the last token until the stream's end, as of the mock server.
const END_OF_STREAM: Duration = Duration::from_millis(2);

/// What a fleet is made of.
#[derive(Clone, Debug)]
pub struct Fleet {
    pub pod: PodConfig,
    pub n_pods: usize,
    pub policy: Policy,
    /// Bytes of the blocks that prefixes are matched in; `None`: the index's own schedule.
    pub index_block: Option<NonZeroU64>,
    /// How often the router reads the pods' gauges.
    pub scrape_interval: Duration,
    /// Whether to ask every pod, at each pick, what it holds of the prompt, and to keep every gap between tokens.
    pub in_detail: bool,
    pub seed: u64,
}

/// A request that a workload sends.
#[derive(Clone, Debug)]
pub struct Request {
    /// The text that prefixes are matched by.
    pub text: String,
    pub user: Option<u32>,
    pub prompt: Vec<u32>,
    /// At least one token.
    pub output: Vec<u32>,
}

/// What came of a request; moments since the start.
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
    /// Tokens of the prompt that the picked pod lacked and another one had at the pick; of a run in detail.
    pub regret_tokens: Option<u32>,
}

/// A request that its pod refused: it has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub id: u64,
    pub pod_idx: usize,
    pub error: AddError,
}

/// Sends requests and learns what came of each: it ends or is refused, once.
pub trait Workload {
    /// When it wants to be asked next; `None`: when something has ended, or never.
    fn next_due(&mut self, now: Duration) -> Option<Duration>;

    /// What it sends now, each with a number of its own.
    fn due(&mut self, now: Duration) -> Vec<(u64, Request)>;

    fn ended(&mut self, outcome: &Outcome);

    fn refused(&mut self, refusal: Refusal);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// The workload wants to be asked.
    Due,
    Scrape,
    /// A request has come to its pod.
    Enter(u64),
    StepEnd(usize),
    /// The client has its first token.
    FirstToken(u64),
    End(u64),
}

#[derive(Debug)]
struct Live {
    placed: Placed,
    sent_at: Duration,
    first_token_at: Duration,
    last_token_at: Duration,
    prompt_tokens: u32,
    cached_tokens: u32,
    output_tokens: u32,
    regret_tokens: Option<u32>,
}

/// A fleet while it works.
#[derive(Debug)]
pub struct World {
    fleet: Fleet,
    pods: Vec<Pod>,
    router: Router,
    agenda: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    next_seq: u64,
    live: HashMap<u64, Live>,
    now: Duration,
    /// The moment for which the workload is on the agenda.
    due: Option<Duration>,
    gaps: Vec<Duration>,
}

impl Fleet {
    /// What the router draws from: a picker that is given it as its seed breaks ties alike.
    #[must_use]
    pub fn router_seed(&self) -> u64 {
        self.seeds().nth(self.n_pods).expect("they never end")
    }

    /// One for each pod, and then the router's.
    fn seeds(&self) -> impl Iterator<Item = u64> + use<> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        std::iter::repeat_with(move || rng.random())
    }
}

impl World {
    /// # Errors
    /// When the engine's settings do not go together.
    pub fn try_new(fleet: Fleet) -> Result<Self, ConfigError> {
        let pods = fleet.seeds().take(fleet.n_pods);
        let pods = pods.map(|seed| Pod::try_new(&fleet.pod, seed)).collect::<Result<_, _>>()?;
        let router = Router::new(fleet.policy, fleet.n_pods, fleet.router_seed())
            .with_blocks_of(fleet.index_block.unwrap_or(NonZeroU64::MIN));
        let (agenda, live) = (BinaryHeap::new(), HashMap::new());
        Ok(Self {
            fleet,
            pods,
            router,
            agenda,
            next_seq: 0,
            live,
            now: Duration::ZERO,
            due: None,
            gaps: Vec::new(),
        })
    }

    /// Runs until the workload wants nothing more and everything has ended.
    pub fn run(&mut self, workload: &mut impl Workload) {
        self.begin(workload);
        while self.advance(workload) {}
    }

    /// Asks the workload for the first time.
    pub fn begin(&mut self, workload: &mut impl Workload) {
        self.ask(workload);
        self.plan(self.now, Event::Scrape);
    }

    /// Lets the next event happen; returns false when there is none.
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
            Event::FirstToken(id) => self.router.note_first_token(id, self.live[&id].placed),
            Event::End(id) => {
                if let Some(outcome) = self.end(id) {
                    workload.ended(&outcome);
                    self.ask(workload);
                }
            }
        }
        true
    }

    /// Prompt tokens that were looked up in caches, and those that were found, over all pods.
    #[must_use]
    pub fn cache_counters(&self) -> (u64, u64) {
        let counters = self.pods.iter().map(Pod::cache_counters);
        counters.fold((0, 0), |(queries, hits), (own, found)| (queries + own, hits + found))
    }

    /// Times from each token to the next of its answer, as the client sees them; of a run in detail.
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
            self.router.note_scrape(pod_idx, pod.gauges());
        }
        // While nothing is in flight and nothing is due, nothing changes.
        if !self.live.is_empty() || self.due.is_some() {
            let next = match (self.live.is_empty(), self.due) {
                (true, Some(due)) => due.max(self.now + self.fleet.scrape_interval),
                (_, _) => self.now + self.fleet.scrape_interval,
            };
            self.plan(next, Event::Scrape);
        }
    }

    fn send(&mut self, id: u64, request: Request) {
        let Request { text, user, prompt, output } = request;
        let work = Work { id, prompt, output };
        let ticket = Ticket { text: &text, user, work: &work, now: self.now };
        let placed = self.router.place(ticket, &self.pods);
        let regret_tokens = self.fleet.in_detail.then(|| self.regret(&work.prompt, placed.pod_idx));
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let live = Live {
            placed,
            sent_at: self.now,
            first_token_at: Duration::ZERO,
            last_token_at: Duration::ZERO,
            prompt_tokens: count(work.prompt.len()),
            cached_tokens: 0,
            output_tokens: count(work.output.len()),
            regret_tokens,
        };
        let enters_at = self.now + self.pods[placed.pod_idx].send(work);
        self.live.insert(id, live);
        self.plan(enters_at, Event::Enter(id));
    }

    /// Tokens of `prompt` that some pod has cached now, beyond those that the picked one has.
    fn regret(&self, prompt: &[u32], picked_idx: usize) -> u32 {
        let hashes = self.pods[picked_idx].hashes(prompt);
        let most = self.pods.iter().map(|pod| pod.cached_tokens(&hashes)).max().unwrap_or(0);
        most.saturating_sub(self.pods[picked_idx].cached_tokens(&hashes))
    }

    /// A refused request is over for the router, too.
    fn enter(&mut self, id: u64) -> Result<(), Refusal> {
        let placed = self.live[&id].placed;
        let pod_idx = placed.pod_idx;
        if let Err(error) = self.pods[pod_idx].enter(id) {
            self.live.remove(&id);
            self.router.note_first_token(id, placed);
            self.router.note_end(placed);
            return Err(Refusal { id, pod_idx, error });
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
            sent_at,
            first_token_at,
            last_token_at: _,
            prompt_tokens,
            cached_tokens,
            output_tokens,
            regret_tokens,
        } = self.live.remove(&id)?;
        self.router.note_end(placed);
        let pod_idx = placed.pod_idx;
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
