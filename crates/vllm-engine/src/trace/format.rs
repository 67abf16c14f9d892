//! Format of a trace: a workload, and what vLLM's scheduler and KV-cache manager did with it.

use anyhow::ensure;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Most blocks: 16 million tokens in blocks of 16, more than any one GPU holds, take about 60 MB here.
const MAX_BLOCKS: u32 = 1 << 20;

#[derive(Debug, Deserialize)]
pub(super) struct Trace {
    pub(super) params: Params,
    /// Requests in order of arrival.
    pub(super) requests: Vec<TraceRequest>,
    /// Steps in which something happened, in order.
    pub(super) steps: Vec<TraceStep>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Params {
    /// Number of blocks, the null block included.
    pub(super) num_blocks: u32,
    pub(super) block_size: u32,
    pub(super) max_num_seqs: u32,
    pub(super) max_num_batched_tokens: u32,
    pub(super) max_model_len: u32,
    pub(super) policy: TracePolicy,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum TracePolicy {
    Fcfs,
    Priority,
}

#[derive(Debug, Deserialize)]
pub(super) struct TraceRequest {
    pub(super) id: String,
    /// Step before whose scheduling it arrives.
    pub(super) step: u64,
    pub(super) prompt: Vec<u32>,
    pub(super) output: Vec<u32>,
    pub(super) salt: Option<String>,
    #[serde(default)]
    pub(super) priority: i32,
    /// Number of tokens after which it is aborted, at the end of the step that produces the last of them.
    pub(super) abort_after: Option<usize>,
    /// Prefix hits; `None` if it was never scheduled.
    pub(super) cached_tokens: Option<u32>,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct TraceStep {
    pub(super) step: u64,
    /// Computed tokens, by request.
    pub(super) scheduled: BTreeMap<String, u32>,
    pub(super) preempted: Vec<String>,
    /// Computed tokens of preempted requests that came back.
    pub(super) resumed: BTreeMap<String, u32>,
    pub(super) events: Vec<TraceEvent>,
    /// Ids of the ended requests; an abort is `id!abort`. vLLM keeps a set of them, so a trace does not have their
    /// order.
    pub(super) finished: BTreeSet<String>,
    pub(super) running: usize,
    pub(super) waiting: usize,
    pub(super) free_blocks: u32,
}

/// KV event of a trace. A hash is the first 16 hex digits of the digest.
#[derive(Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub(super) enum TraceEvent {
    Stored(StoredTag, Vec<String>, Option<String>, u64),
    Removed(RemovedTag, Vec<String>),
}

#[derive(Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) enum StoredTag {
    #[serde(rename = "stored")]
    Stored,
}

#[derive(Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) enum RemovedTag {
    #[serde(rename = "removed")]
    Removed,
}

// === impl Trace ===

impl Trace {
    /// Checks what the types do not guarantee.
    pub(super) fn validate(&self) -> anyhow::Result<()> {
        let n_blocks = self.params.num_blocks;
        ensure!(n_blocks <= MAX_BLOCKS, "num_blocks {n_blocks} is more than {MAX_BLOCKS}");
        let mut ids = HashSet::new();
        for request in &self.requests {
            ensure!(ids.insert(request.id.as_str()), "request {} is listed twice", request.id);
        }
        ensure!(
            self.requests.is_sorted_by_key(|request| request.step),
            "requests are not in order of arrival"
        );
        ensure!(self.steps.is_sorted_by(|a, b| a.step < b.step), "steps are not in order");
        Ok(())
    }
}
