//! Who gets a request: the picker's policy, the proxy's own, and wrong ones that checks must tell from it.

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

/// The picker's own default.
const INDEX_CAPACITY: NonZeroU32 = NonZeroU32::new(31_250).expect("above 0");
/// Shorter matches count as none, as in the picker.
const MIN_MATCHED_BYTES: u64 = 64;
/// Of the index whose blocks do not depend on what is before them.
const UNCHAINED_BLOCK: usize = 64;

/// How requests are placed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    RoundRobin,
    Random,
    /// The less busy of two that are drawn, with replacement, as Envoy does by default.
    LeastRequest,
    /// `DEFAULT`: by load.
    Load,
    /// `PREFIX_CACHE` in estimation mode.
    Prefix(Affinity),
    /// The longest prefix however busy its holder is, until the busiest pod has more requests in flight than the idlest by
    /// more than this; then the less busy of two that are drawn.
    Guard {
        threshold: f64,
        max_gap: u32,
    },
    /// `PREFIX_CACHE` in precise mode: by what the engines' caches hold, and will hold of what was sent.
    Precise(Affinity),
    /// Where the first token would come soonest, by asking a copy of every engine. It knows all but what comes later.
    Oracle,
    /// The same with an index that is never told of a pick.
    PrefixNeverNoted(Affinity),
    /// The same with blocks that are hashed each for itself.
    PrefixUnchained(Affinity),
    /// By the user's id, where the request has one; else at random.
    User,
}

/// What a policy sees of a request.
#[derive(Clone, Copy, Debug)]
pub struct Ticket<'a> {
    /// The text that prefixes are matched by.
    pub text: &'a str,
    pub user: Option<u32>,
    pub work: &'a Work,
    pub now: Duration,
}

/// A pick, and what it counts as until the first token.
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
    /// Of the request at hand, who holds how many bytes.
    held: Vec<(usize, u64)>,
    /// Bytes of the index's blocks; 1: as it has them.
    block_bytes: NonZeroU64,
    unchained: Vec<HashSet<BlockHash>>,
    /// Of requests without their first token, the blocks that their pods will have: by pod, for how many requests.
    expected: Vec<HashMap<EngineHash, u32>>,
    /// The same by request.
    expected_of: HashMap<u64, Vec<EngineHash>>,
    /// By pod; its gauges as last scraped.
    loads: Vec<CurrentLoad>,
    /// The same in order, for the picker's policies.
    standings: Standings,
    next: usize,
}

/// The policy's threshold where nothing else is said.
const THRESHOLD: f64 = 0.5;

impl Policy {
    /// `PREFIX_CACHE` in estimation mode, with every knob as it is built in.
    #[must_use]
    pub fn prefix() -> Self {
        Self::Prefix(Affinity::new(THRESHOLD))
    }

    /// The same with another share of a prompt that must match.
    #[must_use]
    pub fn prefix_above(threshold: f64) -> Self {
        Self::Prefix(Affinity::new(threshold))
    }

    /// The same, however busy the holder of a prefix is.
    #[must_use]
    pub fn prefix_pure() -> Self {
        Self::Prefix(Self::pure_affinity(THRESHOLD))
    }

    fn pure_affinity(threshold: f64) -> Affinity {
        Affinity { spill_bytes: f64::INFINITY, ..Affinity::new(threshold) }
    }

    /// Pure affinity with a guard against one busy pod, as other routers have it.
    #[must_use]
    pub fn guard() -> Self {
        Self::Guard { threshold: THRESHOLD, max_gap: 4 }
    }

    /// `PREFIX_CACHE` in precise mode.
    #[must_use]
    pub fn precise() -> Self {
        Self::Precise(Affinity::new(THRESHOLD))
    }

    /// The same with an index that is never told of a pick.
    #[must_use]
    pub fn prefix_never_noted() -> Self {
        Self::PrefixNeverNoted(Affinity::new(THRESHOLD))
    }

    /// The same with blocks that are hashed each for itself.
    #[must_use]
    pub fn prefix_unchained() -> Self {
        Self::PrefixUnchained(Affinity::new(THRESHOLD))
    }

    /// As the picker knows it; that of others is never asked.
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

    /// The same with an index whose blocks are all of so many bytes, a power of two: its matches and totals are those of
    /// the real one, rounded down. Exact where the real one's blocks are no longer: at 128 bytes, for texts below 16 KiB.
    #[must_use]
    pub fn with_blocks_of(mut self, n_bytes: NonZeroU64) -> Self {
        self.block_bytes = n_bytes;
        self
    }

    /// What a scrape found.
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

    /// The first token came.
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

    /// The answer is complete.
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

    /// The less busy of two that are drawn.
    fn least_of_two(&mut self) -> usize {
        let [first, second] = [(); 2].map(|()| self.rng.random_range(0..self.loads.len()));
        if self.loads[second].in_flight < self.loads[first].in_flight { second } else { first }
    }

    /// The pod, unless the fleet is out of balance.
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
            // What one request computes, the next one behind it finds.
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
        // A chain of one block is a hash of the block alone.
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

    /// The pod, and the bytes of the prompt that it is not believed to have, by what is held of it.
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

/// The pod where the first token comes first.
fn soonest(ticket: Ticket<'_>, pods: &[Pod]) -> usize {
    let time = |pod: &Pod| pod.time_to_first_token(ticket.now, ticket.work).unwrap_or(Duration::MAX);
    let times = pods.iter().map(time).enumerate();
    times.min_by_key(|(_, time)| *time).map_or(0, |(pod_idx, _)| pod_idx)
}
