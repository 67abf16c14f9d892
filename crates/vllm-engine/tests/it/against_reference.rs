//! Compares the engine with the reference, field by field, under random arrivals, aborts, resets and losses of memory
//! at any moment of a step. Also tests that deferral does not harm other requests.

use crate::fixtures::{engine, request};
use crate::reference::{Event, Prefix, Reference, owner};
use proptest::prelude::{Just, ProptestConfig, Strategy, any};
use proptest::{collection, option, prop_assert_eq, prop_oneof, proptest};
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use vllm_engine::config::{EngineConfig, SchedulingPolicy};
use vllm_engine::engine::Engine;
use vllm_engine::event::KvEvent;
use vllm_engine::hash::{BlockHash, HashAlgorithm, HashSeed};
use vllm_engine::prefix::{PromptPrefix, cached_prefix};
use vllm_engine::request::{CacheReading, EngineRequest, FinishReason, LoraAdapter, RequestId};
use vllm_engine::step::StepOutput;
use vllm_engine::vllm_version::VllmVersion;

/// Blocks of the pool, one more than usable; the longest request takes 10.
const N_BLOCKS: u32 = 18;
const MAX_MODEL_LEN: u32 = 160;

#[derive(Clone, Debug)]
enum Action {
    Arrive(Arrival),
    /// Aborts one of those that have arrived, alive or not.
    Abort(usize),
    /// Ends the step that runs, or composes the next one.
    Advance(u8),
    Reserve(u32),
    Reset,
}

#[derive(Clone, Debug)]
struct Arrival {
    /// Index of the long text that the prompt starts with, how much of it, and how many tokens of its own follow.
    text: u32,
    n_shared: u32,
    n_own: u32,
    n_output: u32,
    lora: usize,
    salt: Option<bool>,
    priority: i32,
}

/// Returns an adapter. The first two are the same one, loaded twice.
fn adapter(idx: usize) -> Option<Arc<LoraAdapter>> {
    let (id, name, path) = [(1, "a", "/p"), (2, "a", "/p"), (3, "a", "/q"), (4, "b", "/p")].get(idx)?;
    Some(Arc::new(LoraAdapter { id: *id, name: (*name).to_owned(), path: (*path).to_owned() }))
}

fn arrival() -> impl Strategy<Value = Arrival> {
    // Often this is the end of a block, so that the whole prompt may be known.
    let n_shared = prop_oneof![1..100_u32, (1..7_u32).prop_map(|n_blocks| n_blocks * 16)];
    let n_own = prop_oneof![Just(0), 1..40_u32];
    let lengths = (0..2_u32, n_shared, n_own, 1..50_u32);
    // Indices from 4 on mean no adapter.
    (lengths, (0..7_usize, option::weighted(0.3, any::<bool>()), 0..3_i32)).prop_map(
        |((text, n_shared, n_own, n_output), (lora, salt, priority))| Arrival {
            text,
            n_shared,
            n_own,
            n_output,
            lora,
            salt,
            priority,
        },
    )
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        5 => arrival().prop_map(Action::Arrive),
        2 => any::<usize>().prop_map(Action::Abort),
        12 => (1..8_u8).prop_map(Action::Advance),
        1 => (0..N_BLOCKS).prop_map(Action::Reserve),
        1 => Just(Action::Reset),
    ];
    collection::vec(action, 1..70)
}

fn config(version: VllmVersion) -> impl Strategy<Value = EngineConfig> {
    let budget = prop_oneof![4..24_u32, 24..80_u32];
    let limits = (1..7_u32, budget, prop_oneof![Just(0), 3..40_u32], option::weighted(0.7, 1..4_u32));
    let switches = (any::<bool>(), proptest::bool::weighted(0.9), proptest::bool::weighted(0.9), 0..3_u32);
    (limits, switches, any::<bool>()).prop_map(move |(limits, switches, cbor)| {
        let (max_num_seqs, budget, long_prefill_token_threshold, max_loras) = limits;
        let (by_priority, prefix_caching, chunked_prefill, n_watermark) = switches;
        EngineConfig {
            n_blocks: N_BLOCKS,
            max_num_seqs,
            max_num_batched_tokens: if chunked_prefill { budget } else { MAX_MODEL_LEN + budget },
            max_model_len: MAX_MODEL_LEN,
            policy: if by_priority { SchedulingPolicy::Priority } else { SchedulingPolicy::Fcfs },
            prefix_caching,
            chunked_prefill,
            long_prefill_token_threshold,
            hash: if cbor { HashAlgorithm::Sha256Cbor } else { HashAlgorithm::Sha256 },
            hash_seed: HashSeed::Random([7; 32]),
            version,
            max_loras: max_loras.and_then(NonZeroU32::new),
            watermark: f64::from(n_watermark) / f64::from(N_BLOCKS) + 0.01,
            kv_events: true,
            ..EngineConfig::default()
        }
    })
}

