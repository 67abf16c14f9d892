//! Drives the engine with a trace's requests and stops at the first field that differs.

use super::format::{Params, RemovedTag, StoredTag, Trace, TraceEvent, TracePolicy, TraceRequest, TraceStep};
use super::{CheckError, Difference, Matched};
use crate::config::{EngineConfig, SchedulingPolicy};
use crate::engine::Engine;
use crate::event::KvEvent;
use crate::hash::{BlockHash, HashAlgorithm, HashSeed};
use crate::request::{CacheReading, EngineRequest, FinishReason, RequestId};
use crate::step::{Origin, StepOutput};
use anyhow::Context as _;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// `PYTHONHASHSEED` of every trace.
const HASH_SEED: &str = "0";

struct Replay<'a> {
    trace: &'a Trace,
    engine: Engine,
    output: StepOutput,
    /// Prefix hits by index of the request, once it was scheduled.
    cached_tokens: Vec<Option<u32>>,
    n_arrived: usize,
    matched: Matched,
}

pub(super) fn replay(trace: &Trace) -> Result<Matched, CheckError> {
    let engine = Engine::try_new(config(&trace.params))
        .context("build an engine from params")
        .map_err(CheckError::Invalid)?;
    let replay = Replay {
        trace,
        engine,
        output: StepOutput::default(),
        cached_tokens: vec![None; trace.requests.len()],
        n_arrived: 0,
        matched: Matched { requests: trace.requests.len(), ..Matched::default() },
    };
    replay.run()
}

fn config(params: &Params) -> EngineConfig {
    let Params { num_blocks, block_size, max_num_seqs, max_num_batched_tokens, max_model_len, policy } =
        params;
    EngineConfig {
        n_blocks: *num_blocks,
        block_size: *block_size,
        max_num_seqs: *max_num_seqs,
        max_num_batched_tokens: *max_num_batched_tokens,
        max_model_len: *max_model_len,
        policy: match policy {
            TracePolicy::Fcfs => SchedulingPolicy::Fcfs,
            TracePolicy::Priority => SchedulingPolicy::Priority,
        },
        prefix_caching: true,
        chunked_prefill: true,
        long_prefill_token_threshold: 0,
        hash: HashAlgorithm::Sha256Cbor,
        hash_seed: HashSeed::Text(HASH_SEED.to_owned()),
        kv_events: true,
        ..EngineConfig::default()
    }
}

// === impl Replay ===

impl Replay<'_> {
    fn run(mut self) -> Result<Matched, CheckError> {
        let mut expected = self.trace.steps.iter();
        let mut step = 0;
        loop {
            self.arrive(step)?;
            if let Some(seen) = self.step(step) {
                self.matched.add(&seen);
                compare_step(expected.next(), &seen)?;
                step = step.saturating_add(1);
                continue;
            }
            // Idle, or nothing that waits fits: only an arrival can change that.
            match self.trace.requests.get(self.n_arrived) {
                Some(request) => step = request.step,
                None => break,
            }
        }
        if let Some(missed) = expected.next() {
            return Err(differs(Some(missed.step), "step", "something happened", "nothing happened"));
        }
        for (request, cached_tokens) in self.trace.requests.iter().zip(&self.cached_tokens) {
            if request.cached_tokens != *cached_tokens {
                let field = format!("requests.{}.cached_tokens", request.id);
                return Err(differs(None, field, json(&request.cached_tokens), json(cached_tokens)));
            }
        }
        Ok(self.matched)
    }

    fn arrive(&mut self, step: u64) -> Result<(), CheckError> {
        while let Some(request) =
            self.trace.requests.get(self.n_arrived).filter(|request| request.step <= step)
        {
            self.engine
                .add(engine_request(self.n_arrived, request))
                .with_context(|| format!("add request {}", request.id))
                .map_err(CheckError::Invalid)?;
            self.n_arrived += 1;
        }
        Ok(())
    }

    /// Runs one step of the engine and returns it in the trace's form; `None` if nothing happened.
    fn step(&mut self, step: u64) -> Option<TraceStep> {
        let plan = self.engine.schedule()?;
        let mut seen = TraceStep { step, ..TraceStep::default() };
        for scheduled in &plan.scheduled {
            let request = request_idx(scheduled.id);
            let id = &self.trace.requests[request].id;
            seen.scheduled.insert(id.clone(), scheduled.n_new_tokens);
            match scheduled.origin {
                Origin::Running => {}
                Origin::New => self.cached_tokens[request] = Some(scheduled.n_computed_before),
                Origin::Resumed => {
                    seen.resumed.insert(id.clone(), scheduled.n_computed_before);
                }
            }
        }
        seen.preempted = plan.preempted.iter().map(|id| trace_id(self.trace, *id)).collect();
        self.engine.complete(&mut self.output);
        self.finish(&mut seen);
        seen.events = self.engine.take_events().iter().map(event).collect();
        let stats = self.engine.stats();
        (seen.running, seen.waiting, seen.free_blocks) = (stats.running, stats.waiting, stats.free_blocks);
        Some(seen)
    }

    /// Adds the requests that produced their last token, then those that their client aborts now.
    fn finish(&mut self, seen: &mut TraceStep) {
        let tokens = &self.output.tokens;
        for token in tokens.iter().filter(|token| token.finished.is_some()) {
            seen.finished.insert(trace_id(self.trace, token.id));
        }
        for token in tokens.iter().filter(|token| token.finished.is_none()) {
            let request = &self.trace.requests[request_idx(token.id)];
            if request.abort_after == Some(token.output_idx as usize + 1) {
                self.engine.abort(token.id);
                seen.finished.insert(format!("{}!abort", request.id));
            }
        }
    }
}

