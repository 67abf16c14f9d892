//! Chooses a pod for each request: by the picker's policy, by Envoy's own, or by wrong policies that checks must
//! detect.

use std::collections::HashSet;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use picking::endpoint::{EndpointState, Sample};
use picking::estimate::CacheReading;
use picking::lease::Lease;
use picking::matching::Matched;
use picking::moment::Moment;
use picking::picker::{self, INDEX_CAPACITY, PickState, Picker, PickerSettings};
use picking::request::{Request, TokenPrompts};
use prefix_index::blocks::{BlockEvent, Bounds, TokenPrompt};
use prefix_index::chain::{BlockHash, Chain, ChainBuilder, ChainSeed};
use prefix_index::matches::Matches;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use scheduling::affinity::Affinity;
use scheduling::candidate::Load;
use scheduling::load_index::{CurrentLoad, LoadIndex, RankedPick};
use scheduling::pick::Policy;

use crate::pod::{Pod, PodLoad, Work};

/// Bytes of a block in the index whose hashes ignore the blocks before.
const UNCHAINED_BLOCK: usize = 64;

/// The way in which pods are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RouterPolicy {
    RoundRobin,
    Random,
    /// The less busy of two pods that are drawn with replacement, Envoy's default.
    LeastRequest,
    /// The picker's `DEFAULT`: by load.
    Load,
    /// The picker's `PREFIX_CACHE` in estimation mode.
    Prefix(Affinity),
    /// The pod with the longest matching prefix, however busy it is. If the busiest pod has more requests in flight
    /// than the idlest one by more than `max_gap`: the less busy of two pods that are drawn.
    Guard {
        threshold: f64,
        max_gap: u32,
    },
    /// The picker's `PREFIX_CACHE` in precise mode: by the engines' KV events.
    Precise(Affinity),
    /// The pod whose first token would come first, by trying a copy of every engine. It knows everything except later
    /// requests.
    Oracle,
    /// `Prefix` with an index that never learns of a pick.
    PrefixNeverNoted(Affinity),
    /// `Prefix` with blocks whose hashes ignore the blocks before.
    PrefixUnchained(Affinity),
    /// Chosen by the user's id if the request has one, otherwise at random.
    User,
}

/// The parts of a request that a policy sees.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// The text whose prefixes are matched.
    pub text: &'a str,
    pub user: Option<u32>,
    pub work: &'a Work,
    pub now: Duration,
}

/// A request that was placed, until its answer ends.
#[derive(Debug)]
#[must_use]
pub struct RoutedRequest {
    pub pod_idx: usize,
    lease: Lease<EndpointState>,
}

/// A pod for a request.
#[derive(Debug, Default)]
struct Choice {
    pod_idx: usize,
    /// Bytes of the prompt that the pod has still to compute; 0 if the policy does not go by them.
    uncached_bytes: u64,
    /// Bytes of the prompt that the pod is believed to have cached.
    matched_bytes: u64,
    /// The prompt, if the index learns of the pick.
    chain: Option<Chain>,
}

#[derive(Debug)]
pub struct Router {
    policy: RouterPolicy,
    pick_state: PickState<ChaCha8Rng>,
    picker: Picker,
    /// The pods as the picker sees them.
    endpoints: Vec<Arc<EndpointState>>,
    matches: Matches,
    /// Bytes of the current request that pods hold, by pod.
    held: Vec<(usize, u64)>,
    /// Bytes of the index's blocks; 1 for the index's own schedule.
    block_bytes: NonZeroU64,
    unchained: Vec<HashSet<BlockHash>>,
    /// The endpoints' loads in the order that the picker's policies use.
    load_index: LoadIndex,
    next: usize,
}

impl RouterPolicy {
    /// Makes `PREFIX_CACHE` in estimation mode with all defaults.
    #[must_use]
    pub fn prefix() -> Self {
        Self::Prefix(Affinity::default())
    }

    /// Makes `PREFIX_CACHE` in estimation mode with another share of a prompt that must match.
    #[must_use]
    pub fn prefix_above(threshold: f64) -> Self {
        Self::Prefix(Affinity::new(threshold))
    }

