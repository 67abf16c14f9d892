//! From candidates to a decision.

use prefix_index::endpoint::EndpointId;
use rand::Rng;

use crate::candidate::Candidate;

/// How a pool's requests are placed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Policy {
    /// By load.
    Default,
    /// To the endpoint that holds the longest part of the request's prefix, where that part is more than `threshold` of
    /// it; otherwise by load.
    PrefixCache { threshold: f64 },
}

/// Which rule chose the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It holds more than the threshold of the prefix, and no other holds more.
    Prefix,
    /// It has the least load.
    Load,
    /// There was no other candidate, and its match does not exceed the threshold.
    OnlyCandidate,
}

/// The endpoint for a request, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    pub endpoint: EndpointId,
    pub reason: Reason,
    /// Matched share of the picked endpoint, in 0..=1.
    pub ratio: f64,
    /// One per candidate, in the order of the candidates.
    pub scores: Vec<Score>,
}

/// What a candidate was judged by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    pub endpoint: EndpointId,
    /// Matched bytes by total bytes, in 0..=1; 0 if the request has no full block.
    pub ratio: f64,
    /// Requests ahead of this one: in flight plus waiting; in flight alone if the metrics are stale.
    pub queue: u32,
    /// KV-cache usage; `None` if the metrics are stale.
    pub kv_usage: Option<f64>,
}

/// Why there is no decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PickError {
    /// No candidate was given.
    NoCandidates,
}

/// Picks one of `candidates` for a request whose chain has `total_bytes`.
///
/// # Errors
/// [`PickError::NoCandidates`] if `candidates` is empty.
pub fn pick(
    policy: &Policy,
    candidates: &[Candidate],
    total_bytes: u64,
    rng: &mut impl Rng,
) -> Result<Decision, PickError> {
    let _ = (policy, total_bytes, rng);
    match candidates.first() {
        None => Err(PickError::NoCandidates),
        Some(first) => Ok(Decision {
            endpoint: first.endpoint,
            reason: Reason::OnlyCandidate,
            ratio: 0.0,
            scores: Vec::new(),
        }),
    }
}

impl std::fmt::Display for PickError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoCandidates => f.write_str("no candidates"),
        }
    }
}

impl std::error::Error for PickError {}
