//! Compares random workloads with naive models: the block pool with lists, the engine with sets of prefixes.

use crate::fixtures::engine;
use proptest::prelude::{Just, ProptestConfig, Strategy, any};
use proptest::{collection, option, prop_assert, prop_assert_eq, prop_oneof, proptest};
use std::collections::{BTreeMap, HashSet, VecDeque};
use vllm_engine::block_pool::{BlockIdx, BlockPool, FreeOrder};
use vllm_engine::config::SchedulingPolicy;
use vllm_engine::engine::Engine;
use vllm_engine::event::KvEvent;
use vllm_engine::hash::BlockHash;
use vllm_engine::request::{CacheReading, EngineRequest, FinishReason, RequestId};
use vllm_engine::step::{Origin, StepOutput};

const N_BLOCKS: u32 = 12;

// === the pool against lists ===

#[derive(Clone, Debug)]
enum Op {
    /// Takes this many blocks for a new holder.
    Allocate(usize),
    /// Takes the same blocks as an earlier holder, for a new one.
    Share(usize),
    /// Gives the first blocks of a holder without a hash these hashes.
    Insert(usize, Vec<u8>),
    Release(usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        (1..6_usize).prop_map(Op::Allocate),
        any::<usize>().prop_map(Op::Share),
        (any::<usize>(), collection::vec(0..6_u8, 1..4))
            .prop_map(|(holder, hashes)| Op::Insert(holder, hashes)),
        any::<usize>().prop_map(Op::Release),
    ];
    collection::vec(op, 1..80)
}

/// The pool as lists that are searched from end to end.
struct NaivePool {
    free: VecDeque<BlockIdx>,
    refs: Vec<u32>,
    /// Cached blocks in order of insertion.
    cached: Vec<(BlockHash, BlockIdx)>,
}

impl NaivePool {
    fn new() -> Self {
        Self { free: (1..N_BLOCKS).collect(), refs: vec![0; N_BLOCKS as usize], cached: Vec::new() }
    }

    fn hash_of(&self, block: BlockIdx) -> Option<BlockHash> {
        self.cached.iter().find(|(_, cached)| *cached == block).map(|(hash, _)| *hash)
    }

    fn find(&self, hash: BlockHash) -> Option<BlockIdx> {
        self.cached.iter().find(|(cached, _)| *cached == hash).map(|(_, block)| *block)
    }

    fn allocate(&mut self) -> Option<(BlockIdx, Option<BlockHash>)> {
        let block = self.free.pop_front()?;
        let evicted = self.hash_of(block);
        self.cached.retain(|(_, cached)| *cached != block);
        self.refs[block as usize] = 1;
        Some((block, evicted))
    }

    fn hold(&mut self, block: BlockIdx) {
        self.refs[block as usize] += 1;
        self.free.retain(|free| *free != block);
    }

    fn release(&mut self, blocks: &[BlockIdx], order: FreeOrder) {
        let mut freed = Vec::new();
        for block in blocks.iter().rev() {
            self.refs[*block as usize] -= 1;
            if self.refs[*block as usize] == 0 {
                freed.push(*block);
            }
        }
        if order == FreeOrder::AsReleased {
            return self.free.extend(freed);
        }
        let (hashed, unhashed): (Vec<BlockIdx>, Vec<BlockIdx>) =
            freed.into_iter().partition(|block| self.hash_of(*block).is_some());
        unhashed.into_iter().rev().for_each(|block| self.free.push_front(block));
        self.free.extend(hashed);
    }
}

fn digest(seed: u8) -> BlockHash {
    BlockHash([seed; 32])
}