    /// Makes `PREFIX_CACHE` in estimation mode that ignores how busy the holder of a prefix is.
    #[must_use]
    pub fn prefix_pure() -> Self {
        Self::Prefix(Self::pure_affinity(Affinity::default().threshold))
    }

    fn pure_affinity(threshold: f64) -> Affinity {
        Affinity { spill_bytes: f64::INFINITY, ..Affinity::new(threshold) }
    }

    /// Makes pure affinity with a guard against one busy pod, as in other routers.
    #[must_use]
    pub fn guard() -> Self {
        Self::Guard { threshold: Affinity::default().threshold, max_gap: 4 }
    }

    /// Makes `PREFIX_CACHE` in precise mode with all defaults.
    #[must_use]
    pub fn precise() -> Self {
        Self::Precise(Affinity::default())
    }

    /// Makes estimation mode with an index that never learns of a pick.
    #[must_use]
    pub fn prefix_never_noted() -> Self {
        Self::PrefixNeverNoted(Affinity::default())
    }

    /// Makes estimation mode with blocks whose hashes ignore the blocks before.
    #[must_use]
    pub fn prefix_unchained() -> Self {
        Self::PrefixUnchained(Affinity::default())
    }

    /// Returns whether the router follows the engines' KV events.
    pub(crate) fn uses_kv_events(self) -> bool {
        matches!(self, Self::Precise(_))
    }

    /// Returns the picker's policy; for policies that the picker does not have, the result is never used.
    fn picking(self) -> Policy {
        match self {
            Self::RoundRobin | Self::Random | Self::LeastRequest => Policy::Default,
            Self::Load | Self::Oracle | Self::User => Policy::Default,
            Self::Guard { threshold, max_gap: _ } => Policy::PrefixCache(Self::pure_affinity(threshold)),
            Self::Prefix(affinity)
            | Self::Precise(affinity)
            | Self::PrefixNeverNoted(affinity)
            | Self::PrefixUnchained(affinity) => Policy::PrefixCache(affinity),
        }
    }
}

impl Router {
    #[must_use]
    pub fn new(policy: RouterPolicy, n_pods: usize, seed: u64) -> Self {
        let picker = Picker::new(PickerSettings {
            index_capacity: INDEX_CAPACITY,
            kv_bounds: Bounds::default(),
            // Scrapes are always recent in virtual time.
            max_metrics_age: Duration::MAX,
        });
        let endpoint =
            |slot: usize| Arc::new(picker.endpoint(u32::try_from(slot).expect("fewer than 2^32 pods")));
        let endpoints: Vec<_> = (0..n_pods).map(endpoint).collect();
        if policy.uses_kv_events() {
            endpoints.iter().for_each(|endpoint| picker.blocks().reset(endpoint.id(), true));
        }
        Self {
            policy,
            pick_state: PickState::new(ChaCha8Rng::seed_from_u64(seed)),
            picker,
            endpoints,
            matches: Matches::new(),
            held: Vec::new(),
            block_bytes: NonZeroU64::MIN,
            unchained: vec![HashSet::new(); n_pods],
            load_index: LoadIndex::new(policy.picking(), n_pods),
            next: 0,
        }
    }

    /// Gives all blocks of the index the same size, a power of two. Matches and totals are then those of the real
    /// index, rounded down. They are equal if the real blocks are not longer: at 128 bytes for texts below 16 KiB.
    #[must_use]
    pub fn with_blocks_of(mut self, n_bytes: NonZeroU64) -> Self {
        self.block_bytes = n_bytes;
        self
    }

    /// Records the result of a scrape.
    pub fn on_scrape(&mut self, pod_idx: usize, gauges: PodLoad, now: Duration) {
        let PodLoad { waiting, running, kv_usage, first_tokens } = gauges;
        let first_tokens = Some(first_tokens);
        let sample = Sample { waiting, running, kv_usage, first_tokens, ..Sample::default() };
        let endpoint = &self.endpoints[pod_idx];
        self.picker.on_scrape(endpoint, sample, endpoint.doubts(), Moment::after_epoch(now));
        self.rank(pod_idx);
    }

    /// Applies KV events of a pod's engine.
    pub fn on_kv_events(&mut self, pod_idx: usize, events: Vec<BlockEvent>) {
        self.picker.blocks().apply(self.endpoints[pod_idx].id(), events);
    }

