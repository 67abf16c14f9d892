//! A vLLM engine on an A10 with Qwen2.5-7B: continuous batching with chunked prefill, and the time of each step.

use std::collections::VecDeque;

use super::cache::{Cache, Grant};
use super::workload::Request;

/// Most tokens in a step (vLLM's `max_num_batched_tokens` on an A10).
const STEP_TOKENS: usize = 2048;
/// Most requests in a step (vLLM's `max_num_seqs`).
const MAX_RUNNING: usize = 256;

/// A pod's engine.
#[derive(Debug)]
pub(crate) struct Engine {
    cache: Cache,
    waiting: VecDeque<Request>,
    running: Vec<Job>,
    /// End of the current step; `None` while there is nothing to do.
    step_end: Option<f64>,
}

#[derive(Debug)]
struct Job {
    request: Request,
    grant: Grant,
    /// Tokens of the prompt whose keys and values are in the cache.
    n_computed: usize,
    n_output: usize,
    /// Tokens of the prompt in the current step.
    n_chunk: usize,
}

/// Results of a finished step.
#[derive(Debug)]
pub(crate) enum Progress {
    /// The prompt is computed; this many of its tokens were in the cache.
    FirstToken {
        request: usize,
        n_hit: usize,
    },
    Finished {
        request: usize,
    },
}

impl Engine {
    pub(crate) fn new(n_kv_tokens: usize) -> Self {
        Self { cache: Cache::new(n_kv_tokens), waiting: VecDeque::new(), running: Vec::new(), step_end: None }
    }

    pub(crate) fn n_waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn kv_usage(&self) -> f64 {
        self.cache.usage()
    }

    pub(crate) fn step_end(&self) -> Option<f64> {
        self.step_end
    }

    pub(crate) fn enqueue(&mut self, request: Request, now: f64) {
        self.waiting.push_back(request);
        if self.step_end.is_none() {
            self.start_step(now);
        }
    }

    /// Ends the current step and starts the next.
    pub(crate) fn end_step(&mut self, now: f64) -> Vec<Progress> {
        let mut progress = Vec::new();
        let mut still_running = Vec::new();
        for mut job in self.running.drain(..) {
            let id = job.request.id;
            if job.n_computed < job.request.n_prompt {
                job.n_computed += job.n_chunk;
                let n_text = job.n_computed.min(job.request.n_text);
                self.cache.fill(&mut job.grant, n_text);
                if job.n_computed == job.request.n_prompt {
                    job.n_output = 1;
                    progress.push(Progress::FirstToken { request: id, n_hit: job.grant.n_hit });
                }
            } else {
                job.n_output += 1;
            }
            if job.n_output == job.request.n_output {
                let n_tokens = (job.request.n_prompt + job.n_output - 1).min(job.request.n_text);
                self.cache.fill(&mut job.grant, n_tokens);
                self.cache.finish(job.grant, id);
                progress.push(Progress::Finished { request: id });
            } else {
                still_running.push(job);
            }
        }
        self.running = still_running;
        self.start_step(now);
        progress
    }

    /// Starts a step: decodes first, then prompts in order of arrival, up to the step's tokens.
    fn start_step(&mut self, now: f64) {
        let mut step = Step::default();
        let mut n_left = STEP_TOKENS;
        for job in self.running.iter_mut().filter(|job| job.n_output > 0) {
            n_left -= 1;
            step.decode(job.request.n_prompt + job.n_output);
        }
        for job in self.running.iter_mut().filter(|job| job.n_output == 0) {
            job.n_chunk = n_left.min(job.request.n_prompt - job.n_computed);
            n_left -= job.n_chunk;
            step.prefill(job.n_chunk, job.n_computed);
        }
        while n_left > 0
            && self.running.len() < MAX_RUNNING
            && let Some(request) = self.waiting.front()
        {
            let Request { id: _, text, n_text, n_prompt, n_output, arrival: _ } = *request;
            let Some(grant) = self.cache.admit(text, n_text, n_prompt, n_output) else { break };
            let n_chunk = n_left.min(n_prompt - grant.n_hit);
            n_left -= n_chunk;
            step.prefill(n_chunk, grant.n_hit);
            let request = self.waiting.pop_front().expect("it was there");
            self.running.push(Job { request, n_computed: grant.n_hit, grant, n_output: 0, n_chunk });
        }
        self.step_end = (!self.running.is_empty()).then(|| now + step.seconds());
    }
}

/// The work of one step.
#[derive(Debug, Default)]
struct Step {
    n_tokens: f64,
    n_rows: f64,
    n_prefills: usize,
    /// Pairs of a new token and a token that it attends to, in prefills.
    n_pairs: f64,
    /// Tokens whose keys and values are read.
    n_context: f64,
}

impl Step {
    fn decode(&mut self, n_context: usize) {
        self.n_tokens += 1.0;
        self.n_rows += 1.0;
        self.n_context += n_context as f64;
    }

    fn prefill(&mut self, n_new: usize, n_before: usize) {
        let (n_new, n_before) = (n_new as f64, n_before as f64);
        self.n_tokens += n_new;
        self.n_rows += 1.0;
        self.n_prefills += 1;
        self.n_pairs += n_new * n_before + n_new * n_new / 2.0;
        self.n_context += n_new + n_before;
    }

    /// Duration of the step: a roofline of an A10 (52 TFLOP/s and 485 GB/s, as reached) and Qwen2.5-7B (28 layers, 28
    /// heads of 128, 57,344 bytes of keys and values a token), plus the host's overhead per step, row and prefill.
    fn seconds(&self) -> f64 {
        let weights = 14.14e9_f64 / 485e9;
        let flops = (2.0 * 6.525e9 * self.n_tokens + 2.0 * 0.545e9 * self.n_rows) / 52e12;
        let gemm = (weights.powf(1.7) + flops.powf(1.7)).powf(1.0 / 1.7);
        let attention = 4.0 * 28.0 * 28.0 * 128.0 * self.n_pairs / 35e12;
        let context = self.n_context * 57_344.0 / 450e9;
        let prefill = if self.n_prefills > 0 { 0.006 } else { 0.0 };
        gemm + attention + context + 0.009 + 0.0002 * self.n_rows + prefill
    }
}

/// Step times to which the formula's constants were fitted.
#[test]
fn steps_take_as_long_as_on_an_a10() {
    for (n_new, n_before, ms) in [(16, 2384, 45.7), (512, 1888, 163.0), (2048, 0, 556.0), (8192, 0, 2458.0)] {
        let mut step = Step::default();
        step.prefill(n_new, n_before);
        assert!((step.seconds() * 1e3 / ms - 1.0).abs() < 0.01, "{n_new}: {} ms", step.seconds() * 1e3);
    }
    for (n_rows, ms) in [(1, 38.7), (8, 42.4), (32, 56.5)] {
        let mut step = Step::default();
        (0..n_rows).for_each(|_| step.decode(2400));
        assert!((step.seconds() * 1e3 / ms - 1.0).abs() < 0.01, "{n_rows}: {} ms", step.seconds() * 1e3);
    }
}
