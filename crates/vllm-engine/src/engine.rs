//! vLLM's V1 scheduler and KV-cache manager as a step function: which request computes how many tokens in which step,
//! which blocks it holds, what the prefix cache hits, evicts and reports. It knows no clock, socket or task: the driver
//! calls `schedule`, waits as long as `latency` says, and calls `complete`.
//!
//! ```text
//! add → waiting ──schedule──► running ──complete──► finished
//!          ▲                     │
//!          └──── preempted ◄─────┘   (by schedule, when blocks run out)
//! ```

pub mod inspect;

mod preemption;
mod queue;
mod slots;
mod kv_cache;

use crate::block_pool::{BlockIdx, BlockPool};
use crate::config::{ConfigError, EngineConfig, SchedulingPolicy};
use crate::event::KvEvent;
use crate::request::{AddError, CacheReading, EngineRequest, FinishReason, RequestId};
use crate::step::{Origin, OutputToken, ScheduledRequest, StepOutput, StepPlan};
use crate::vllm_version::VllmVersion;
use hashbrown::HashMap;
use kv_cache::{KvCache, RequestBlocks};
use queue::WaitingQueue;
use slots::{LiveRequest, Place, SlotIdx, Slots};
use smallvec::SmallVec;

/// An engine: its waiting and running requests and its block pool.
#[derive(Clone, Debug)]
pub struct Engine {
    config: EngineConfig,
    kv_cache: KvCache,
    slots: Slots,
    by_id: HashMap<RequestId, SlotIdx>,
    waiting: WaitingQueue,
    /// Requests that were passed over because the step had its adapters already; they come before `waiting`.
    deferred: WaitingQueue,
    /// Running requests in order of admission.
    running: Vec<SlotIdx>,
    plan: StepPlan,
    /// Slots of the entries of `plan.scheduled`.
    plan_slots: Vec<SlotIdx>,
    /// Requests that are passed over while the step is composed.
    newly_deferred: Vec<SlotIdx>,
    next_arrival_seq: u64,
    counters: Counters,
    /// Number of blocks that should be out of use; they are taken as they become free.
    n_reserved_blocks: u32,
}

/// Gauges and counters at this moment; counters count from the start of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineStats {
    pub running: usize,
    /// Waiting requests, the deferred ones included.
    pub waiting: usize,
    /// Requests that wait for a place among the adapters of a step, not for blocks or seats.
    pub deferred: usize,
    /// Blocks that no live request holds, cached ones included.
    pub free_blocks: u32,
    /// Share of the usable blocks that live requests hold, 0..=1.
    pub kv_usage: f64,
    /// Prompt tokens that were looked up: once per request, when it is first admitted, and 0 without the prefix cache.
    /// Before vLLM 0.33 every look-up counts, and in 0.8 the unit is blocks.
    pub prefix_cache_queries: u64,
    /// Prompt tokens that these look-ups found.
    pub prefix_cache_hits: u64,
    /// Queries of requests that come back after a preemption; `preempted_hits` are their hits.
    pub preempted_queries: u64,
    pub preempted_hits: u64,
    pub preemptions: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    prefix_cache_queries: u64,
    prefix_cache_hits: u64,
    preempted_queries: u64,
    preempted_hits: u64,
    preemptions: u64,
}

// === impl Engine ===

