//! Record of one request for text in the request log: filled while the request runs, written when it ends or its client
//! leaves.

use super::Pod;
use super::error::ApiError;
use super::wire::Api;
use crate::clock::{Clock, SimTime};
use crate::request_log::{RequestLine, timestamp};
use http::StatusCode;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;
use vllm_engine::request::FinishReason;

/// nginx's status for a client that left before the answer.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Line of the request log that counts as load while it lives. For several prompts or choices it sums up the tokens,
/// and has the times of the first token of all.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) pod: Arc<Pod>,
    pub(super) arrival: SimTime,
    pub(super) line: RequestLine,
    ended: Option<SimTime>,
}

// === impl Record ===

impl Record {
    pub(super) fn new(pod: Arc<Pod>, api: Api, arrival: SimTime) -> Self {
        let line = RequestLine {
            time: String::new(),
            pod: pod.config.pod_name.clone(),
            request_id: String::new(),
            endpoint: api.path(),
            model: None,
            stream: false,
            status: CLIENT_CLOSED_REQUEST,
            finish_reason: None,
            prompt_tokens: None,
            cached_tokens: None,
            completion_tokens: 0,
            queue_ms: None,
            ttft_ms: None,
            e2e_ms: 0.0,
            prompt_sha256: None,
        };
        pod.server_load.enter();
        Self { pod, arrival, line, ended: None }
    }

    /// Adds the prompts' tokens, and the first prompt's digest.
    pub(super) fn prompts<'a>(&mut self, mut prompts: impl Iterator<Item = &'a [u32]>) {
        let Some(first) = prompts.next() else { return };
        self.line.prompt_tokens = Some(first.len() + prompts.map(<[u32]>::len).sum::<usize>());
        self.line.prompt_sha256 = Some(prompt_digest(first));
    }

    /// Marks the request as admitted: whatever happens now, the client sees a 200.
    pub(super) fn answered(&mut self) {
        self.line.status = StatusCode::OK.as_u16();
        self.line.finish_reason = Some(FinishReason::Abort.as_str());
    }

    pub(super) fn token(&mut self, at: SimTime, cached_tokens: u32, queue_time: Duration) {
        if self.line.completion_tokens == 0 {
            self.line.cached_tokens = Some(cached_tokens);
            self.line.queue_ms = Some(milliseconds(queue_time));
            self.line.ttft_ms = Some(milliseconds(at.since(self.arrival)));
        }
        self.line.completion_tokens += 1;
    }

    /// Writes the line, before the client can see the end.
    pub(super) fn end(&mut self, at: SimTime) {
        if self.ended.replace(at).is_some() {
            return;
        }
        self.line.time = timestamp(Clock::unix_now());
        self.line.e2e_ms = milliseconds(at.since(self.arrival));
        self.pod.log.write(&self.line);
        self.pod.server_load.leave();
    }

    pub(super) fn fail(&mut self, error: &ApiError) {
        let has_answer = self.line.status == StatusCode::OK.as_u16();
        self.line.finish_reason = has_answer.then_some(FinishReason::Error.as_str());
        self.line.status = error.status.as_u16();
        self.end(self.pod.driver.clock().now());
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let now = self.pod.driver.clock().now();
        self.end(now);
    }
}

fn prompt_digest(prompt: &[u32]) -> String {
    let mut hasher = Sha256::new();
    prompt.iter().for_each(|id| hasher.update(id.to_le_bytes()));
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
