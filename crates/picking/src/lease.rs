//! A request that was sent to an endpoint, until its response ends.

use std::borrow::Borrow;
use std::sync::Arc;
use std::time::Duration;

use prefix_index::blocks::Expected;

use crate::cache_facts::Insertion;
use crate::endpoint::Endpoint;
use crate::estimate::Estimate;

/// A request that was sent to a member of a pool and whose response has not ended. Dropping it ends the request.
#[derive(Debug)]
#[must_use]
pub struct Lease<M: Borrow<Endpoint>> {
    member: Arc<M>,
    /// Bytes of the request's prompt that are still to be computed; 0 after the first token.
    uncached_bytes: u64,
    /// Bytes that the member had to compute at the pick, with the request's own.
    work_bytes: u64,
    /// The request's prompts in the index; empty after the first token.
    insertions: Vec<Insertion>,
    /// Blocks that the member will have stored; expected until the response ends.
    expected_blocks: Option<Expected>,
    /// The prediction to compare with the response; `None` if the response says nothing about the member's cache.
    estimate: Option<Estimate>,
}

impl<M: Borrow<Endpoint>> Lease<M> {
    /// Counts a request as in flight to `member`, and `uncached_bytes` of its prompt as work.
    pub(crate) fn new(
        member: &Arc<M>,
        uncached_bytes: u64,
        (insertions, expected_blocks): (Vec<Insertion>, Option<Expected>),
        estimate: Option<Estimate>,
    ) -> Self {
        let work_bytes = endpoint(member).add_request(uncached_bytes);
        Self { member: Arc::clone(member), uncached_bytes, work_bytes, insertions, expected_blocks, estimate }
    }

    #[must_use]
    pub fn member(&self) -> &Arc<M> {
        &self.member
    }

    #[must_use]
    pub(crate) fn estimate(&self) -> Option<&Estimate> {
        self.estimate.as_ref()
    }

    /// Moves the request to another member, which serves it in the end.
    pub(crate) fn move_to(&mut self, member: &Arc<M>, insertions: Vec<Insertion>) {
        self.insertions = insertions;
        self.expected_blocks = None;
        self.estimate = None;
        self.work_bytes = endpoint(member).add_request(self.uncached_bytes);
        self.endpoint().remove_request();
        self.endpoint().remove_work(self.uncached_bytes);
        self.member = Arc::clone(member);
    }

    /// True until the first token: part of the prompt counts as work, or as not cached yet.
    #[must_use]
    pub fn awaits_first_token(&self) -> bool {
        self.uncached_bytes > 0 || !self.insertions.is_empty()
    }

    /// Notes that the first token was seen `elapsed` after the pick.
    pub fn on_first_token_after(&mut self, elapsed: Duration) {
        if self.uncached_bytes > 0 {
            self.endpoint().pace.note(self.work_bytes, elapsed);
        }
        self.on_first_token();
    }

    /// The time from the pick to the first token, as far as can be told; `None` if the member has not shown its pace.
    #[must_use]
    pub fn expected_first_token(&self) -> Option<Duration> {
        match self.uncached_bytes {
            0 => Some(Duration::ZERO),
            _ => self.endpoint().pace.time_for(self.work_bytes),
        }
    }

    /// Notes that the prompt is computed: it is cached, and is no work ahead of other requests any more.
    pub fn on_first_token(&mut self) {
        let insertions = std::mem::take(&mut self.insertions);
        for insertion in insertions {
            self.endpoint().facts.note_computed(insertion);
        }
        self.drop_work();
    }

    fn drop_work(&mut self) {
        let computed = std::mem::take(&mut self.uncached_bytes);
        self.endpoint().remove_work(computed);
    }

    fn endpoint(&self) -> &Endpoint {
        endpoint(&self.member)
    }
}

impl<M: Borrow<Endpoint>> Drop for Lease<M> {
    fn drop(&mut self) {
        self.drop_work();
        self.endpoint().remove_request();
    }
}

fn endpoint<M: Borrow<Endpoint>>(member: &Arc<M>) -> &Endpoint {
    (**member).borrow()
}