fn apply(
    op: Op,
    (pool, order): (&mut BlockPool, FreeOrder),
    naive: &mut NaivePool,
    holders: &mut Vec<Vec<BlockIdx>>,
) {
    match op {
        Op::Allocate(n) => {
            let taken: Vec<_> = (0..n).map_while(|_| pool.allocate()).collect();
            let expected: Vec<_> = (0..n).map_while(|_| naive.allocate()).collect();
            assert_eq!(taken, expected);
            holders.push(taken.into_iter().map(|(block, _)| block).collect());
        }
        Op::Share(holder) if !holders.is_empty() => {
            let blocks = holders[holder % holders.len()].clone();
            for block in &blocks {
                pool.hold(*block);
                naive.hold(*block);
            }
            holders.push(blocks);
        }
        Op::Insert(holder, hashes) if !holders.is_empty() => {
            let blocks = &holders[holder % holders.len()];
            let unhashed: Vec<_> =
                blocks.iter().filter(|block| pool.hash(**block).is_none()).copied().collect();
            for (block, hash) in unhashed.into_iter().zip(hashes) {
                pool.insert(block, digest(hash));
                naive.cached.push((digest(hash), block));
            }
        }
        Op::Release(holder) if !holders.is_empty() => {
            let blocks = holders.swap_remove(holder % holders.len());
            naive.release(&blocks, order);
            pool.release(blocks.into_iter().rev());
        }
        Op::Share(_) | Op::Insert(..) | Op::Release(_) => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn the_pool_does_what_lists_do(ops in ops(), before_0_33: bool) {
        let order = if before_0_33 { FreeOrder::AsReleased } else { FreeOrder::UnhashedFirst };
        let (mut pool, mut naive) = (BlockPool::new(N_BLOCKS, order), NaivePool::new());
        let mut holders = Vec::new();
        for op in ops {
            apply(op, (&mut pool, order), &mut naive, &mut holders);
            prop_assert_eq!(pool.free_order().collect::<VecDeque<_>>(), naive.free.clone());
            prop_assert_eq!(pool.n_free() as usize, naive.free.len());
            for block in 1..N_BLOCKS {
                prop_assert_eq!(pool.n_refs(block), naive.refs[block as usize]);
                prop_assert_eq!(pool.hash(block), naive.hash_of(block));
            }
            for hash in (0..6).map(digest) {
                prop_assert_eq!(pool.find(&hash), naive.find(hash));
            }
        }
    }
}

// === the engine against its invariants, and against sets of prefixes ===

#[derive(Clone, Debug)]
struct Arrival {
    /// Steps since the previous arrival.
    gap: u8,
    /// Index of the long text that the prompt starts with, how long, and how many tokens of its own follow.
    text: u32,
    n_shared: u32,
    n_own: u32,
    n_output: u32,
    salt: Option<bool>,
    priority: i32,
    /// Number of steps after its arrival at which it is aborted.
    abort_after: Option<u8>,
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let arrival =
        (
            (0..6_u8, 0..3_u32, 0..120_u32, 1..40_u32, 1..60_u32),
            (option::weighted(0.3, any::<bool>()), 0..3_i32, option::weighted(0.2, 0..30_u8)),
        )
            .prop_map(|((gap, text, n_shared, n_own, n_output), (salt, priority, abort_after))| {
                Arrival { gap, text, n_shared, n_own, n_output, salt, priority, abort_after }
            });
    collection::vec(arrival, 1..25)
}

fn policy() -> impl Strategy<Value = SchedulingPolicy> {
    prop_oneof![Just(SchedulingPolicy::Fcfs), Just(SchedulingPolicy::Priority)]
}

fn engine_request(id: u64, arrival: &Arrival) -> EngineRequest {
    let own = u32::try_from(id).unwrap() * 1_000 + 100_000;
    let shared = (0..arrival.n_shared).map(|token| arrival.text * 1_000 + token);
    EngineRequest {
        id: RequestId(id),
        prompt: shared.chain(own..own + arrival.n_own).collect(),
        output: (own + 500..own + 500 + arrival.n_output).collect(),
        finish: FinishReason::Length,
        cache_salt: arrival.salt.map(|salt| salt.to_string().into()),
        cache_reading: CacheReading::Read,
        lora: None,
        priority: arrival.priority,
    }
}

/// Drives `engine` with the arrivals; `observe` sees it after each `schedule` and each `complete`.
fn drive(engine: &mut Engine, arrivals: &[Arrival], mut observe: impl FnMut(&mut Engine, bool)) {
    let mut due = Vec::new();
    let mut at = 0_u32;
    for (id, arrival) in (0..).zip(arrivals) {
        at += u32::from(arrival.gap);
        due.push((at, id, arrival));
    }
    let mut output = StepOutput::default();
    for step in 0.. {
        for (_, id, arrival) in due.iter().filter(|(at, ..)| *at == step) {
            engine.add(engine_request(*id, arrival)).unwrap();
        }
        if engine.schedule().is_some() {
            observe(engine, true);
            engine.complete(&mut output);
        }
        for (at, id, arrival) in &due {
            if arrival.abort_after.is_some_and(|after| at + u32::from(after) == step) {
                engine.abort(RequestId(*id));
            }
        }
        observe(engine, false);
        if step > at && !engine.has_requests() {
            return;
        }
        assert!(step < 20_000, "the engine makes no progress");
    }
}

/// Checks that every block is free or held by exactly the requests that list it, and that the gauges agree.
fn check_blocks(engine: &Engine, n_requests: usize) {
    let pool = engine.block_pool();
    let mut n_refs = BTreeMap::<BlockIdx, u32>::new();
    for id in (0..n_requests as u64).map(RequestId) {
        engine
            .blocks_of(id)
            .unwrap_or_default()
            .iter()
            .for_each(|block| *n_refs.entry(*block).or_default() += 1);
    }
    let free: Vec<BlockIdx> = pool.free_order().collect();
    let free_set: HashSet<BlockIdx> = free.iter().copied().collect();
    assert_eq!(free.len(), free_set.len(), "a block is free once");
    assert!(!free_set.contains(&0) && !n_refs.contains_key(&0), "the null block is never handed out");
    for block in 1..=pool.n_usable() {
        let expected = n_refs.get(&block).copied().unwrap_or(0);
        assert_eq!(pool.n_refs(block), expected, "block {block}");
        assert_eq!(free_set.contains(&block), expected == 0, "block {block}");
    }
    let stats = engine.stats();
    assert_eq!(stats.free_blocks as usize, free.len());
    let usage = n_refs.len() as f64 / f64::from(pool.n_usable());
    assert!((stats.kv_usage - usage).abs() < 1e-12);
}

/// Returns every full block of known tokens, as the whole text up to its end.
fn prefixes(request: &EngineRequest, n_computed: u32) -> impl Iterator<Item = (Option<String>, Vec<u32>)> {
    let tokens: Vec<u32> =
        request.prompt.iter().chain(&*request.output).copied().take(n_computed as usize).collect();
    let salt = request.cache_salt.as_deref().map(str::to_owned);
    (1..=tokens.len() / 16).map(move |n| (salt.clone(), tokens[..n * 16].to_vec()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn blocks_are_held_by_those_who_list_them(arrivals in arrivals(), policy in policy(), caching in any::<bool>()) {
        let mut engine = engine(|config| {
            config.n_blocks = 18;
            config.max_model_len = 256;
            config.max_num_seqs = 6;
            config.max_num_batched_tokens = 48;
            config.policy = policy;
            config.prefix_caching = caching;
            config.kv_events = true;
        });
        let mut cached = BTreeMap::<[u8; 32], u32>::new();
        drive(&mut engine, &arrivals, |engine, _| {
            check_blocks(engine, arrivals.len());
            // A subscriber that follows the events knows what the pool has.
            for event in engine.take_events() {
                match event {
                    KvEvent::BlockStored { block_hashes, .. } => {
                        block_hashes.iter().for_each(|hash| *cached.entry(hash.0).or_default() += 1);
                    }
                    KvEvent::BlockRemoved { block_hash } => *cached.get_mut(&block_hash.0).unwrap() -= 1,
                    KvEvent::AllBlocksCleared => cached.clear(),
                }
            }
            cached.retain(|_, copies| *copies > 0);
            let mut seen = BTreeMap::<[u8; 32], u32>::new();
            let pool = engine.block_pool();
            (1..=pool.n_usable())
                .filter_map(|block| pool.hash(block))
                .for_each(|hash| *seen.entry(hash.0).or_default() += 1);
            assert_eq!(seen, cached);
        });
        let stats = engine.stats();
        prop_assert_eq!((stats.running, stats.waiting, stats.free_blocks), (0, 0, 17));
        prop_assert!(caching || stats.prefix_cache_hits + stats.preempted_hits == 0);
    }

    #[test]
    fn hits_are_the_longest_known_prefix(arrivals in arrivals(), policy in policy()) {
        let mut engine = engine(|config| {
            config.max_num_seqs = 6;
            config.max_num_batched_tokens = 48;
            config.policy = policy;
        });
        let mut known = HashSet::new();
        let (mut queries, mut hits) = (0, 0);
        drive(&mut engine, &arrivals, |engine, scheduled| {
            if !scheduled {
                return;
            }
            let plan = engine.plan().clone();
            for scheduled in &plan.scheduled {
                let idx = usize::try_from(scheduled.id.0).unwrap();
                let request = engine_request(scheduled.id.0, &arrivals[idx]);
                if scheduled.origin == Origin::New {
                    let n_prompt = u32::try_from(request.prompt.len()).unwrap();
                    let n_hits = prefixes(&request, n_prompt - 1).take_while(|prefix| known.contains(prefix)).count();
                    assert_eq!(scheduled.n_computed_before as usize, n_hits * 16);
                    queries += u64::from(n_prompt);
                    hits += n_hits as u64 * 16;
                }
                known.extend(prefixes(&request, scheduled.n_computed_after()));
            }
        });
        let stats = engine.stats();
        prop_assert_eq!((stats.prefix_cache_queries, stats.prefix_cache_hits), (queries, hits));
        prop_assert_eq!(stats.preemptions, 0, "the pool is ample");
    }
}