impl Engine {
    /// Makes an engine without requests.
    ///
    /// # Errors
    /// Fails if the settings cannot serve a request of `max_model_len` tokens.
    pub fn try_new(config: EngineConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            kv_cache: KvCache::new(&config),
            slots: Slots::new(),
            by_id: HashMap::new(),
            waiting: WaitingQueue::new(config.policy),
            deferred: WaitingQueue::new(config.policy),
            running: Vec::new(),
            plan: StepPlan::default(),
            plan_slots: Vec::new(),
            newly_deferred: Vec::new(),
            next_arrival_seq: 0,
            counters: Counters::default(),
            n_reserved_blocks: 0,
            config,
        })
    }

    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    pub fn block_pool(&self) -> &BlockPool {
        self.kv_cache.pool()
    }

    /// Returns the blocks that a live request holds, in order of position; none while it waits.
    pub fn blocks_of(&self, id: RequestId) -> Option<&[BlockIdx]> {
        self.by_id.get(&id).map(|slot| self.slots[*slot].held.blocks.as_slice())
    }

    /// Puts a request at the end of the waiting queue, or at its priority's place. The order of calls is the order of
    /// arrival.
    ///
    /// # Errors
    /// Fails if the request can never be served; it is not queued then.
    pub fn add(&mut self, request: EngineRequest) -> Result<(), AddError> {
        let max_model_len = self.config.max_model_len;
        let n_tokens = request.prompt.len();
        if n_tokens == 0 {
            return Err(AddError::EmptyPrompt);
        }
        if request.output.is_empty() {
            return Err(AddError::EmptyOutput);
        }
        if n_tokens >= max_model_len as usize {
            return Err(AddError::PromptTooLong { n_tokens, max_model_len });
        }
        if self.by_id.contains_key(&request.id) {
            return Err(AddError::Duplicate(request.id));
        }
        let id = request.id;
        let n_most = (n_tokens + request.output.len()).min(max_model_len as usize);
        let live = LiveRequest {
            held: RequestBlocks::with_capacity(n_most, self.config.block_size as usize),
            request,
            arrival_seq: self.next_arrival_seq,
            place: Place::Waiting,
            n_outputs: 0,
            cached_tokens: None,
        };
        self.next_arrival_seq += 1;
        let slot = self.slots.insert(live);
        self.by_id.insert(id, slot);
        self.waiting.push(slot, &self.slots[slot]);
        Ok(())
    }

    /// Frees everything that the request holds, at once. Returns false if no such request lives.
    pub fn abort(&mut self, id: RequestId) -> bool {
        let Some(slot) = self.by_id.get(&id).copied() else { return false };
        match self.slots[slot].place {
            Place::Waiting | Place::Deferred => self.leave_queue(slot),
            Place::Running { .. } => self.running.retain(|running| *running != slot),
        }
        self.forget(slot);
        true
    }

    /// Composes the next step. `None` means that nothing was scheduled or preempted, so there is nothing to wait for
    /// until a request is added. After each `Some`, `complete` must be called once before the next `schedule`.
    pub fn schedule(&mut self) -> Option<&StepPlan> {
        self.plan.scheduled.clear();
        self.plan.preempted.clear();
        self.plan_slots.clear();
        if self.kv_cache.pool().n_reserved() < self.n_reserved_blocks {
            self.kv_cache.reserve(self.n_reserved_blocks);
        }
        let budget = self.schedule_running();
        if self.plan.preempted.is_empty() {
            self.schedule_waiting(budget);
        }
        (!self.plan.is_empty()).then_some(&self.plan)
    }

    /// Returns the last composed step; empty if `schedule` found nothing to do.
    pub fn plan(&self) -> &StepPlan {
        &self.plan
    }

    /// Ends the last composed step: clears `output`, fills it with the step's tokens, and frees the requests that
    /// finished.
    pub fn complete(&mut self, output: &mut StepOutput) {
        output.tokens.clear();
        let mut any_finished = false;
        for idx in 0..self.plan_slots.len() {
            let slot = self.plan_slots[idx];
            let Some(token) = self.take_token(slot) else { continue };
            output.tokens.push(token);
            if token.finished.is_some() {
                self.forget(slot);
                any_finished = true;
            }
        }
        self.plan_slots.clear();
        if any_finished {
            let slots = &self.slots;
            self.running.retain(|slot| slots.get(*slot).is_some());
        }
    }

    /// Returns true if a request is waiting or running.
    pub fn has_requests(&self) -> bool {
        !self.by_id.is_empty()
    }

    pub fn stats(&self) -> EngineStats {
        let Counters {
            prefix_cache_queries,
            prefix_cache_hits,
            preempted_queries,
            preempted_hits,
            preemptions,
        } = self.counters;
        let pool = self.kv_cache.pool();
        let n_blocks = match self.config.version {
            // vLLM 0.8 counted the null block, which is never free.
            VllmVersion::V0_8 => self.config.n_blocks,
            VllmVersion::V0_11 | VllmVersion::V0_33 => pool.n_usable(),
        };
        EngineStats {
            running: self.running.len(),
            waiting: self.waiting.len() + self.deferred.len(),
            deferred: self.deferred.len(),
            free_blocks: pool.n_free(),
            kv_usage: 1.0 - f64::from(pool.n_free()) / f64::from(n_blocks),
            prefix_cache_queries,
            prefix_cache_hits,
            preempted_queries,
            preempted_hits,
            preemptions,
        }
    }

    /// Returns the KV events since the last call, in order. Always empty without `EngineConfig::kv_events`.
    pub fn take_events(&mut self) -> Vec<KvEvent> {
        self.kv_cache.take_events()
    }

    /// Takes `n_blocks` out of use, as if other work had that memory: free blocks at once, the rest when requests
    /// release them. They count as used in the gauges. 0 gives all of them back.
    pub fn set_reserved_blocks(&mut self, n_blocks: u32) {
        self.n_reserved_blocks = n_blocks;
        self.kv_cache.reserve(n_blocks);
    }

    /// Forgets every cached block. Returns false, without a change, if a request holds a block.
    pub fn reset_prefix_cache(&mut self) -> bool {
        self.kv_cache.reset()
    }

    /// Schedules running requests, in order, and preempts some if blocks run out. Returns the budget that is left.
    fn schedule_running(&mut self) -> u32 {
        let mut budget = self.config.max_num_batched_tokens;
        let mut idx = 0;
        while idx < self.running.len() && budget > 0 {
            let slot = self.running[idx];
            let live = &self.slots[slot];
            let Place::Running { n_computed, .. } = live.place else {
                unreachable!("a request in the running list runs")
            };
            let n_new = self.chunk(live.n_known() - n_computed).min(budget);
            loop {
                let (tokens, held) = self.slots[slot].parts();
                if self.kv_cache.extend(tokens, held, (n_computed + n_new) as usize) {
                    self.plan_request(slot, n_computed, n_new, Origin::Running);
                    budget -= n_new;
                    idx += 1;
                    break;
                }
                let (victim, refund) = self.preempt_one();
                if refund > 0 {
                    budget += refund;
                    idx -= 1;
                }
                if victim == slot {
                    return budget;
                }
            }
        }
        budget
    }

    /// Admits waiting requests, in order, as long as the budget, the seats and the blocks last.
    fn schedule_waiting(&mut self, mut budget: u32) {
        while budget > 0 && self.running.len() < self.config.max_num_seqs as usize {
            let Some(slot) = self.next_waiting() else { break };
            if self.exceeds_max_loras(slot) {
                self.leave_queue(slot);
                self.newly_deferred.push(slot);
                continue;
            }
            let Some(n_new) = self.admit(slot, budget) else { break };
            budget -= n_new;
        }
        self.requeue_deferred();
    }

    /// Puts the requests that were passed over back into a queue. Since vLLM 0.33 that is a queue of their own, ahead
    /// of those deferred earlier whose turn did not come. Before, it was the head of the one queue: in their order in
    /// 0.8, in reverse in 0.11.
    fn requeue_deferred(&mut self) {
        if self.config.version == VllmVersion::V0_11 {
            self.newly_deferred.reverse();
        }
        while let Some(slot) = self.newly_deferred.pop() {
            let live = &mut self.slots[slot];
            match self.config.version {
                VllmVersion::V0_8 | VllmVersion::V0_11 => self.waiting.requeue(slot, live),
                VllmVersion::V0_33 => {
                    live.place = Place::Deferred;
                    self.deferred.requeue(slot, live);
                }
            }
        }
    }

    /// Returns the next request to admit: a deferred one, or with the priority policy the more important one.
    fn next_waiting(&self) -> Option<SlotIdx> {
        match (self.deferred.first(), self.waiting.first()) {
            (Some(deferred), Some(waiting)) => {
                let rank = |slot: SlotIdx| {
                    let live = &self.slots[slot];
                    (live.request.priority, live.arrival_seq)
                };
                let by_rank = self.config.policy == SchedulingPolicy::Priority;
                Some(if by_rank && rank(waiting) < rank(deferred) { waiting } else { deferred })
            }
            (deferred, waiting) => deferred.or(waiting),
        }
    }

    /// Returns true if the step has as many adapters as it may, and this request's is not among them.
    fn exceeds_max_loras(&self, slot: SlotIdx) -> bool {
        let adapter = |slot: &SlotIdx| self.slots[*slot].request.lora.as_ref().map(|lora| lora.id);
        let (Some(max_loras), Some(wanted)) = (self.config.max_loras, adapter(&slot)) else { return false };
        let mut in_step = SmallVec::<[u32; 8]>::new();
        for id in self.plan_slots.iter().filter_map(adapter) {
            if !in_step.contains(&id) {
                in_step.push(id);
            }
        }
        in_step.len() >= max_loras.get() as usize && !in_step.contains(&wanted)
    }

    /// Gives a waiting request its blocks and a first chunk of at most `budget` tokens, and returns the number of these
    /// tokens. Returns `None`, without a change, if the request does not fit.
    fn admit(&mut self, slot: SlotIdx, budget: u32) -> Option<u32> {
        let cache_reading = self.slots[slot].request.cache_reading;
        let (tokens, held) = self.slots[slot].parts();
        let n_cached = to_u32(self.kv_cache.look_up(tokens, held, cache_reading));
        let n_known = self.slots[slot].n_known();
        if self.config.version != VllmVersion::V0_33 {
            // These versions count it for new and preempted requests, even if the request then does not fit.
            self.count_look_up(slot, Origin::New, n_cached);
        }
        let n_chunk = self.chunk(n_known - n_cached);
        if n_chunk > budget && !self.config.chunked_prefill {
            return None;
        }
        let n_new = n_chunk.min(budget);
        let (tokens, held) = self.slots[slot].parts();
        if !self.kv_cache.admit(tokens, held, (n_cached + n_new) as usize) {
            return None;
        }
        self.leave_queue(slot);
        self.running.push(slot);
        let origin = self.count_admission(slot, n_cached);
        self.plan_request(slot, n_cached, n_new, origin);
        Some(n_new)
    }

    fn leave_queue(&mut self, slot: SlotIdx) {
        let live = &self.slots[slot];
        match live.place {
            Place::Waiting => self.waiting.remove(slot, live),
            Place::Deferred => self.deferred.remove(slot, live),
            Place::Running { .. } => unreachable!("a request that runs is in no queue"),
        }
    }

    fn chunk(&self, n_tokens: u32) -> u32 {
        match self.config.long_prefill_token_threshold {
            0 => n_tokens,
            threshold => n_tokens.min(threshold),
        }
    }

    fn count_admission(&mut self, slot: SlotIdx, n_cached: u32) -> Origin {
        let live = &mut self.slots[slot];
        let origin = match live.cached_tokens {
            None => Origin::New,
            Some(_) => Origin::Resumed,
        };
        live.cached_tokens.get_or_insert(n_cached);
        if self.config.version == VllmVersion::V0_33 {
            self.count_look_up(slot, origin, n_cached);
        }
        origin
    }

    fn count_look_up(&mut self, slot: SlotIdx, origin: Origin, n_cached: u32) {
        let live = &self.slots[slot];
        if !self.config.prefix_caching || live.request.cache_reading == CacheReading::Skip {
            return;
        }
        let n_known = live.n_known();
        let counters = &mut self.counters;
        let (queries, hits) = match origin {
            Origin::New | Origin::Running => {
                (&mut counters.prefix_cache_queries, &mut counters.prefix_cache_hits)
            }
            Origin::Resumed => (&mut counters.preempted_queries, &mut counters.preempted_hits),
        };
        let (n_asked, n_found) = match self.config.version {
            // The unit is blocks, without the block of the last token, which is not looked up.
            VllmVersion::V0_8 => ((n_known - 1) / self.config.block_size, n_cached / self.config.block_size),
            VllmVersion::V0_11 | VllmVersion::V0_33 => (n_known, n_cached),
        };
        *queries += u64::from(n_asked);
        *hits += u64::from(n_found);
    }

    fn plan_request(&mut self, slot: SlotIdx, n_computed_before: u32, n_new_tokens: u32, origin: Origin) {
        let live = &mut self.slots[slot];
        live.place = Place::Running { n_computed: n_computed_before + n_new_tokens, n_in_step: n_new_tokens };
        self.plan_slots.push(slot);
        self.plan.scheduled.push(ScheduledRequest {
            id: live.request.id,
            n_new_tokens,
            n_computed_before,
            is_prefill: n_new_tokens > 1 || live.n_outputs == 0,
            origin,
        });
    }

    /// Returns the token of a request, if the step has computed all its known tokens.
    fn take_token(&mut self, slot: SlotIdx) -> Option<OutputToken> {
        // If the request was aborted while the step ran, the slot may be vacant or have another request by now.
        let live = self.slots.get_mut(slot)?;
        let n_known = live.n_known();
        let Place::Running { n_computed, n_in_step } = &mut live.place else { return None };
        if std::mem::take(n_in_step) == 0 || *n_computed < n_known {
            return None;
        }
        let output_idx = live.n_outputs;
        live.n_outputs += 1;
        let finished = if live.n_outputs as usize == live.request.output.len() {
            Some(live.request.finish)
        } else if n_known + 1 >= self.config.max_model_len {
            Some(FinishReason::Length)
        } else {
            None
        };
        Some(OutputToken {
            id: live.request.id,
            token: live.request.output[output_idx as usize],
            output_idx,
            cached_tokens: live.cached_tokens.expect("a request that runs was admitted"),
            finished,
        })
    }

    fn forget(&mut self, slot: SlotIdx) {
        let mut live = self.slots.remove(slot);
        self.kv_cache.release(&mut live.held);
        self.by_id.remove(&live.request.id);
    }
}

fn to_u32(n: usize) -> u32 {
    u32::try_from(n).expect("token counts are below max_model_len")
}
