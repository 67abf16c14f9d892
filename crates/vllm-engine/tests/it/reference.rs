//! The engine's rules a second time, as vLLM states them, with lists that are searched from end to end: no hashes, no
//! links, no slots. It is slow and short, and the engine is compared with it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use vllm_engine::block_pool::BlockIdx;
use vllm_engine::config::{EngineConfig, SchedulingPolicy};
use vllm_engine::engine::EngineStats;
use vllm_engine::request::{EngineRequest, FinishReason, LoraAdapter, RequestId};
use vllm_engine::step::{Origin, OutputToken, ScheduledRequest};
use vllm_engine::vllm_version::VllmVersion;

/// Owner of a block, and all tokens up to the block's end: what a block's hash stands for.
pub(crate) type Prefix = (String, Vec<u32>);

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    Stored(Vec<Prefix>),
    Removed(Prefix),
    Cleared,
}

#[derive(Debug)]
struct Live {
    request: EngineRequest,
    arrival: usize,
    n_outputs: u32,
    n_computed: u32,
    blocks: Vec<BlockIdx>,
    /// Number of `blocks` that are in the cache.
    n_cached: usize,
    cached_tokens: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Reference {
    config: EngineConfig,
    live: BTreeMap<RequestId, Live>,
    n_arrived: usize,
    deferred: Vec<RequestId>,
    waiting: Vec<RequestId>,
    running: Vec<RequestId>,
    pub(crate) scheduled: Vec<ScheduledRequest>,
    pub(crate) preempted: Vec<RequestId>,
    /// Free blocks, the front first.
    pub(crate) free: VecDeque<BlockIdx>,
    pub(crate) n_refs: Vec<u32>,
    /// Cached blocks in order of insertion.
    pub(crate) cached: Vec<(Prefix, BlockIdx)>,
    reserved: Vec<BlockIdx>,
    n_to_reserve: u32,
    pub(crate) events: Vec<Event>,
    /// Statistics of which only the counters are kept up to date.
    counters: EngineStats,
}

// === impl Live ===

impl Live {
    fn n_known(&self) -> u32 {
        len(&self.request.prompt) + self.n_outputs
    }

    fn rank(&self) -> (i32, usize) {
        (self.request.priority, self.arrival)
    }

    fn lora(&self) -> Option<u32> {
        self.request.lora.as_ref().map(|lora| lora.id)
    }
}

// === impl Reference ===

impl Reference {
    pub(crate) fn new(config: &EngineConfig) -> Self {
        Self {
            config: config.clone(),
            live: BTreeMap::new(),
            n_arrived: 0,
            deferred: Vec::new(),
            waiting: Vec::new(),
            running: Vec::new(),
            scheduled: Vec::new(),
            preempted: Vec::new(),
            free: (1..config.n_blocks).collect(),
            n_refs: vec![0; config.n_blocks as usize],
            cached: Vec::new(),
            reserved: Vec::new(),
            n_to_reserve: 0,
            events: Vec::new(),
            counters: EngineStats::default(),
        }
    }

    pub(crate) fn add(&mut self, request: EngineRequest) {
        let id = request.id;
        let (arrival, blocks) = (self.n_arrived, Vec::new());
        let live =
            Live { request, arrival, n_outputs: 0, n_computed: 0, blocks, n_cached: 0, cached_tokens: None };
        self.n_arrived += 1;
        assert!(self.live.insert(id, live).is_none());
        self.waiting.push(id);
    }

    pub(crate) fn abort(&mut self, id: RequestId) -> bool {
        if !self.live.contains_key(&id) {
            return false;
        }
        self.leave(id);
        self.release(id);
        self.live.remove(&id);
        true
    }

    pub(crate) fn blocks_of(&self, id: RequestId) -> Option<&[BlockIdx]> {
        self.live.get(&id).map(|live| live.blocks.as_slice())
    }

    pub(crate) fn reserve(&mut self, n_blocks: u32) {
        self.n_to_reserve = n_blocks;
        while self.reserved.len() > n_blocks as usize {
            let block = self.reserved.pop().unwrap();
            self.let_go(&[block]);
        }
        while self.reserved.len() < n_blocks as usize && !self.free.is_empty() {
            let block = self.allocate();
            self.reserved.push(block);
        }
    }

