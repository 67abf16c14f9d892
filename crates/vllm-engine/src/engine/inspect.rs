//! Views of the live requests of an engine.

use super::Engine;
use super::slots::Place;
use crate::block_pool::BlockIdx;
use crate::request::RequestId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiveState {
    Waiting,
    Running,
}

#[derive(Clone, Copy, Debug)]
pub struct LiveView<'a> {
    pub id: RequestId,
    pub state: LiveState,
    pub n_prompt_tokens: usize,
    pub n_output_tokens: u32,
    /// Tokens whose KV is there, those of the current step included; 0 while the request waits.
    pub n_computed_tokens: u32,
    /// Blocks in order of position; none while the request waits.
    pub blocks: &'a [BlockIdx],
}

impl Engine {
    /// Returns the live requests in order of arrival.
    pub fn live_requests(&self) -> Vec<LiveView<'_>> {
        let mut slots: Vec<_> = self.by_id.values().map(|slot| &self.slots[*slot]).collect();
        slots.sort_unstable_by_key(|live| live.arrival_seq);
        let view = slots.into_iter().map(|live| {
            let (state, n_computed_tokens) = match live.place {
                Place::Waiting | Place::Deferred => (LiveState::Waiting, 0),
                Place::Running { n_computed, .. } => (LiveState::Running, n_computed),
            };
            LiveView {
                id: live.request.id,
                state,
                n_prompt_tokens: live.request.prompt.len(),
                n_output_tokens: live.n_outputs,
                n_computed_tokens,
                blocks: &live.held.blocks,
            }
        });
        view.collect()
    }
}
