//! Pauses the scheduler: what `/sleep` and `/pause` do to requests in flight and to those that arrive meanwhile.
//!
//! ```text
//! Runs ──pause(wait)──► Draining ──last request ends──► Paused ──resume──► Runs
//!   └────pause(abort | keep)──────────────────────────────▲
//! ```

use super::live::{Live, Stage};
use super::{Command, Delivery, Driver, DriverHandle, EngineDead, Outlets, Submission};
use tokio::sync::oneshot;
use vllm_engine::request::RequestId;

/// vLLM's `mode` of `/pause` and `/sleep`: what happens to requests in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PauseMode {
    /// Requests end at once, with finish reason `abort` and the tokens that they have.
    #[default]
    Abort,
    /// Requests finish first.
    Wait,
    /// Requests stop, and continue when the scheduler does.
    Keep,
}

/// State of the scheduler. New requests are held back unless it runs.
#[derive(Debug, Default)]
pub(super) enum Scheduling {
    #[default]
    Runs,
    /// Steps continue for the requests that are there; the receivers learn when these have ended.
    Draining(Vec<oneshot::Sender<()>>),
    Paused,
}

// === impl DriverHandle ===

impl DriverHandle {
    /// Pauses the scheduler; returns when no further step will start.
    ///
    /// # Errors
    /// Fails if the driver's thread is gone.
    pub async fn pause(&self, mode: PauseMode) -> Result<(), EngineDead> {
        let (tx, paused) = oneshot::channel();
        self.commands.send(Command::Pause(mode, tx)).map_err(|_closed| EngineDead)?;
        paused.await.map_err(|_closed| EngineDead)
    }

    /// Lets steps start again, and admits held requests.
    ///
    /// # Errors
    /// Fails if the driver's thread is gone.
    pub fn resume(&self) -> Result<(), EngineDead> {
        self.commands.send(Command::Resume).map_err(|_closed| EngineDead)
    }

    /// Ends the requests with these outside names, or all: they get finish reason `abort`.
    ///
    /// # Errors
    /// Fails if the driver's thread is gone.
    pub fn abort_requests(&self, request_ids: Option<Vec<String>>) -> Result<(), EngineDead> {
        self.commands.send(Command::AbortRequests(request_ids)).map_err(|_closed| EngineDead)
    }
}

// === impl Driver ===

impl Driver {
    pub(super) fn pause(&mut self, mode: PauseMode, paused: oneshot::Sender<()>) {
        match mode {
            PauseMode::Wait => {
                match &mut self.scheduling {
                    Scheduling::Draining(waiting) => waiting.push(paused),
                    Scheduling::Runs => self.scheduling = Scheduling::Draining(vec![paused]),
                    Scheduling::Paused => {
                        let _caller_gone = paused.send(());
                    }
                }
                self.settle_drain();
            }
            PauseMode::Abort | PauseMode::Keep => {
                if mode == PauseMode::Abort {
                    self.abort_requests(|_| true);
                }
                let drained = std::mem::replace(&mut self.scheduling, Scheduling::Paused);
                self.tell_drained(drained);
                let _caller_gone = paused.send(());
            }
        }
    }

    pub(super) fn resume(&mut self) {
        let drained = std::mem::take(&mut self.scheduling);
        self.tell_drained(drained);
        for (submission, outlets) in std::mem::take(&mut self.held) {
            self.submit(submission, outlets);
        }
        self.now = self.now.max(self.clock.now());
        if !self.step_runs {
            self.start_step();
        }
    }

    /// Takes a request that arrives, or holds it back while the scheduler does not run.
    pub(super) fn receive(&mut self, submission: Box<Submission>, outlets: Outlets) {
        match self.scheduling {
            Scheduling::Runs => self.submit(submission, outlets),
            Scheduling::Draining(_) | Scheduling::Paused => self.held.push((submission, outlets)),
        }
    }

    pub(super) fn forget_held(&mut self, id: RequestId) {
        self.held.retain(|(submission, _)| submission.request.id != id);
    }

    /// Ends a drain if no request is left. It must be called whenever a request has left.
    pub(super) fn settle_drain(&mut self) {
        let is_over = |live: &Live| matches!(live.stage, Stage::Leaving);
        if matches!(self.scheduling, Scheduling::Draining(_)) && self.live.values().all(is_over) {
            let drained = std::mem::replace(&mut self.scheduling, Scheduling::Paused);
            self.tell_drained(drained);
        }
    }

    /// Ends the requests that `wanted` picks; a running step continues without them.
    pub(super) fn abort_requests(&mut self, wanted: impl Fn(&str) -> bool) {
        self.now = self.now.max(self.clock.now());
        let (aborted, kept) =
            std::mem::take(&mut self.held).into_iter().partition(|(held, _)| wanted(&held.request_id));
        self.held = kept;
        let aborted: Vec<(Box<Submission>, Outlets)> = aborted;
        aborted.iter().for_each(|(_, outlets)| self.tell_aborted(outlets));
        let is_wanted = |live: &Live| !matches!(live.stage, Stage::Leaving) && wanted(&live.request_id);
        let mut ids: Vec<RequestId> =
            self.live.iter().filter(|(_, live)| is_wanted(live)).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        for id in ids {
            if let Some(live) = self.live.get(&id) {
                self.tell_aborted(&live.outlets);
            }
            self.forget_aborted(id);
            self.engine.abort(id);
        }
        self.metrics.lock().set_gauges(&self.engine.stats());
    }

    fn tell_aborted(&self, outlets: &Outlets) {
        let _client_gone = outlets.deliveries.send(Delivery::Aborted { at: self.now });
        let _client_gone = outlets.deliveries.send(Delivery::End { at: self.now });
    }

    fn tell_drained(&self, scheduling: Scheduling) {
        if let Scheduling::Draining(waiting) = scheduling {
            waiting.into_iter().for_each(|waiting| {
                let _caller_gone = waiting.send(());
            });
        }
    }
}
