//! Endpoints in the order of their load, so that a pick need not look at each. It finds what
//! [`pick`](crate::pick::pick) would find, with the same draws, and its cost grows with the logarithm of their number
//! and with the number of those that hold a prefix.
//!
//! Only for fleets whose metrics are always recent and that serve no adapters: [`CurrentLoad`] has no field for either.
//!
//! ```text
//! queue 0:  burden 0:    kv 0.1 {2, 5}  kv 0.3 {0}      ← among endpoints of one queue, a request changes
//!           burden 700:  kv 0.2 {7}                        everyone's work by the same
//! queue 1:  burden 256:  kv 0.2 {1, 3}
//! ```

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Bound;

use rand::{Rng, RngExt};

use crate::affinity::Burden;
use crate::pick::{Policy, Reason, ratio};

/// Load of an endpoint; see [`Load`](crate::candidate::Load).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CurrentLoad {
    pub waiting: u32,
    /// KV-cache usage in 0..=1; NaN counts as 0.
    pub kv_usage: f64,
    pub in_flight: u32,
    pub uncached_bytes: u64,
}

/// The endpoint for a request, and the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankedPick {
    pub endpoint_idx: usize,
    pub reason: Reason,
    /// Bytes of the request that the endpoint would have to compute.
    pub uncached_bytes: u64,
}

/// The loads of a fleet in order, for one policy.
#[derive(Clone, Debug)]
pub struct LoadIndex {
    policy: Policy,
    /// Rank of each endpoint.
    ranks: Vec<Rank>,
    /// The endpoints of each rank; no set is empty.
    members: BTreeMap<Rank, Members>,
}

/// Position in the order of load. Of two endpoints with the same queue and burden, the one with the lower rank is
/// better for any request. Floats are kept as their bits, which have the same order from 0 up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    queue: u32,
    /// The part of the work that is the same for every request, in bytes.
    burden: u64,
    uncached_in_flight: u64,
    kv_usage: u64,
}

/// A set of positions that finds its n-th member fast: bits in words, by the word's number.
#[derive(Clone, Debug, Default)]
struct Members {
    words: BTreeMap<usize, u64>,
    len: usize,
}

/// The figures that endpoints are compared by, the most important first.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
struct Cost {
    work: f64,
    queue: u32,
    kv_usage: f64,
}

/// The least cost so far, and the endpoints that have it.
#[derive(Debug)]
struct Leaders {
    cost: Cost,
    who: Vec<Who>,
}

#[derive(Clone, Copy, Debug)]
enum Who {
    /// All endpoints of the rank.
    Rank(Rank),
    Endpoint(usize),
}

impl LoadIndex {
    /// Creates `n_endpoints` idle endpoints. The policy's weights and threshold must not be negative.
    #[must_use]
    pub fn new(policy: Policy, n_endpoints: usize) -> Self {
        let rank = rank(&policy, CurrentLoad::default());
        let mut everyone = Members::default();
        (0..n_endpoints).for_each(|idx| everyone.insert(idx));
        let members = if n_endpoints > 0 { BTreeMap::from([(rank, everyone)]) } else { BTreeMap::new() };
        Self { policy, ranks: vec![rank; n_endpoints], members }
    }

    /// Sets an endpoint's load.
    pub fn set(&mut self, endpoint_idx: usize, load: CurrentLoad) {
        let to = rank(&self.policy, load);
        let from = std::mem::replace(&mut self.ranks[endpoint_idx], to);
        if from == to {
            return;
        }
        if let Some(members) = self.members.get_mut(&from) {
            members.remove(endpoint_idx);
            if members.len == 0 {
                self.members.remove(&from);
            }
        }
        self.members.entry(to).or_default().insert(endpoint_idx);
    }

    /// Picks an endpoint for a request of `total_bytes`. `matches` are the endpoints that hold some of it, each once,
    /// in any order, with the number of bytes. `None` without endpoints.
    pub fn pick(&self, total_bytes: u64, matches: &[(usize, u64)], rng: &mut impl Rng) -> Option<RankedPick> {
        let longest = matches.iter().map(|(_, matched)| ratio(*matched, total_bytes)).fold(0.0, f64::max);
        // If no match counts, none is preferred.
        let affinity = match &self.policy {
            Policy::PrefixCache(affinity) if longest > affinity.threshold => Some(affinity),
            Policy::PrefixCache(_) | Policy::Default => None,
        };
        let mut leaders = self.leaders(total_bytes);
        if let Some(affinity) = affinity {
            let is_longest = |(_, matched): &&(usize, u64)| ratio(*matched, total_bytes) >= longest;
            let mut holders = Leaders::nobody();
            self.add_holders(&mut holders, total_bytes, matches.iter().filter(is_longest));
            // Each was considered without what it holds; with that, it is at least as good.
            self.add_holders(&mut leaders, total_bytes, matches);
            if holders.cost.work <= leaders.cost.work + affinity.spill_bytes {
                leaders = holders;
            }
        }
        let endpoint_idx = self.draw(&leaders.who, rng)?;
        let matched = matches.iter().find(|(idx, _)| *idx == endpoint_idx).map_or(0, |(_, matched)| *matched);
        let reason = match affinity {
            Some(affinity) if ratio(matched, total_bytes) > affinity.threshold => Reason::Prefix,
            Some(_) => Reason::Spill,
            None if self.ranks.len() == 1 => Reason::OnlyCandidate,
            None => Reason::Load,
        };
        Some(RankedPick { endpoint_idx, reason, uncached_bytes: total_bytes.saturating_sub(matched) })
    }

