//! One engine step: what is computed in it, and what comes out of it.

use crate::request::{FinishReason, RequestId};

/// How a request came to be in this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Running,
    /// First time scheduled; `n_computed_before` is its `cached_tokens`.
    New,
    /// Back after a preemption; `n_computed_before` is what the prefix cache still had.
    Resumed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduledRequest {
    pub id: RequestId,
    /// Tokens computed for it in this step.
    pub n_new_tokens: u32,
    /// Tokens of its context whose KV is there already.
    pub n_computed_before: u32,
    /// A prefill chunk, as against one decode token.
    pub is_prefill: bool,
    pub origin: Origin,
}

/// In the order in which the scheduler took them: running ones first.
#[derive(Clone, Debug, Default)]
pub struct StepPlan {
    pub scheduled: Vec<ScheduledRequest>,
    /// Sent back to the waiting queue in this step, in order.
    pub preempted: Vec<RequestId>,
}

/// A token that the step produced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputToken {
    pub id: RequestId,
    pub token: u32,
    /// 0 for the first token of a request.
    pub output_idx: u32,
    /// Prompt tokens that the prefix cache had when the request was first scheduled.
    pub cached_tokens: u32,
    /// Set on the last token of a request; the engine has forgotten the request then.
    pub finished: Option<FinishReason>,
}

/// Reused from step to step; in the order of the plan, only requests that produced a token.
#[derive(Clone, Debug, Default)]
pub struct StepOutput {
    pub tokens: Vec<OutputToken>,
}

// === impl StepPlan ===

impl StepPlan {
    /// Nothing scheduled and nothing preempted.
    pub fn is_empty(&self) -> bool {
        self.scheduled.is_empty() && self.preempted.is_empty()
    }

    /// Tokens computed in this step.
    pub fn n_tokens(&self) -> u32 {
        self.scheduled.iter().map(|scheduled| scheduled.n_new_tokens).sum()
    }
}

impl ScheduledRequest {
    /// Tokens of its context after the step.
    pub fn n_computed_after(&self) -> u32 {
        self.n_computed_before + self.n_new_tokens
    }
}