    pub(crate) fn reset(&mut self) -> bool {
        if self.live.values().any(|live| !live.blocks.is_empty()) {
            return false;
        }
        self.cached.clear();
        self.events.push(Event::Cleared);
        true
    }

    /// Returns the blocks that a prompt's look-up would find.
    pub(crate) fn look_up(&self, request: &EngineRequest, n_known: u32) -> Vec<BlockIdx> {
        if !self.config.prefix_caching {
            return Vec::new();
        }
        let n_most = (n_known - 1) / self.config.block_size;
        (1..=n_most).map_while(|n_blocks| self.find(&self.prefix(request, n_blocks as usize))).collect()
    }

    pub(crate) fn schedule(&mut self) {
        self.scheduled.clear();
        self.preempted.clear();
        if self.reserved.len() < self.n_to_reserve as usize {
            self.reserve(self.n_to_reserve);
        }
        let budget = self.schedule_running(self.config.max_num_batched_tokens);
        if self.preempted.is_empty() {
            self.schedule_waiting(budget);
        }
    }

    pub(crate) fn complete(&mut self) -> Vec<OutputToken> {
        let mut tokens = Vec::new();
        for scheduled in std::mem::take(&mut self.scheduled) {
            let id = scheduled.id;
            if !self.running.contains(&id) {
                continue;
            }
            let live = self.live.get_mut(&id).unwrap();
            if live.n_computed < live.n_known() {
                continue;
            }
            live.n_outputs += 1;
            let finished = if live.n_outputs == len(&live.request.output) {
                Some(live.request.finish)
            } else {
                (live.n_known() >= self.config.max_model_len).then_some(FinishReason::Length)
            };
            let output_idx = live.n_outputs - 1;
            tokens.push(OutputToken {
                id,
                token: live.request.output[output_idx as usize],
                output_idx,
                cached_tokens: live.cached_tokens.unwrap(),
                finished,
            });
            if finished.is_some() {
                self.abort(id);
            }
        }
        tokens
    }

    pub(crate) fn stats(&self) -> EngineStats {
        let n_usable = self.config.n_blocks - 1;
        let n_blocks = if self.config.version == VllmVersion::V0_8 { n_usable + 1 } else { n_usable };
        EngineStats {
            running: self.running.len(),
            waiting: self.waiting.len() + self.deferred.len(),
            deferred: self.deferred.len(),
            free_blocks: to_u32(self.free.len()),
            kv_usage: 1.0 - f64::from(to_u32(self.free.len())) / f64::from(n_blocks),
            ..self.counters
        }
    }

    fn schedule_running(&mut self, mut budget: u32) -> u32 {
        let mut turn = 0;
        while turn < self.running.len() && budget > 0 {
            let id = self.running[turn];
            let n_before = self.live[&id].n_computed;
            let n_new = self.chunk(self.live[&id].n_known() - n_before).min(budget);
            while !self.grow(id, n_before + n_new) {
                let victim = self.victim();
                if let Some(at) = self.scheduled.iter().position(|scheduled| scheduled.id == victim) {
                    budget += self.scheduled.remove(at).n_new_tokens;
                    turn -= 1;
                }
                self.preempt(victim);
                if victim == id {
                    return budget;
                }
            }
            self.put_in_step(id, n_before, n_new, Origin::Running);
            budget -= n_new;
            turn += 1;
        }
        budget
    }

    fn schedule_waiting(&mut self, mut budget: u32) {
        let mut passed_over = Vec::new();
        while budget > 0 && self.running.len() < self.config.max_num_seqs as usize {
            let Some(id) = self.next_waiting() else { break };
            if self.lacks_adapter(id) {
                self.leave(id);
                passed_over.push(id);
                continue;
            }
            let Some(n_new) = self.admit(id, budget) else { break };
            budget -= n_new;
        }
        match self.config.version {
            VllmVersion::V0_33 => drop(self.deferred.splice(0..0, passed_over)),
            VllmVersion::V0_11 => drop(self.waiting.splice(0..0, passed_over.into_iter().rev())),
            VllmVersion::V0_8 => drop(self.waiting.splice(0..0, passed_over)),
        }
    }

