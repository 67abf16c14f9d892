//! Chooses a pod for each request: by the picker's policy, by Envoy's own, or by wrong policies that checks must
//! detect.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use prefix_index::chain::{BlockHash, Chain, ChainBuilder, ChainSeed};
use prefix_index::endpoint::EndpointId;
use prefix_index::index::PrefixIndex;
use prefix_index::matches::Matches;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use scheduling::affinity::Affinity;
use scheduling::pick::Policy as Picking;
use scheduling::standings::{CurrentLoad, Pick, Standings};
use vllm_engine::hash::BlockHash as EngineHash;

use crate::pod::{Gauges, Pod, Work};

/// The picker's default capacity of the index.
const INDEX_CAPACITY: NonZeroU32 = NonZeroU32::new(31_250).expect("above 0");
/// Least match that counts, as in the picker.
const MIN_MATCHED_BYTES: u64 = 64;
/// Bytes of a block in the index whose hashes ignore the blocks before.
const UNCHAINED_BLOCK: usize = 64;

/// The way in which pods are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
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
    /// The picker's `PREFIX_CACHE` in precise mode: by what the engines' caches hold, and will hold of requests in
    /// flight.
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
pub struct Ticket<'a> {
    /// The text whose prefixes are matched.
    pub text: &'a str,
    pub user: Option<u32>,
    pub work: &'a Work,
    pub now: Duration,
}

/// A pick, with its share of the pod's load until the first token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    pub pod_idx: usize,
    uncached_bytes: u64,
}

#[derive(Debug)]
pub struct Router {
    policy: Policy,
    rng: ChaCha8Rng,
    index: PrefixIndex,
    matches: Matches,
    /// Bytes of the current request that pods hold, by pod.
    held: Vec<(usize, u64)>,
    /// Bytes of the index's blocks; 1 for the index's own schedule.
    block_bytes: NonZeroU64,
    unchained: Vec<HashSet<BlockHash>>,
    /// Blocks that each pod will have computed for requests without a first token, with the number of these requests;
    /// by pod.
    expected: Vec<HashMap<EngineHash, u32>>,
    /// Blocks of the field above, by request.
    expected_of: HashMap<u64, Vec<EngineHash>>,
    /// Loads by pod, with the gauges of the last scrape.
    loads: Vec<CurrentLoad>,
    /// Loads of the field above, in the order that the picker's policies use.
    standings: Standings,
    next: usize,
}

/// Default of the policy's threshold.
const THRESHOLD: f64 = 0.5;

impl Policy {
    /// Makes `PREFIX_CACHE` in estimation mode with all defaults.
    #[must_use]
    pub fn prefix() -> Self {
        Self::Prefix(Affinity::new(THRESHOLD))
    }

    /// Makes `PREFIX_CACHE` in estimation mode with another share of a prompt that must match.
    #[must_use]
    pub fn prefix_above(threshold: f64) -> Self {
        Self::Prefix(Affinity::new(threshold))
    }

    /// Makes `PREFIX_CACHE` in estimation mode that ignores how busy the holder of a prefix is.
    #[must_use]
    pub fn prefix_pure() -> Self {
        Self::Prefix(Self::pure_affinity(THRESHOLD))
    }

    fn pure_affinity(threshold: f64) -> Affinity {
        Affinity { spill_bytes: f64::INFINITY, ..Affinity::new(threshold) }
    }

    /// Makes pure affinity with a guard against one busy pod, as in other routers.
    #[must_use]
    pub fn guard() -> Self {
        Self::Guard { threshold: THRESHOLD, max_gap: 4 }
    }

    /// Makes `PREFIX_CACHE` in precise mode with all defaults.
    #[must_use]
    pub fn precise() -> Self {
        Self::Precise(Affinity::new(THRESHOLD))
    }

    /// Makes estimation mode with an index that never learns of a pick.
    #[must_use]
    pub fn prefix_never_noted() -> Self {
        Self::PrefixNeverNoted(Affinity::new(THRESHOLD))
    }

