//! Routers: the usual policies, and the picker as `epp` runs it.

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroUsize};

use prefix_index::chain::{Chain, ChainBuilder, ChainSeed};
use prefix_index::endpoint::EndpointId;
use prefix_index::index::PrefixIndex;
use prefix_index::matches::Matches;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use scheduling::candidate::{AdapterState, Candidate, Load};
use scheduling::pick::{Ask, Policy, pick};

use super::N_PODS;
use super::cache::Text;
use super::workload::Request;

/// Bytes of text per token.
const BYTES_PER_TOKEN: usize = 4;

/// Ways to place requests.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Routing {
    RoundRobin,
    /// The less busy of two pods that are drawn, like Envoy.
    LeastRequest,
    /// To the pod that holds most of the prompt if that is more than half of it, whatever the load; otherwise least
    /// request.
    PureAffinity,
    /// The picker under this policy.
    Picker(Policy),
    /// Like `Picker`, but it knows only what was scraped, not what it has sent.
    ForgetfulPicker(Policy),
}

/// Places requests, and knows about pods what a picker knows.
pub(crate) struct Router {
    routing: Routing,
    rng: ChaCha8Rng,
    n_placed: usize,
    /// Scraped metrics and requests in flight of each pod.
    loads: [Load; N_PODS],
    /// Pod of each open request, and its uncached bytes until the first token.
    open: HashMap<usize, (usize, u64)>,
    index: PrefixIndex,
    matches: Matches,
    /// Hashed texts, so that each is hashed once.
    texts: HashMap<Text, ChainBuilder>,
}

impl Router {
    /// `n_kv_tokens` is the cache size that pods report.
    pub(crate) fn new(routing: Routing, n_kv_tokens: usize, seed: u64) -> Self {
        let index = PrefixIndex::new(NonZeroU32::MAX);
        let max_bytes = (n_kv_tokens * BYTES_PER_TOKEN) as u64;
        (0..N_PODS).for_each(|pod| index.limit_bytes(endpoint(pod), max_bytes));
        Self {
            routing,
            rng: ChaCha8Rng::seed_from_u64(seed),
            n_placed: 0,
            loads: [Load { fresh: true, ..Load::default() }; N_PODS],
            open: HashMap::new(),
            index,
            matches: Matches::new(),
            texts: HashMap::new(),
        }
    }

    pub(crate) fn pick(&mut self, request: &Request) -> usize {
        self.n_placed += 1;
        let (pod, uncached_bytes) = match self.routing {
            Routing::RoundRobin => (self.n_placed % N_PODS, 0),
            Routing::LeastRequest => (self.less_busy_of_two(), 0),
            Routing::PureAffinity => (self.longest_match(request), 0),
            Routing::Picker(policy) => self.policy_pick(&policy, request, self.loads),
            Routing::ForgetfulPicker(policy) => {
                let scraped = |load: Load| Load { in_flight: 0, uncached_bytes: 0, ..load };
                self.policy_pick(&policy, request, self.loads.map(scraped))
            }
        };
        self.loads[pod].in_flight += 1;
        self.loads[pod].uncached_bytes += uncached_bytes;
        self.open.insert(request.id, (pod, uncached_bytes));
        pod
    }

    pub(crate) fn scraped(&mut self, pod: usize, waiting: usize, kv_usage: f64) {
        self.loads[pod].waiting = waiting as u32;
        self.loads[pod].kv_usage = kv_usage;
    }

    pub(crate) fn first_token(&mut self, request: usize) {
        let (pod, uncached_bytes) = self.open.get_mut(&request).expect("it was placed");
        self.loads[*pod].uncached_bytes -= std::mem::take(uncached_bytes);
    }

    pub(crate) fn finished(&mut self, request: usize) {
        let (pod, _) = self.open.remove(&request).expect("it was placed");
        self.loads[pod].in_flight -= 1;
    }

    fn less_busy_of_two(&mut self) -> usize {
        let first = self.rng.random_range(0..N_PODS);
        let second = (first + self.rng.random_range(1..N_PODS)) % N_PODS;
        if self.loads[second].in_flight < self.loads[first].in_flight { second } else { first }
    }

    fn longest_match(&mut self, request: &Request) -> usize {
        let chain = self.chain(request);
        self.index.longest_match(&chain, &mut self.matches);
        let longest =
            (0..N_PODS).max_by_key(|&pod| self.matches.bytes(endpoint(pod))).expect("there are pods");
        let is_held = self.matches.bytes(endpoint(longest)) * 2 > chain.total_bytes();
        let pod = if is_held { longest } else { self.less_busy_of_two() };
        self.index.insert(&chain, endpoint(pod));
        pod
    }

    fn policy_pick(&mut self, policy: &Policy, request: &Request, loads: [Load; N_PODS]) -> (usize, u64) {
        let chain = self.chain(request);
        self.index.longest_match(&chain, &mut self.matches);
        let candidates: Vec<Candidate> = (0..N_PODS)
            .map(|pod| {
                let matched_bytes = self.matches.bytes(endpoint(pod));
                let adapter = AdapterState::Irrelevant;
                Candidate { endpoint: endpoint(pod), load: loads[pod], adapter, matched_bytes }
            })
            .collect();
        let ask = Ask { total_bytes: chain.total_bytes(), n_endpoints: NonZeroUsize::MIN };
        let decision = pick(policy, &candidates, ask, &mut self.rng).expect("there are pods");
        self.index.insert(&chain, decision.endpoint);
        (decision.candidate_idx, decision.scores[decision.candidate_idx].uncached_bytes)
    }

    fn chain(&mut self, request: &Request) -> Chain {
        let Request { id, arrival: _, text, n_text, n_prompt, n_output: _ } = *request;
        let n_shared = n_text.min(n_prompt);
        let mut builder = match text {
            Text::Shared(text_idx) if n_text == n_shared => {
                let hash = || hashed(ChainBuilder::new(), n_shared, text_idx);
                self.texts.entry(text).or_insert_with(hash).clone()
            }
            Text::Shared(text_idx) => hashed(ChainBuilder::new(), n_shared, text_idx),
            Text::Own(_) | Text::Tail(_) => ChainBuilder::new(),
        };
        builder = hashed(builder, n_prompt - n_shared, 1_000_000 + id);
        builder.finish(&ChainSeed { target_model: "m", adapter: None, cache_salt: None })
    }
}

/// Appends `n_tokens` of a text that is the same only for the same seed.
fn hashed(mut builder: ChainBuilder, n_tokens: usize, seed: usize) -> ChainBuilder {
    let words = (0..n_tokens * BYTES_PER_TOKEN / 8).map(|position| (seed * 1_000_003 + position) as u64);
    builder.push(&words.flat_map(u64::to_le_bytes).collect::<Vec<_>>());
    builder
}

fn endpoint(pod: usize) -> EndpointId {
    EndpointId::new(pod as u32, 0)
}
