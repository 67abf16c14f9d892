//! Preemption: which running request gives up its blocks when they run out, and its way back to the waiting queue.

use super::Engine;
use super::slots::{Place, SlotIdx};
use crate::config::SchedulingPolicy;

impl Engine {
    /// Sends all running requests back to the waiting queue, without a block. It may be called between steps or during
    /// one.
    pub fn preempt_all(&mut self) {
        while let Some(slot) = self.running.pop() {
            self.preempt(slot);
        }
        self.plan_slots.clear();
        self.plan.preempted.clear();
    }

    /// Preempts one of the running requests. Returns it, and the tokens that it had in the step.
    pub(super) fn preempt_one(&mut self) -> (SlotIdx, u32) {
        let victim = self.running.remove(self.preemption_victim());
        let n_tokens = self.unplan(victim);
        self.preempt(victim);
        (victim, n_tokens)
    }

    /// Returns the index in `running` of the request to preempt: the last admitted one, or the least important and
    /// latest.
    fn preemption_victim(&self) -> usize {
        let last = self.running.len() - 1;
        match self.config.policy {
            SchedulingPolicy::Fcfs => last,
            SchedulingPolicy::Priority => (0..=last)
                .max_by_key(|idx| {
                    let live = &self.slots[self.running[*idx]];
                    (live.request.priority, live.arrival_seq)
                })
                .expect("a request that runs asked for blocks"),
        }
    }

    /// Takes a request out of the step that is being composed. Returns the tokens that it had in it.
    fn unplan(&mut self, slot: SlotIdx) -> u32 {
        let Some(idx) = self.plan_slots.iter().position(|planned| *planned == slot) else { return 0 };
        self.plan_slots.remove(idx);
        self.plan.scheduled.remove(idx).n_new_tokens
    }

    /// Sends a request back to the waiting queue, without a block. Its cached blocks stay until they are reused.
    fn preempt(&mut self, slot: SlotIdx) {
        let live = &mut self.slots[slot];
        self.kv_cache.release(&mut live.held);
        live.place = Place::Waiting;
        self.plan.preempted.push(live.request.id);
        self.waiting.requeue(slot, live);
        self.counters.preemptions += 1;
    }
}