    /// Makes estimation mode with blocks whose hashes ignore the blocks before.
    #[must_use]
    pub fn prefix_unchained() -> Self {
        Self::PrefixUnchained(Affinity::new(THRESHOLD))
    }

    /// Returns the picker's policy; for policies that the picker does not have, the result is never used.
    fn picking(self) -> Picking {
        match self {
            Self::RoundRobin | Self::Random | Self::LeastRequest => Picking::Default,
            Self::Load | Self::Oracle | Self::User => Picking::Default,
            Self::Guard { threshold, max_gap: _ } => Picking::PrefixCache(Self::pure_affinity(threshold)),
            Self::Prefix(affinity)
            | Self::Precise(affinity)
            | Self::PrefixNeverNoted(affinity)
            | Self::PrefixUnchained(affinity) => Picking::PrefixCache(affinity),
        }
    }
}

impl Router {
    #[must_use]
    pub fn new(policy: Policy, n_pods: usize, seed: u64) -> Self {
        Self {
            policy,
            rng: ChaCha8Rng::seed_from_u64(seed),
            index: PrefixIndex::new(INDEX_CAPACITY),
            matches: Matches::new(),
            held: Vec::new(),
            block_bytes: NonZeroU64::MIN,
            unchained: vec![HashSet::new(); n_pods],
            expected: vec![HashMap::new(); n_pods],
            expected_of: HashMap::new(),
            loads: vec![CurrentLoad::default(); n_pods],
            standings: Standings::new(policy.picking(), n_pods),
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
    pub fn note_scrape(&mut self, pod_idx: usize, gauges: Gauges) {
        let Gauges { waiting, running: _, kv_usage } = gauges;
        self.change(pod_idx, |load| *load = CurrentLoad { waiting, kv_usage, ..*load });
    }

    pub fn place(&mut self, ticket: Ticket<'_>, pods: &[Pod]) -> Placed {
        let n_pods = self.loads.len();
        let (pod_idx, uncached_bytes) = match self.policy {
            Policy::RoundRobin => {
                self.next = (self.next + 1) % n_pods;
                (self.next, 0)
            }
            Policy::Random => (self.rng.random_range(0..n_pods), 0),
            Policy::LeastRequest => (self.least_of_two(), 0),
            Policy::Guard { threshold: _, max_gap } => {
                let picked = self.by_prefix(ticket.text);
                let pod_idx = self.guarded(picked.0, max_gap);
                self.index.insert(&chain(ticket.text), endpoint(pod_idx));
                (pod_idx, 0)
            }
            Policy::Precise(_) => self.by_engines(ticket, pods),
            Policy::Oracle => (soonest(ticket, pods), 0),
            Policy::User => match ticket.user {
                Some(user) => (usize::try_from(user).unwrap_or_default() % n_pods, 0),
                None => (self.rng.random_range(0..n_pods), 0),
            },
            Policy::Load => self.pick(0),
            Policy::Prefix(_) | Policy::PrefixNeverNoted(_) => self.by_prefix(ticket.text),
            Policy::PrefixUnchained(_) => self.by_unchained(ticket.text),
        };
        self.change(pod_idx, |load| {
            load.in_flight += 1;
            load.uncached_bytes += uncached_bytes;
        });
        Placed { pod_idx, uncached_bytes }
    }

    /// Records that the first token has come.
    pub fn note_first_token(&mut self, id: u64, placed: Placed) {
        for hash in self.expected_of.remove(&id).unwrap_or_default() {
            if let Entry::Occupied(mut entry) = self.expected[placed.pod_idx].entry(hash) {
                *entry.get_mut() -= 1;
                if *entry.get() == 0 {
                    entry.remove();
                }
            }
        }
        self.change(placed.pod_idx, |load| load.uncached_bytes -= placed.uncached_bytes);
    }

    /// Records that the answer is complete.
    pub fn note_end(&mut self, placed: Placed) {
        self.change(placed.pod_idx, |load| load.in_flight -= 1);
    }

    fn change(&mut self, pod_idx: usize, change: impl FnOnce(&mut CurrentLoad)) {
        change(&mut self.loads[pod_idx]);
        self.standings.set(pod_idx, self.loads[pod_idx]);
    }

    fn by_prefix(&mut self, text: &str) -> (usize, u64) {
        let chain = chain(text);
        self.index.longest_match(&chain, &mut self.matches);
        let in_blocks = |n_bytes: u64| n_bytes - n_bytes % self.block_bytes;
        let found =
            self.matches.iter().map(|(endpoint, matched)| (endpoint.slot() as usize, in_blocks(matched)));
        self.held.clear();
        self.held.extend(found.filter(|(_, matched)| *matched >= MIN_MATCHED_BYTES));
        let picked = self.pick(in_blocks(chain.total_bytes()));
        if matches!(self.policy, Policy::Prefix(_)) {
            self.index.insert(&chain, endpoint(picked.0));
        }
        picked
    }

    /// Draws two pods and returns the less busy one.
    fn least_of_two(&mut self) -> usize {
        let [first, second] = [(); 2].map(|()| self.rng.random_range(0..self.loads.len()));
        if self.loads[second].in_flight < self.loads[first].in_flight { second } else { first }
    }

    /// Returns the pod, or another one if the fleet is out of balance.
    fn guarded(&mut self, pod_idx: usize, max_gap: u32) -> usize {
        let in_flight = || self.loads.iter().map(|load| load.in_flight);
        let gap = in_flight().max().unwrap_or(0) - in_flight().min().unwrap_or(0);
        if gap > max_gap { self.least_of_two() } else { pod_idx }
    }

    fn by_engines(&mut self, ticket: Ticket<'_>, pods: &[Pod]) -> (usize, u64) {
        let prompt = &ticket.work.prompt;
        let hashes = pods[0].hashes(prompt);
        let total = chain(ticket.text).total_bytes();
        let n_tokens = prompt.len().max(1) as u64;
        let matched = pods.iter().zip(&self.expected).map(|(pod, expected)| {
            let n_expected = hashes.iter().take_while(|hash| expected.contains_key(*hash)).count();
            // A request finds what an earlier one will have computed.
            let n_cached = u64::from(pod.cached_tokens(&hashes));
            n_cached.max((n_expected * pod.block_size()) as u64) * total / n_tokens
        });
        self.held.clear();
        self.held.extend(matched.enumerate().filter(|(_, matched)| *matched > 0));
        let picked = self.pick(total);
        for hash in &hashes {
            *self.expected[picked.0].entry(*hash).or_default() += 1;
        }
        self.expected_of.insert(ticket.work.id, hashes);
        picked
    }

    fn by_unchained(&mut self, text: &str) -> (usize, u64) {
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
        self.unchained[picked.0].extend(hashes);
        picked
    }

    /// Returns a pod by what pods hold of the prompt, and the bytes that the pod probably does not have cached.
    fn pick(&mut self, total_bytes: u64) -> (usize, u64) {
        let picked = self.standings.pick(total_bytes, &self.held, &mut self.rng);
        let Pick { endpoint_idx, reason: _, uncached_bytes } = picked.expect("a fleet has pods");
        (endpoint_idx, uncached_bytes)
    }
}

const SEED: ChainSeed<'static> = ChainSeed { target_model: "m", adapter: None, cache_salt: None };

fn chain(text: &str) -> Chain {
    let mut builder = ChainBuilder::new();
    builder.push(text.as_bytes());
    builder.finish(&SEED)
}

fn endpoint(pod_idx: usize) -> EndpointId {
    EndpointId::new(u32::try_from(pod_idx).expect("fewer than 2^32 pods"), 0)
}

/// Returns the pod whose first token comes first.
fn soonest(ticket: Ticket<'_>, pods: &[Pod]) -> usize {
    let time = |pod: &Pod| pod.time_to_first_token(ticket.now, ticket.work).unwrap_or(Duration::MAX);
    let times = pods.iter().map(time).enumerate();
    times.min_by_key(|(_, time)| *time).map_or(0, |(pod_idx, _)| pod_idx)
}