    fn next_waiting(&self) -> Option<RequestId> {
        let mut in_line = self.deferred.iter().chain(&self.waiting).copied();
        match self.config.policy {
            SchedulingPolicy::Fcfs => in_line.next(),
            SchedulingPolicy::Priority => in_line.min_by_key(|id| self.live[id].rank()),
        }
    }

    fn lacks_adapter(&self, id: RequestId) -> bool {
        let in_step: BTreeSet<u32> =
            self.scheduled.iter().filter_map(|scheduled| self.live[&scheduled.id].lora()).collect();
        match (self.live[&id].lora(), self.config.max_loras) {
            (Some(lora), Some(most)) => !in_step.contains(&lora) && in_step.len() == most.get() as usize,
            _ => false,
        }
    }

    fn admit(&mut self, id: RequestId, budget: u32) -> Option<u32> {
        let live = &self.live[&id];
        let (n_known, is_back) = (live.n_known(), live.cached_tokens.is_some());
        let hits = self.look_up(&live.request, n_known);
        let n_hit = to_u32(hits.len()) * self.config.block_size;
        let modern = self.config.version == VllmVersion::V0_33;
        if !modern {
            self.count(false, n_known, n_hit);
        }
        let n_wanted = self.chunk(n_known - n_hit);
        if n_wanted > budget && !self.config.chunked_prefill {
            return None;
        }
        let n_new = n_wanted.min(budget);
        let n_to_fit = if modern { n_known } else { n_hit + n_new };
        let n_idle_hits = hits.iter().filter(|block| self.n_refs[**block as usize] == 0).count();
        let n_blocks = n_to_fit.div_ceil(self.config.block_size) as usize - hits.len() + n_idle_hits;
        let watermark = (self.config.watermark * f64::from(self.config.n_blocks)).floor();
        if n_blocks as f64 + watermark > self.free.len() as f64 {
            return None;
        }
        for block in &hits {
            self.n_refs[*block as usize] += 1;
            self.free.retain(|free| free != block);
        }
        let live = self.live.get_mut(&id).unwrap();
        live.n_cached = hits.len();
        live.blocks = hits;
        live.cached_tokens.get_or_insert(n_hit);
        assert!(self.grow(id, n_hit + n_new));
        if modern {
            self.count(is_back, n_known, n_hit);
        }
        self.leave(id);
        self.running.push(id);
        self.put_in_step(id, n_hit, n_new, if is_back { Origin::Resumed } else { Origin::New });
        Some(n_new)
    }

    fn count(&mut self, is_back: bool, n_asked: u32, n_found: u32) {
        if !self.config.prefix_caching {
            return;
        }
        let counters = &mut self.counters;
        let (queries, hits) = if is_back {
            (&mut counters.preempted_queries, &mut counters.preempted_hits)
        } else {
            (&mut counters.prefix_cache_queries, &mut counters.prefix_cache_hits)
        };
        let in_blocks = self.config.version == VllmVersion::V0_8;
        let unit = if in_blocks { self.config.block_size } else { 1 };
        *queries += u64::from(if in_blocks { (n_asked - 1) / unit } else { n_asked });
        *hits += u64::from(n_found / unit);
    }

    fn victim(&self) -> RequestId {
        match self.config.policy {
            SchedulingPolicy::Fcfs => *self.running.last().unwrap(),
            SchedulingPolicy::Priority => {
                *self.running.iter().max_by_key(|id| self.live[*id].rank()).unwrap()
            }
        }
    }

    fn preempt(&mut self, id: RequestId) {
        self.release(id);
        self.leave(id);
        self.live.get_mut(&id).unwrap().n_computed = 0;
        self.waiting.insert(0, id);
        self.preempted.push(id);
        self.counters.preemptions += 1;
    }

    fn put_in_step(&mut self, id: RequestId, n_computed_before: u32, n_new_tokens: u32, origin: Origin) {
        let live = self.live.get_mut(&id).unwrap();
        live.n_computed = n_computed_before + n_new_tokens;
        let is_prefill = n_new_tokens > 1 || live.n_outputs == 0;
        self.scheduled.push(ScheduledRequest { id, n_new_tokens, n_computed_before, is_prefill, origin });
    }