    pub fn place(&mut self, view: RequestView<'_>, pods: &[Pod]) -> RoutedRequest {
        let Some(choice) = self.choose(view, pods) else { return self.place_by_events(view) };
        let Choice { pod_idx, uncached_bytes, matched_bytes, chain } = choice;
        let request = Request {
            policy: self.policy.picking(),
            n_endpoints: NonZeroUsize::MIN,
            target_model: None,
            chains: chain.as_slice(),
            tokens: None,
            prompt_bytes: view.text.len() as u64,
            reading: CacheReading::Text,
        };
        let matched = Matched { bytes: matched_bytes, estimated_bytes: matched_bytes, saved_tokens: None };
        let lease = self.picker.send(&request, &self.endpoints[pod_idx], matched, uncached_bytes);
        self.rank(pod_idx);
        RoutedRequest { pod_idx, lease }
    }

    /// Places a request as the servers do in precise mode.
    fn place_by_events(&mut self, view: RequestView<'_>) -> RoutedRequest {
        let chain = chain(view.text);
        let blocks = self.picker.blocks();
        let prompt = TokenPrompt { tokens: view.work.prompt.clone(), ..TokenPrompt::default() };
        let tokens = TokenPrompts {
            prompts: vec![prompt],
            block_size: blocks.block_size(self.endpoints.iter().map(|endpoint| endpoint.id())),
        };
        let request = Request {
            policy: self.policy.picking(),
            n_endpoints: NonZeroUsize::MIN,
            target_model: None,
            chains: std::slice::from_ref(&chain),
            tokens: Some(&tokens),
            prompt_bytes: view.text.len() as u64,
            reading: CacheReading::Text,
        };
        let endpoints: Vec<&Arc<EndpointState>> = self.endpoints.iter().collect();
        let placed =
            self.picker.place(&request, &endpoints, Moment::after_epoch(view.now), &mut self.pick_state);
        let picker::Placed { decision, lease, candidates: _, matched: _ } = placed.expect("a fleet has pods");
        RoutedRequest { pod_idx: decision.candidate_idx, lease }
    }

    /// Records that the first token has come.
    pub fn on_first_token(&mut self, placed: &mut RoutedRequest) {
        let RoutedRequest { pod_idx, lease } = placed;
        lease.on_first_token();
        self.rank(*pod_idx);
    }

    /// Records that the answer is complete.
    pub fn on_end(&mut self, placed: RoutedRequest) {
        let RoutedRequest { pod_idx, lease } = placed;
        self.picker.on_end(lease, None);
        self.rank(pod_idx);
    }

    /// Brings the order up to the endpoint's load. Scrapes are always recent here, so that no number is too old to count.
    fn rank(&mut self, pod_idx: usize) {
        let load = self.endpoints[pod_idx].load(Moment::default(), Duration::MAX);
        let Load { waiting, kv_usage, in_flight, uncached_bytes, running: _, age: _, fresh: _ } = load;
        self.load_index.set(pod_idx, CurrentLoad { waiting, kv_usage, in_flight, uncached_bytes });
    }

    /// Returns the choice of the policy; `None` for precise mode, in which the picker chooses by itself.
    fn choose(&mut self, view: RequestView<'_>, pods: &[Pod]) -> Option<Choice> {
        let n_pods = self.endpoints.len();
        let any_load = |pod_idx| Choice { pod_idx, ..Choice::default() };
        let choice = match self.policy {
            RouterPolicy::RoundRobin => {
                self.next = (self.next + 1) % n_pods;
                any_load(self.next)
            }
            RouterPolicy::Random => any_load(self.pick_state.rng.random_range(0..n_pods)),
            RouterPolicy::LeastRequest => any_load(self.least_of_two()),
            RouterPolicy::Guard { threshold: _, max_gap } => {
                let Choice { pod_idx, chain, .. } = self.by_prefix(view.text);
                Choice { pod_idx: self.guarded(pod_idx, max_gap), chain, ..Choice::default() }
            }
            RouterPolicy::Precise(_) => return None,
            RouterPolicy::Oracle => any_load(soonest(view, pods)),
            RouterPolicy::User => match view.user {
                Some(user) => any_load(usize::try_from(user).unwrap_or_default() % n_pods),
                None => any_load(self.pick_state.rng.random_range(0..n_pods)),
            },
            RouterPolicy::Load => {
                self.held.clear();
                self.pick(0)
            }
            RouterPolicy::Prefix(_) => self.by_prefix(view.text),
            RouterPolicy::PrefixNeverNoted(_) => Choice { chain: None, ..self.by_prefix(view.text) },
            RouterPolicy::PrefixUnchained(_) => self.by_unchained(view.text),
        };
        Some(choice)
    }

