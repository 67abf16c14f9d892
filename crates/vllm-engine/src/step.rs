//! One engine step: what it computes, and what comes out of it.

use crate::request::{FinishReason, RequestId};

/// History of a request in this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Running,
    /// Scheduled for the first time; `n_computed_before` is its `cached_tokens`.
    New,
    /// Back after a preemption; `n_computed_before` is what the prefix cache still had.
    Resumed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScheduledRequest {
    pub id: RequestId,
    /// Tokens that this step computes for it.
    pub n_new_tokens: u32,
    /// Tokens of its context whose KV is there already.
    pub n_computed_before: u32,
    /// True for a prefill chunk, false for one decode token.
    pub is_prefill: bool,
    pub origin: Origin,
}

/// Requests of a step in the order in which the scheduler took them: running ones first.
#[derive(Clone, Debug, Default)]
pub struct StepPlan {
    pub scheduled: Vec<ScheduledRequest>,
    /// Requests that go back to the waiting queue in this step, in order.
    pub preempted: Vec<RequestId>,
}

/// A token that the step produced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputToken {
    pub id: RequestId,
    pub token: u32,
    /// Index of the token: 0 for a request's first.
    pub output_idx: u32,
    /// Prompt tokens that the prefix cache had when the request was first scheduled.
    pub cached_tokens: u32,
    /// Reason of the end, on the last token of a request. The engine has forgotten the request by then.
    pub finished: Option<FinishReason>,
}

/// Tokens of a step, in the order of the plan; requests without a token are left out. The value is reused from step to
/// step.
#[derive(Clone, Debug, Default)]
pub struct StepOutput {
    pub tokens: Vec<OutputToken>,
}

// === impl StepPlan ===

impl StepPlan {
    /// Returns true if nothing is scheduled or preempted.
    pub fn is_empty(&self) -> bool {
        self.scheduled.is_empty() && self.preempted.is_empty()
    }

    /// Returns the number of tokens that this step computes.
    pub fn n_tokens(&self) -> u32 {
        self.scheduled.iter().map(|scheduled| scheduled.n_new_tokens).sum()
    }
}

impl ScheduledRequest {
    /// Returns the computed tokens of its context after the step.
    pub fn n_computed_after(&self) -> u32 {
        self.n_computed_before + self.n_new_tokens
    }
}