fn engine_request(id: u64, arrival: &Arrival) -> EngineRequest {
    let own = u32::try_from(id).unwrap() * 1_000 + 100_000;
    let shared = (0..arrival.n_shared).map(|token| arrival.text * 1_000 + token);
    EngineRequest {
        id: RequestId(id),
        prompt: shared.chain(own..own + arrival.n_own).collect(),
        output: (own + 500..own + 500 + arrival.n_output).collect(),
        finish: FinishReason::Stop,
        cache_salt: arrival.salt.map(|salt| salt.to_string().into()),
        cache_reading: CacheReading::Read,
        lora: adapter(arrival.lora),
        priority: arrival.priority,
    }
}

/// Both engines, and the meanings of the hashes that the real one has named so far.
struct Pair {
    real: Engine,
    naive: Reference,
    requests: Vec<EngineRequest>,
    in_step: bool,
    text_of: HashMap<BlockHash, Prefix>,
    hash_of: HashMap<Prefix, BlockHash>,
}

// === impl Pair ===

impl Pair {
    fn new(config: &EngineConfig) -> Self {
        Self {
            real: Engine::try_new(config.clone()).unwrap(),
            naive: Reference::new(config),
            requests: Vec::new(),
            in_step: false,
            text_of: HashMap::new(),
            hash_of: HashMap::new(),
        }
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Arrive(arrival) => {
                let request = engine_request(self.requests.len() as u64, arrival);
                self.compare_probe(&request);
                self.requests.push(request.clone());
                self.real.add(request.clone()).unwrap();
                self.naive.add(request);
            }
            Action::Abort(idx) if !self.requests.is_empty() => {
                let id = RequestId((idx % self.requests.len()) as u64);
                assert_eq!(self.real.abort(id), self.naive.abort(id));
            }
            Action::Abort(_) => {}
            Action::Advance(n_times) => (0..*n_times).for_each(|_| self.advance()),
            Action::Reserve(n_blocks) => {
                self.real.set_reserved_blocks(*n_blocks);
                self.naive.reserve(*n_blocks);
            }
            Action::Reset => assert_eq!(self.real.reset_prefix_cache(), self.naive.reset()),
        }
        self.compare();
    }

    fn advance(&mut self) {
        if self.in_step {
            let mut output = StepOutput::default();
            self.real.complete(&mut output);
            assert_eq!(output.tokens, self.naive.complete());
            self.in_step = false;
        } else {
            self.in_step = self.real.schedule().is_some();
            self.naive.schedule();
            let plan = self.real.plan();
            assert_eq!((&plan.scheduled, &plan.preempted), (&self.naive.scheduled, &self.naive.preempted));
            assert_eq!(self.in_step, !plan.is_empty());
        }
        self.compare();
    }

    fn compare(&mut self) {
        assert_eq!(self.real.stats(), self.naive.stats());
        let pool = self.real.block_pool();
        assert!(pool.free_order().eq(self.naive.free.iter().copied()), "order of free blocks");
        assert!((1..N_BLOCKS).all(|block| pool.n_refs(block) == self.naive.n_refs[block as usize]));
        for request in &self.requests {
            assert_eq!(self.real.blocks_of(request.id), self.naive.blocks_of(request.id));
        }
        let events: Vec<Event> =
            self.real.take_events().into_iter().map(|event| self.in_words(event)).collect();
        assert_eq!(events, std::mem::take(&mut self.naive.events));
        let pool = self.real.block_pool();
        let cached = |block: u32| self.naive.cached.iter().find(|(_, cached)| *cached == block);
        for block in 1..N_BLOCKS {
            let expected = cached(block).map(|(prefix, _)| self.hash_of[prefix]);
            assert_eq!(pool.hash(block), expected, "block {block}");
        }
    }

    /// Returns what the engine would hit for this prompt, before it is added.
    fn compare_probe(&self, request: &EngineRequest) {
        let EngineRequest { prompt, lora, cache_salt, .. } = request;
        let prompt = PromptPrefix {
            tokens: prompt,
            lora: lora.as_deref(),
            cache_salt: cache_salt.as_deref(),
            cache_reading: CacheReading::Read,
        };
        let found = cached_prefix(self.real.block_pool(), &prompt.hashes(self.real.config()));
        let n_tokens = u32::try_from(request.prompt.len()).unwrap();
        assert_eq!(found, self.naive.look_up(request, n_tokens));
    }

    /// Replaces hashes by their texts; one hash is one text, and one text is one hash.
    fn in_words(&mut self, event: KvEvent) -> Event {
        match event {
            KvEvent::BlockStored { block_hashes, parent, token_ids, lora, cache_salt, block_size } => {
                let version = self.real.config().version;
                let (owner, mut tokens) = match parent {
                    Some(parent) => self.text_of[&parent].clone(),
                    None => (owner(version, lora.as_deref(), cache_salt.as_deref()), Vec::new()),
                };
                let blocks = token_ids.chunks_exact(block_size as usize);
                assert_eq!(blocks.len(), block_hashes.len());
                let stored = block_hashes.into_iter().zip(blocks).map(|(hash, block)| {
                    tokens.extend_from_slice(block);
                    let prefix = (owner.clone(), tokens.clone());
                    assert_eq!(self.text_of.entry(hash).or_insert_with(|| prefix.clone()), &prefix);
                    assert_eq!(*self.hash_of.entry(prefix.clone()).or_insert(hash), hash);
                    prefix
                });
                Event::Stored(stored.collect())
            }
            KvEvent::BlockRemoved { block_hash } => Event::Removed(self.text_of[&block_hash].clone()),
            KvEvent::AllBlocksCleared => Event::Cleared,
        }
    }
}