// === impl Matched ===

impl Matched {
    fn add(&mut self, seen: &TraceStep) {
        self.steps += 1;
        self.tokens += seen.scheduled.values().map(|n_tokens| u64::from(*n_tokens)).sum::<u64>();
        self.events += seen.events.len();
        self.preemptions += seen.preempted.len();
    }
}

fn engine_request(idx: usize, request: &TraceRequest) -> EngineRequest {
    EngineRequest {
        id: RequestId(idx as u64),
        prompt: request.prompt.as_slice().into(),
        output: request.output.as_slice().into(),
        finish: FinishReason::Length,
        cache_salt: request.salt.as_deref().map(Into::into),
        cache_reading: CacheReading::Read,
        lora: None,
        priority: request.priority,
    }
}

/// Returns the index in `requests` of a request, which is also its id in the engine.
fn request_idx(id: RequestId) -> usize {
    usize::try_from(id.0).expect("ids were made from places in a list")
}

fn trace_id(trace: &Trace, id: RequestId) -> String {
    trace.requests[request_idx(id)].id.clone()
}

fn event(event: &KvEvent) -> TraceEvent {
    let short = |hash: &BlockHash| hash.to_string()[..16].to_owned();
    match event {
        KvEvent::BlockStored { block_hashes, parent, token_ids, .. } => TraceEvent::Stored(
            StoredTag::Stored,
            block_hashes.iter().map(short).collect(),
            parent.as_ref().map(short),
            token_ids.len() as u64,
        ),
        KvEvent::BlockRemoved { block_hash } => {
            TraceEvent::Removed(RemovedTag::Removed, vec![short(block_hash)])
        }
        KvEvent::AllBlocksCleared => unreachable!("a replay never resets the cache"),
    }
}

fn compare_step(expected: Option<&TraceStep>, seen: &TraceStep) -> Result<(), CheckError> {
    let Some(expected) = expected.filter(|expected| expected.step <= seen.step) else {
        return Err(differs(Some(seen.step), "step", "nothing happened", "something happened"));
    };
    let TraceStep { step, scheduled, preempted, resumed, events, finished, running, waiting, free_blocks } =
        expected;
    if *step != seen.step {
        return Err(differs(Some(*step), "step", "something happened", "nothing happened"));
    }
    let fields = [
        map_difference("scheduled", scheduled, &seen.scheduled),
        list_difference("preempted", preempted, &seen.preempted),
        map_difference("resumed", resumed, &seen.resumed),
        list_difference("events", events, &seen.events),
        set_difference("finished", finished, &seen.finished),
        value_difference("running", running, &seen.running),
        value_difference("waiting", waiting, &seen.waiting),
        value_difference("free_blocks", free_blocks, &seen.free_blocks),
    ];
    match fields.into_iter().flatten().next() {
        Some((field, trace, engine)) => Err(differs(Some(*step), field, trace, engine)),
        None => Ok(()),
    }
}

/// Field, value in the trace, and value of the engine.
type Values = (String, String, String);

fn value_difference<T: PartialEq + Serialize>(field: &str, trace: &T, engine: &T) -> Option<Values> {
    (trace != engine).then(|| (field.to_owned(), json(trace), json(engine)))
}

fn list_difference<T: PartialEq + Serialize>(field: &str, trace: &[T], engine: &[T]) -> Option<Values> {
    let idx = (0..trace.len().max(engine.len())).find(|idx| trace.get(*idx) != engine.get(*idx))?;
    Some((format!("{field}[{idx}]"), json_or_nothing(trace.get(idx)), json_or_nothing(engine.get(idx))))
}

fn set_difference(field: &str, trace: &BTreeSet<String>, engine: &BTreeSet<String>) -> Option<Values> {
    let id = trace.symmetric_difference(engine).next()?;
    Some((field.to_owned(), json_or_nothing(trace.get(id)), json_or_nothing(engine.get(id))))
}

fn map_difference(
    field: &str,
    trace: &BTreeMap<String, u32>,
    engine: &BTreeMap<String, u32>,
) -> Option<Values> {
    let id = trace.keys().chain(engine.keys()).find(|id| trace.get(*id) != engine.get(*id))?;
    Some((format!("{field}.{id}"), json_or_nothing(trace.get(id)), json_or_nothing(engine.get(id))))
}

fn differs(
    step: Option<u64>,
    field: impl Into<String>,
    trace: impl Into<String>,
    engine: impl Into<String>,
) -> CheckError {
    let (field, trace, engine) = (field.into(), trace.into(), engine.into());
    CheckError::Differs(Difference { step, field, trace, engine })
}

fn json_or_nothing<T: Serialize>(value: Option<&T>) -> String {
    value.map_or_else(|| "nothing".to_owned(), json)
}

fn json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("strings, numbers and lists of them can be written")
}
