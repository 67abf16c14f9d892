//! A request from its submission to the end of its stream: its stage, the times at which it changed, and its part in
//! the metrics.

use super::{Delivery, Outlets, Submission};
use crate::clock::SimTime;
use crate::metrics::lora::LoraStage;
use crate::metrics::requests::{FinishedRequest, SampleCounts, SampleGroup};
use crate::metrics::{FirstToken, LoraShift, StepRecord};
use std::sync::Arc;
use vllm_engine::request::{EngineRequest, FinishReason, LoraAdapter};
use vllm_engine::step::OutputToken;

#[derive(Debug)]
pub(super) struct Live {
    pub(super) request_id: Arc<str>,
    pub(super) outlets: Outlets,
    pub(super) stage: Stage,
    pub(super) arrival: SimTime,
    n_prompt_tokens: usize,
    max_tokens: u32,
    group: Option<Arc<SampleGroup>>,
    lora: Option<Arc<LoraAdapter>>,
    pub(super) entered: SimTime,
    pub(super) scheduled: SimTime,
    first_token: SimTime,
    last_token: SimTime,
    n_tokens: u32,
    n_preemptions: u32,
    /// Number of preemptions since its last token.
    pub(super) n_new_preemptions: u32,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// On its way to the engine.
    Arriving(Box<EngineRequest>),
    InEngine,
    /// Done in the engine; its last token is on its way to the client.
    Leaving,
}

// === impl Live ===

impl Live {
    pub(super) fn new(submission: Submission, outlets: Outlets) -> Self {
        let Submission { request, request_id, arrival, max_tokens, group } = submission;
        Self {
            request_id,
            outlets,
            arrival,
            n_prompt_tokens: request.prompt.len(),
            max_tokens,
            group,
            lora: request.lora.clone(),
            stage: Stage::Arriving(Box::new(request)),
            entered: arrival,
            scheduled: arrival,
            first_token: arrival,
            last_token: arrival,
            n_tokens: 0,
            n_preemptions: 0,
            n_new_preemptions: 0,
        }
    }

    /// Sends its request what comes next; the client may have gone.
    pub(super) fn deliver(&self, delivery: Delivery) {
        let _client_gone = self.outlets.deliveries.send(delivery);
    }

    /// Records a token of a step that ended `now` and that the API server has at `observed`.
    pub(super) fn record_token(
        &mut self,
        output: &OutputToken,
        now: SimTime,
        observed: SimTime,
        record: &mut StepRecord,
    ) {
        record.n_generation_tokens += 1;
        let n_new_preemptions = std::mem::take(&mut self.n_new_preemptions);
        record.n_preemptions += u64::from(n_new_preemptions);
        self.n_preemptions += n_new_preemptions;
        if output.output_idx == 0 {
            self.first_token = now;
            record.first_tokens.push(FirstToken {
                n_prompt_tokens: self.n_prompt_tokens,
                cached_tokens: output.cached_tokens,
                time: observed.since(self.arrival),
            });
            record.lora_shifts.extend(self.shift(Some(LoraStage::Waiting), Some(LoraStage::Running)));
        } else {
            record.inter_token_latencies.push(now.since(self.last_token));
        }
        self.last_token = now;
        self.n_tokens = output.output_idx + 1;
        if let Some(reason) = output.finished {
            record.lora_shifts.extend(self.leaves_adapter());
            record.finished.push(self.finished(reason, output.cached_tokens, observed));
            self.stage = Stage::Leaving;
        }
    }

    /// Returns the change of an arrival; `None` without an adapter.
    pub(super) fn joins_adapter(&self) -> Option<LoraShift> {
        self.shift(None, Some(LoraStage::Waiting))
    }

    /// Returns the change of a departure; `None` without an adapter, and for a request that has finished and so left it
    /// already.
    pub(super) fn leaves_adapter(&self) -> Option<LoraShift> {
        let from = match (&self.stage, self.n_tokens) {
            (Stage::Leaving, _) => return None,
            (Stage::Arriving(_) | Stage::InEngine, 0) => LoraStage::Waiting,
            (Stage::Arriving(_) | Stage::InEngine, _) => LoraStage::Running,
        };
        self.shift(Some(from), None)
    }

    fn shift(&self, from: Option<LoraStage>, to: Option<LoraStage>) -> Option<LoraShift> {
        let adapter = self.lora.as_ref()?.name.clone();
        Some(LoraShift { adapter, from, to })
    }

    /// Returns vLLM's observations of a request that ends by itself; its first and last tokens are known.
    fn finished(&self, reason: FinishReason, cached_tokens: u32, observed: SimTime) -> FinishedRequest {
        let n_generation_tokens = self.n_tokens;
        let alone = SampleCounts { n: 1, max_generation_tokens: n_generation_tokens };
        FinishedRequest {
            reason,
            n_prompt_tokens: self.n_prompt_tokens,
            cached_tokens,
            n_generation_tokens,
            max_tokens: self.max_tokens,
            n_preemptions: self.n_preemptions,
            sampling: self.group.as_ref().map_or(Some(alone), |group| group.finish(n_generation_tokens)),
            e2e: observed.since(self.arrival),
            queue: self.scheduled.since(self.entered),
            prefill: self.first_token.since(self.scheduled),
            decode: self.last_token.since(self.first_token),
            inference: self.last_token.since(self.scheduled),
        }
    }
}