/// Applies the actions to both, then lets all requests end.
fn check(config: &EngineConfig, actions: &[Action]) {
    let mut pair = Pair::new(config);
    actions.iter().for_each(|action| pair.act(action));
    pair.act(&Action::Reserve(0));
    let mut n_steps = 0;
    while pair.in_step || pair.real.has_requests() {
        pair.advance();
        n_steps += 1;
        assert!(n_steps < 20_000, "requests wait and none ends");
    }
    assert_eq!(pair.real.stats().free_blocks, N_BLOCKS - 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_engine_of_0_33_does_what_its_rules_say(config in config(VllmVersion::V0_33), actions in actions()) {
        check(&config, &actions);
    }

    #[test]
    fn so_does_the_engine_of_0_11(config in config(VllmVersion::V0_11), actions in actions()) {
        check(&config, &actions);
    }

    #[test]
    fn so_does_the_engine_of_0_8(config in config(VllmVersion::V0_8), actions in actions()) {
        check(&config, &actions);
    }
}

// === what deferral may not do ===

/// Returns which requests compute how many tokens in each of the first steps; the first request has adapter 1 in all
/// cases.
fn timeline(arrivals: &[(u32, u32, u32, u8)], is_there: impl Fn(u32) -> bool) -> Vec<Vec<(u64, u32)>> {
    const N_STEPS: u32 = 60;
    let mut engine = engine(|config| {
        config.max_loras = NonZeroU32::new(1);
        config.max_num_seqs = 3;
        config.max_num_batched_tokens = 64;
    });
    let with_lora = |id: u64, n_prompt: u32, n_output: u32, lora: u32| {
        let start = u32::try_from(id).unwrap() * 1_000;
        let prompt: Vec<u32> = (start..start + n_prompt).collect();
        let lora = (lora > 0)
            .then(|| Arc::new(LoraAdapter { id: lora, name: lora.to_string(), path: "/p".to_owned() }));
        EngineRequest { lora, ..request(id, &prompt, n_output) }
    };
    engine.add(with_lora(1_000, 10, N_STEPS + 10, 1)).unwrap();
    let mut steps = Vec::new();
    let mut due = (0_u64..).zip(arrivals).peekable();
    let mut at = 0;
    for step in 0..N_STEPS {
        while let Some((id, (lora, n_prompt, n_output, gap))) =
            due.next_if(|(_, (.., gap))| at + u32::from(*gap) <= step)
        {
            at += u32::from(*gap);
            if is_there(*lora) {
                engine.add(with_lora(id, *n_prompt, *n_output, *lora)).unwrap();
            }
        }
        let plan = engine.schedule().unwrap();
        steps.push(plan.scheduled.iter().map(|scheduled| (scheduled.id.0, scheduled.n_new_tokens)).collect());
        engine.complete(&mut StepOutput::default());
    }
    steps
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// While one adapter has the only place, requests for another must have no effect.
    #[test]
    fn a_deferred_request_costs_others_nothing(
        arrivals in collection::vec((0..3_u32, 1..100_u32, 1..20_u32, 0..8_u8), 1..25),
    ) {
        prop_assert_eq!(timeline(&arrivals, |_| true), timeline(&arrivals, |lora| lora < 2));
    }
}