    fn chunk(&self, n_tokens: u32) -> u32 {
        let threshold = self.config.long_prefill_token_threshold;
        if threshold == 0 { n_tokens } else { n_tokens.min(threshold) }
    }

    fn leave(&mut self, id: RequestId) {
        for list in [&mut self.deferred, &mut self.waiting, &mut self.running] {
            list.retain(|other| *other != id);
        }
    }

    /// Takes blocks for `n_computed` tokens and caches those that are full by then; false if too few are free.
    fn grow(&mut self, id: RequestId, n_computed: u32) -> bool {
        let n_held = self.live[&id].blocks.len();
        let n_new = (n_computed.div_ceil(self.config.block_size) as usize).saturating_sub(n_held);
        if n_new > self.free.len() {
            return false;
        }
        let new: Vec<BlockIdx> = (0..n_new).map(|_| self.allocate()).collect();
        let live = self.live.get_mut(&id).unwrap();
        live.blocks.extend(new);
        let n_full = (n_computed / self.config.block_size) as usize;
        if !self.config.prefix_caching || n_full <= live.n_cached {
            return true;
        }
        let first = std::mem::replace(&mut live.n_cached, n_full);
        let live = &self.live[&id];
        let stored: Vec<_> = (first..n_full)
            .map(|block| (self.prefix(&live.request, block + 1), live.blocks[block]))
            .collect();
        self.events.push(Event::Stored(stored.iter().map(|(prefix, _)| prefix.clone()).collect()));
        self.cached.extend(stored);
        true
    }

    fn allocate(&mut self) -> BlockIdx {
        let block = self.free.pop_front().unwrap();
        self.n_refs[block as usize] = 1;
        if let Some(at) = self.cached.iter().position(|(_, cached)| *cached == block) {
            let (prefix, _) = self.cached.remove(at);
            self.events.push(Event::Removed(prefix));
        }
        block
    }

    fn release(&mut self, id: RequestId) {
        let live = self.live.get_mut(&id).unwrap();
        live.n_cached = 0;
        let blocks = std::mem::take(&mut live.blocks);
        self.let_go(&blocks);
    }

    /// Frees blocks that come in order of position; the last is freed first.
    fn let_go(&mut self, blocks: &[BlockIdx]) {
        let mut to_front = Vec::new();
        for block in blocks.iter().rev() {
            self.n_refs[*block as usize] -= 1;
            if self.n_refs[*block as usize] > 0 {
                continue;
            }
            let is_cached = self.cached.iter().any(|(_, cached)| cached == block);
            if is_cached || self.config.version != VllmVersion::V0_33 {
                self.free.push_back(*block);
            } else {
                to_front.push(*block);
            }
        }
        to_front.into_iter().rev().for_each(|block| self.free.push_front(block));
    }

    fn find(&self, prefix: &Prefix) -> Option<BlockIdx> {
        self.cached.iter().find(|(cached, _)| cached == prefix).map(|(_, block)| *block)
    }

    /// Returns the first `n_blocks` blocks of what a request knows or will know.
    fn prefix(&self, request: &EngineRequest, n_blocks: usize) -> Prefix {
        let n_tokens = n_blocks * self.config.block_size as usize;
        let owner = owner(self.config.version, request.lora.as_deref(), request.cache_salt.as_deref());
        (owner, request.prompt.iter().chain(&*request.output).copied().take(n_tokens).collect())
    }
}

/// Names the owner. Adapters differ by name and path since 0.33, and by their number before.
pub(crate) fn owner(version: VllmVersion, lora: Option<&LoraAdapter>, salt: Option<&str>) -> String {
    let lora = lora.map(|LoraAdapter { id, name, path }| match version {
        VllmVersion::V0_8 | VllmVersion::V0_11 => id.to_string(),
        VllmVersion::V0_33 => format!("{name} {path}"),
    });
    format!("{lora:?} {salt:?}")
}

fn len(tokens: &[u32]) -> u32 {
    to_u32(tokens.len())
}

fn to_u32(n: usize) -> u32 {
    u32::try_from(n).unwrap()
}
