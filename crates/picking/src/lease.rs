//! A request that was sent to an endpoint, until its response ends.

use std::borrow::Borrow;
use std::sync::Arc;
use std::time::Duration;

use prefix_index::blocks::Expected;

use crate::cache_facts::InsertedPrompt;
use crate::endpoint::EndpointState;
use crate::estimate::Estimate;

/// A request that was sent to an endpoint of a pool and whose response has not ended. Dropping it ends the request.
#[derive(Debug)]
#[must_use]
pub struct Lease<E: Borrow<EndpointState>> {
    endpoint: Arc<E>,
    /// Bytes of the request's prompt that are still to be computed; 0 after the first token.
    uncached_bytes: u64,
    /// Bytes that the endpoint had to compute at the pick, with the request's own.
    work_bytes: u64,
    /// The request's prompts in the index; empty after the first token.
    insertions: Vec<InsertedPrompt>,
    /// Blocks that the endpoint will have stored; expected until the response ends.
    expected_blocks: Option<Expected>,
    /// The prediction to compare with the response; `None` if the response says nothing about the endpoint's cache.
    estimate: Option<Estimate>,
}

impl<E: Borrow<EndpointState>> Lease<E> {
    /// Counts a request as in flight to `endpoint`, and `uncached_bytes` of its prompt as work.
    pub(crate) fn new(
        endpoint: &Arc<E>,
        uncached_bytes: u64,
        (insertions, expected_blocks): (Vec<InsertedPrompt>, Option<Expected>),
        estimate: Option<Estimate>,
    ) -> Self {
        let work_bytes = state(endpoint).add_request(uncached_bytes);
        Self {
            endpoint: Arc::clone(endpoint),
            uncached_bytes,
            work_bytes,
            insertions,
            expected_blocks,
            estimate,
        }
    }

    #[must_use]
    pub fn endpoint(&self) -> &Arc<E> {
        &self.endpoint
    }

    #[must_use]
    pub(crate) fn estimate(&self) -> Option<&Estimate> {
        self.estimate.as_ref()
    }

    /// Moves the request to another endpoint, which serves it in the end.
    pub(crate) fn move_to(&mut self, endpoint: &Arc<E>, insertions: Vec<InsertedPrompt>) {
        self.insertions = insertions;
        self.expected_blocks = None;
        self.estimate = None;
        self.work_bytes = state(endpoint).add_request(self.uncached_bytes);
        self.state().remove_request();
        self.state().remove_work(self.uncached_bytes);
        self.endpoint = Arc::clone(endpoint);
    }

    /// True until the first token: part of the prompt counts as work, or as not cached yet.
    #[must_use]
    pub fn awaits_first_token(&self) -> bool {
        self.uncached_bytes > 0 || !self.insertions.is_empty()
    }

    /// Notes that the first token was seen `elapsed` after the pick.
    pub fn on_first_token_after(&mut self, elapsed: Duration) {
        if self.uncached_bytes > 0 {
            self.state().pace.note(self.work_bytes, elapsed);
        }
        self.on_first_token();
    }

    /// The time from the pick to the first token, as far as can be told; `None` if the endpoint has not shown its pace.
    #[must_use]
    pub fn expected_first_token(&self) -> Option<Duration> {
        match self.uncached_bytes {
            0 => Some(Duration::ZERO),
            _ => self.state().pace.time_for(self.work_bytes),
        }
    }

    /// Notes that the prompt is computed: it is cached, and is no work ahead of other requests any more.
    pub fn on_first_token(&mut self) {
        let insertions = std::mem::take(&mut self.insertions);
        for insertion in insertions {
            self.state().facts.note_computed(insertion);
        }
        self.drop_work();
    }

    fn drop_work(&mut self) {
        let computed = std::mem::take(&mut self.uncached_bytes);
        self.state().remove_work(computed);
    }

    fn state(&self) -> &EndpointState {
        state(&self.endpoint)
    }
}

impl<E: Borrow<EndpointState>> Drop for Lease<E> {
    fn drop(&mut self) {
        self.drop_work();
        self.state().remove_request();
    }
}

fn state<E: Borrow<EndpointState>>(endpoint: &Arc<E>) -> &EndpointState {
    (**endpoint).borrow()
}
