//! Observations of vLLM about a request that has finished.

use super::buckets;
use super::histogram::Histogram;
use parking_lot::Mutex;
use std::time::Duration;
use vllm_engine::request::FinishReason;

/// A request that ended by itself. vLLM observes nothing about a request whose client left.
#[derive(Clone, Copy, Debug)]
pub struct FinishedRequest {
    pub reason: FinishReason,
    pub n_prompt_tokens: usize,
    pub cached_tokens: u32,
    pub n_generation_tokens: u32,
    /// Most tokens that it may generate: its own limit, or the room that its prompt leaves.
    pub max_tokens: u32,
    pub n_preemptions: u32,
    /// Samples of its request; `None` if it is one of several samples and not the last one to end.
    pub sampling: Option<SampleCounts>,
    /// Time from arrival to the last token.
    pub e2e: Duration,
    /// Time in the waiting queue, until it is first scheduled.
    pub queue: Duration,
    /// Time from first scheduled to the first token.
    pub prefill: Duration,
    /// Time from the first token to the last.
    pub decode: Duration,
    /// Time from first scheduled to the last token.
    pub inference: Duration,
}

/// All samples of a request together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleCounts {
    pub n: u32,
    /// Tokens of the longest sample.
    pub max_generation_tokens: u32,
}

/// Samples of one request with `n` above 1; in the engine each sample is a request of its own.
#[derive(Debug)]
pub struct SampleGroup {
    n: u32,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    n_finished: u32,
    max_generation_tokens: u32,
}

#[derive(Debug)]
pub(super) struct RequestHistograms {
    pub(super) time_per_output_token: Histogram,
    pub(super) e2e: Histogram,
    pub(super) queue: Histogram,
    pub(super) inference: Histogram,
    pub(super) prefill: Histogram,
    pub(super) decode: Histogram,
    pub(super) prompt_tokens: Histogram,
    pub(super) generation_tokens: Histogram,
    pub(super) max_num_generation_tokens: Histogram,
    pub(super) params_max_tokens: Histogram,
    pub(super) params_n: Histogram,
    pub(super) prefill_kv_computed_tokens: Histogram,
    pub(super) num_preemptions: Histogram,
}

// === impl SampleGroup ===

impl SampleGroup {
    pub fn new(n: u32) -> Self {
        Self { n, progress: Mutex::default() }
    }

    /// Counts a sample that has ended with this number of tokens. Returns all samples together, if it was the last.
    pub fn finish(&self, n_generation_tokens: u32) -> Option<SampleCounts> {
        let mut progress = self.progress.lock();
        let Progress { n_finished, max_generation_tokens } = &mut *progress;
        *n_finished += 1;
        *max_generation_tokens = n_generation_tokens.max(*max_generation_tokens);
        (*n_finished == self.n)
            .then_some(SampleCounts { n: self.n, max_generation_tokens: *max_generation_tokens })
    }
}

// === impl RequestHistograms ===

impl RequestHistograms {
    pub(super) fn new(max_model_len: u32) -> Self {
        let token_bounds = buckets::request_tokens(max_model_len);
        let tokens = || Histogram::new(&token_bounds);
        let seconds = || Histogram::new(buckets::REQUEST_LATENCY);
        Self {
            time_per_output_token: Histogram::new(buckets::INTER_TOKEN_LATENCY),
            e2e: seconds(),
            queue: seconds(),
            inference: seconds(),
            prefill: seconds(),
            decode: seconds(),
            prompt_tokens: tokens(),
            generation_tokens: tokens(),
            max_num_generation_tokens: tokens(),
            params_max_tokens: tokens(),
            params_n: Histogram::new(buckets::REQUEST_PARAMS_N),
            prefill_kv_computed_tokens: tokens(),
            num_preemptions: Histogram::new(buckets::REQUEST_NUM_PREEMPTIONS),
        }
    }

    pub(super) fn observe(&mut self, request: &FinishedRequest) {
        let FinishedRequest {
            reason: _,
            n_prompt_tokens,
            cached_tokens,
            n_generation_tokens,
            max_tokens,
            n_preemptions,
            sampling,
            e2e,
            queue,
            prefill,
            decode,
            inference,
        } = *request;
        let per_output_token = match n_generation_tokens {
            0 | 1 => 0.0,
            n => decode.as_secs_f64() / f64::from(n - 1),
        };
        self.time_per_output_token.observe(per_output_token);
        self.e2e.observe(e2e.as_secs_f64());
        self.queue.observe(queue.as_secs_f64());
        self.inference.observe(inference.as_secs_f64());
        self.prefill.observe(prefill.as_secs_f64());
        self.decode.observe(decode.as_secs_f64());
        self.prompt_tokens.observe(n_prompt_tokens as f64);
        self.generation_tokens.observe(f64::from(n_generation_tokens));
        self.params_max_tokens.observe(f64::from(max_tokens));
        if let Some(SampleCounts { n, max_generation_tokens }) = sampling {
            self.max_num_generation_tokens.observe(f64::from(max_generation_tokens));
            self.params_n.observe(f64::from(n));
        }
        self.prefill_kv_computed_tokens.observe(n_prompt_tokens as f64 - f64::from(cached_tokens));
        self.num_preemptions.observe(f64::from(n_preemptions));
    }
}