    fn by_prefix(&mut self, text: &str) -> Choice {
        let chain = chain(text);
        let in_blocks = |n_bytes: u64| n_bytes - n_bytes % self.block_bytes;
        let holders = self.picker.holders(&chain, &mut self.matches);
        self.held.clear();
        let by_pod = holders.map(|(endpoint, matched)| (endpoint.slot() as usize, in_blocks(matched)));
        self.held.extend(by_pod.filter(|(_, matched)| *matched > 0));
        let choice = self.pick(in_blocks(chain.total_bytes()));
        Choice { chain: Some(chain), ..choice }
    }

    /// Draws two pods and returns the less busy one.
    fn least_of_two(&mut self) -> usize {
        let [first, second] = [(); 2].map(|()| self.pick_state.rng.random_range(0..self.endpoints.len()));
        let in_flight = |pod_idx: usize| self.endpoints[pod_idx].in_flight();
        if in_flight(second) < in_flight(first) { second } else { first }
    }

    /// Returns the pod, or another one if the fleet is out of balance.
    fn guarded(&mut self, pod_idx: usize, max_gap: u32) -> usize {
        let in_flight = || self.endpoints.iter().map(|endpoint| endpoint.in_flight());
        let gap = in_flight().max().unwrap_or(0) - in_flight().min().unwrap_or(0);
        if gap > max_gap { self.least_of_two() } else { pod_idx }
    }

    fn by_unchained(&mut self, text: &str) -> Choice {
        // A chain of one block is the hash of that block alone.
        let hash = |block: &[u8]| {
            let mut builder = ChainBuilder::new();
            builder.push(block);
            builder.finish(&SEED).hashes().last().copied()
        };
        let hashes: Vec<BlockHash> = text.as_bytes().chunks_exact(UNCHAINED_BLOCK).filter_map(hash).collect();
        let bytes = |held: &HashSet<BlockHash>| {
            let n_blocks = hashes.iter().filter(|hash| held.contains(hash)).count();
            (n_blocks * UNCHAINED_BLOCK) as u64
        };
        let matched = self.unchained.iter().map(bytes);
        self.held.clear();
        self.held.extend(matched.enumerate().filter(|(_, matched)| *matched > 0));
        let total = (hashes.len() * UNCHAINED_BLOCK) as u64;
        let picked = self.pick(total);
        self.unchained[picked.pod_idx].extend(hashes);
        picked
    }

    /// Chooses a pod by what pods hold of the prompt.
    fn pick(&mut self, total_bytes: u64) -> Choice {
        let picked = self.load_index.pick(total_bytes, &self.held, &mut self.pick_state.rng);
        let RankedPick { endpoint_idx, reason: _, uncached_bytes } = picked.expect("a fleet has pods");
        Choice {
            pod_idx: endpoint_idx,
            uncached_bytes,
            matched_bytes: total_bytes.saturating_sub(uncached_bytes),
            chain: None,
        }
    }
}

const SEED: ChainSeed<'static> = ChainSeed { target_model: "m", adapter: None, cache_salt: None };

fn chain(text: &str) -> Chain {
    let mut builder = ChainBuilder::new();
    builder.push(text.as_bytes());
    builder.finish(&SEED)
}

/// Returns the pod whose first token comes first.
fn soonest(view: RequestView<'_>, pods: &[Pod]) -> usize {
    let time = |pod: &Pod| pod.time_to_first_token(view.now, view.work).unwrap_or(Duration::MAX);
    let times = pods.iter().map(time).enumerate();
    times.min_by_key(|(_, time)| *time).map_or(0, |(pod_idx, _)| pod_idx)
}