    /// The best endpoints if none held any of the request.
    fn leaders(&self, total_bytes: u64) -> Leaders {
        let mut leaders = Leaders::nobody();
        let mut after = Bound::Unbounded;
        while let Some((&rank, _)) = self.members.range((after, Bound::Unbounded)).next() {
            let best = leaders.cost;
            if rank.queue > best.queue && self.floor(Rank { burden: 0, ..rank }, total_bytes) >= best.work {
                break;
            }
            after = if self.floor(rank, total_bytes) > best.work {
                let last = u64::MAX;
                Bound::Excluded(Rank { burden: last, uncached_in_flight: last, kv_usage: last, ..rank })
            } else {
                leaders.consider(self.cost(rank, total_bytes), Who::Rank(rank));
                Bound::Excluded(Rank { kv_usage: u64::MAX, ..rank })
            };
        }
        leaders
    }

    fn add_holders<'a>(
        &self,
        leaders: &mut Leaders,
        total_bytes: u64,
        holders: impl IntoIterator<Item = &'a (usize, u64)>,
    ) {
        for (idx, matched) in holders {
            let cost = self.cost(self.ranks[*idx], total_bytes.saturating_sub(*matched));
            leaders.consider(cost, Who::Endpoint(*idx));
        }
    }

    fn cost(&self, rank: Rank, own_uncached: u64) -> Cost {
        let Rank { queue, burden: _, uncached_in_flight, kv_usage } = rank;
        let kv_usage = f64::from_bits(kv_usage);
        let burden = Burden { uncached_in_flight, own_uncached, queue, kv_usage: Some(kv_usage) };
        let work = match &self.policy {
            Policy::Default => 0.0,
            Policy::PrefixCache(affinity) => affinity.work(burden),
        };
        Cost { work, queue, kv_usage }
    }

    /// A lower bound of the work of endpoints with the same queue and at least the same burden.
    fn floor(&self, rank: Rank, own_uncached: u64) -> f64 {
        match &self.policy {
            Policy::Default => 0.0,
            Policy::PrefixCache(affinity) => {
                affinity.floor(f64::from_bits(rank.burden), own_uncached, rank.queue)
            }
        }
    }

    /// Draws one of the equally good endpoints, in the order of endpoints; draws nothing if there is only one.
    fn draw(&self, who: &[Who], rng: &mut impl Rng) -> Option<usize> {
        let members = match who {
            [Who::Rank(rank)] => Cow::Borrowed(self.members.get(rank)?),
            several => {
                let mut members = Members::default();
                for who in several {
                    match who {
                        Who::Rank(rank) => self.members.get(rank)?.iter().for_each(|idx| members.insert(idx)),
                        Who::Endpoint(idx) => members.insert(*idx),
                    }
                }
                Cow::Owned(members)
            }
        };
        match members.len {
            0 => None,
            1 => members.nth(0),
            len => members.nth(rng.random_range(..len)),
        }
    }
}

impl Leaders {
    fn nobody() -> Self {
        let cost = Cost { work: f64::INFINITY, queue: u32::MAX, kv_usage: f64::INFINITY };
        Self { cost, who: Vec::new() }
    }

    fn consider(&mut self, cost: Cost, who: Who) {
        match cost.partial_cmp(&self.cost) {
            Some(Ordering::Less) => {
                self.cost = cost;
                self.who.clear();
                self.who.push(who);
            }
            Some(Ordering::Equal) => self.who.push(who),
            Some(Ordering::Greater) | None => {}
        }
    }
}

impl Members {
    fn insert(&mut self, idx: usize) {
        let word = self.words.entry(idx / 64).or_default();
        self.len += usize::from(*word >> (idx % 64) & 1 == 0);
        *word |= 1 << (idx % 64);
    }

    /// Removes a member.
    fn remove(&mut self, idx: usize) {
        let Some(word) = self.words.get_mut(&(idx / 64)) else { return };
        self.len -= 1;
        *word &= !(1 << (idx % 64));
        if *word == 0 {
            self.words.remove(&(idx / 64));
        }
    }

    /// The n-th member in order, from 0.
    fn nth(&self, mut n: usize) -> Option<usize> {
        for (word_idx, word) in &self.words {
            let n_here = word.count_ones() as usize;
            if n < n_here {
                return bits(*word).nth(n).map(|bit| word_idx * 64 + bit);
            }
            n -= n_here;
        }
        None
    }

    fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().flat_map(|(word_idx, word)| bits(*word).map(move |bit| word_idx * 64 + bit))
    }
}

/// The positions of a word's set bits, the lowest first.
fn bits(word: u64) -> impl Iterator<Item = usize> {
    let without_lowest = |word: &u64| Some(*word & word.wrapping_sub(1));
    std::iter::successors(Some(word), without_lowest)
        .take_while(|word| *word != 0)
        .map(|word| word.trailing_zeros() as usize)
}

fn rank(policy: &Policy, load: CurrentLoad) -> Rank {
    let CurrentLoad { waiting, kv_usage, in_flight, uncached_bytes } = load;
    // Adding 0 turns -0 into 0.
    let kv_usage = kv_usage.max(0.0) + 0.0;
    let (burden, uncached_in_flight) = match policy {
        Policy::Default => (0.0, 0),
        Policy::PrefixCache(affinity) => (affinity.burden(uncached_bytes, kv_usage), uncached_bytes),
    };
    let queue = in_flight.saturating_add(waiting);
    Rank { queue, burden: burden.to_bits(), uncached_in_flight, kv_usage: kv_usage.to_bits() }
}
