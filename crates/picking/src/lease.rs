//! A request that was sent to an endpoint, until its response ends.

use std::borrow::Borrow;
use std::sync::Arc;

use prefix_index::blocks::Expected;

use crate::awaited::{PromptWork, QueuePlace};
use crate::cache_facts::InsertedPrompt;
use crate::endpoint::EndpointState;
use crate::estimate::Estimate;

/// A request that was sent to an endpoint of a pool and whose response has not ended. Dropping it ends the request.
#[derive(Debug)]
#[must_use]
pub struct Lease<E: Borrow<EndpointState>> {
    endpoint: Arc<E>,
    /// Its place among the endpoint's requests that await their first token; `None` after a first token was seen.
    place: Option<QueuePlace>,
    /// The request's prompts in the index; empty after the first token.
    insertions: Vec<InsertedPrompt>,
    /// Blocks that the endpoint will have stored; expected until the response ends.
    expected_blocks: Option<Expected>,
    /// The prediction to compare with the response; `None` if the response says nothing about the endpoint's cache.
    estimate: Option<Estimate>,
}

impl<E: Borrow<EndpointState>> Lease<E> {
    /// Counts a request as in flight to `endpoint`, and its prompts as work.
    pub(crate) fn new(
        endpoint: &Arc<E>,
        work: PromptWork,
        (insertions, expected_blocks): (Vec<InsertedPrompt>, Option<Expected>),
        estimate: Option<Estimate>,
    ) -> Self {
        state(endpoint).add_request();
        let place = Some(state(endpoint).enter(work));
        Self { endpoint: Arc::clone(endpoint), place, insertions, expected_blocks, estimate }
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
        let work = self.leave();
        self.place = work.map(|work| state(endpoint).enter(work));
        state(endpoint).add_request();
        self.state().remove_request();
        self.endpoint = Arc::clone(endpoint);
    }

    /// Notes that the prompt is computed: it is cached, and is no work ahead of other requests any more.
    pub fn on_first_token(&mut self) {
        let insertions = std::mem::take(&mut self.insertions);
        for insertion in insertions {
            self.state().facts.note_computed(insertion);
        }
        self.leave();
    }

    /// Leaves its place. Returns the work if it still counted.
    fn leave(&mut self) -> Option<PromptWork> {
        let place = self.place.take()?;
        self.state().leave(place)
    }

    fn state(&self) -> &EndpointState {
        state(&self.endpoint)
    }
}

impl<E: Borrow<EndpointState>> Drop for Lease<E> {
    fn drop(&mut self) {
        self.leave();
        self.state().remove_request();
    }
}

fn state<E: Borrow<EndpointState>>(endpoint: &Arc<E>) -> &EndpointState {
    (**endpoint).borrow()
}
