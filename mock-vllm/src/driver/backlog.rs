//! Requests that the engine has not admitted yet, and the limits on them: vLLM 0.33's `--max-num-queued-reqs` and
//! `--max-num-queued-tokens`.

use super::EngineDead;
use crate::metrics::AdmissionLimit;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Limits of the queue; `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueLimits {
    pub max_requests: Option<usize>,
    pub max_tokens: Option<usize>,
}

/// Reason why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error(transparent)]
    EngineDead(#[from] EngineDead),
    #[error("the queue is full")]
    QueueFull(AdmissionLimit),
}

/// Counter of queued requests and tokens, one per pod.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    limits: QueueLimits,
    n_requests: AtomicUsize,
    n_tokens: AtomicUsize,
}

/// Place of a request in the backlog, which is free again when this is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct QueuePlace {
    backlog: Arc<Backlog>,
    n_tokens: usize,
}

// === impl Backlog ===

impl Backlog {
    pub(super) fn new(limits: QueueLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Takes a place for a request.
    ///
    /// # Errors
    /// Fails if the backlog has reached a limit: the request that reaches it is the last one taken.
    pub(super) fn enter(self: &Arc<Self>, n_tokens: usize) -> Result<QueuePlace, SubmitError> {
        let QueueLimits { max_requests, max_tokens } = self.limits;
        let place = QueuePlace { backlog: self.clone(), n_tokens };
        let n_requests_before = self.n_requests.fetch_add(1, Ordering::Relaxed);
        let n_tokens_before = self.n_tokens.fetch_add(n_tokens, Ordering::Relaxed);
        if max_requests.is_some_and(|limit| n_requests_before >= limit) {
            return Err(SubmitError::QueueFull(AdmissionLimit::MaxNumQueuedReqs));
        }
        if max_tokens.is_some_and(|limit| n_tokens_before >= limit) {
            return Err(SubmitError::QueueFull(AdmissionLimit::MaxNumQueuedTokens));
        }
        Ok(place)
    }
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        self.backlog.n_requests.fetch_sub(1, Ordering::Relaxed);
        self.backlog.n_tokens.fetch_sub(self.n_tokens, Ordering::Relaxed);
    }
}
