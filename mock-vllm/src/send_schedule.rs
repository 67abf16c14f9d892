//! Sends tokens on time. The API server's time is between the end of a step and the moment at which its tokens are due.
//! In that time the mock writes the frames of a stream into the outbox of its connection. At that moment the driver's
//! thread sends what is in all outboxes in one sweep.
//!
//! ```text
//! step ends ──► tokens ──► frames ──► outboxes ──(due)──► sweep ──► sockets
//! ```
//! A frame that is written after its moment goes straight to the socket. Plain answers need none of this.

pub mod shared_stream;
pub mod pacing;

use crate::clock::{Clock, SimTime};
use crate::metrics::lateness::TokenLateness;
use pacing::Pacing;
use parking_lot::Mutex;
use shared_stream::SharedStream;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

/// Schedule of the tokens that one pod sends.
#[derive(Debug)]
pub struct SendSchedule {
    clock: Clock,
    /// Metric that counts every streamed token.
    lateness: Option<Arc<TokenLateness>>,
    state: Mutex<State>,
}

/// Least wall time for which a token is held. With less time frames are hardly written ahead, and a sweep per step
/// would cost more than it gains.
const WORTH_HOLDING: Duration = Duration::from_micros(500);

#[derive(Debug, Default)]
struct State {
    /// Outboxes in the order of their times.
    waiting: VecDeque<(SimTime, Arc<Outbox>)>,
    /// Moment up to which everything that is due has left, or leaves as soon as it is written.
    sent_until: SimTime,
    pacing: Pacing,
}

/// Bytes of one connection that were written ahead of their time.
#[derive(Debug)]
pub struct Outbox {
    stream: SharedStream,
    send_schedule: Arc<SendSchedule>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// Segments in the order of their times.
    segments: VecDeque<Segment>,
    /// Waker of the task that wrote last; it is called if the socket did not take what was due.
    writer: Option<Waker>,
}

#[derive(Debug)]
struct Segment {
    due: SimTime,
    n_tokens: u32,
    bytes: Vec<u8>,
}

/// Result of handing bytes to the outbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// The bytes wait in the outbox.
    Held,
    /// Nothing waits: the bytes may go to the socket.
    Passed,
}

// === impl SendSchedule ===

impl SendSchedule {
    pub fn new(clock: Clock, lateness: Option<Arc<TokenLateness>>) -> Self {
        Self { clock, lateness, state: Mutex::default() }
    }

    /// Returns whether tokens with `time_left` of virtual time should be held; others leave as they are written.
    pub fn is_worth_holding(&self, time_left: Duration) -> bool {
        self.clock.in_wall(time_left) >= WORTH_HOLDING
    }

    /// Lets everything that is due by then leave as it is written.
    pub fn pass(&self, due: SimTime) {
        let mut state = self.state.lock();
        state.sent_until = state.sent_until.max(due);
    }

    /// Announces a sweep for `n_tokens` that are due then, and returns when it must begin.
    pub fn plan(&self, due: SimTime, n_tokens: usize) -> SimTime {
        let lead = self.state.lock().pacing.lead(n_tokens);
        SimTime(due.since(SimTime(self.clock.in_virtual(lead))))
    }

    /// Sends everything that is due by then; the sweep was planned to begin at `planned`.
    pub fn sweep(&self, due: SimTime, planned: SimTime) {
        let began = self.clock.now();
        let outboxes = self.state.lock().take_due(due);
        for outbox in &outboxes {
            outbox.send(due);
        }
        let overslept = self.clock.in_wall(began.since(planned));
        let spent = self.clock.in_wall(self.clock.now().since(began));
        self.state.lock().pacing.observe(overslept, spent, outboxes.len());
    }

    fn observe(&self, due: SimTime, n_tokens: u32) {
        if let Some(lateness) = &self.lateness {
            let distance = self.clock.distance(due);
            (0..n_tokens).for_each(|_| lateness.observe(distance));
        }
    }
}

// === impl State ===

impl State {
    fn take_due(&mut self, due: SimTime) -> Vec<Arc<Outbox>> {
        self.sent_until = self.sent_until.max(due);
        let n_due = self.waiting.partition_point(|(at, _)| *at <= due);
        self.waiting.drain(..n_due).map(|(_, outbox)| outbox).collect()
    }
}

// === impl Outbox ===

impl Outbox {
    pub fn new(stream: SharedStream, send_schedule: Arc<SendSchedule>) -> Self {
        Self { stream, send_schedule, held: Mutex::default() }
    }

    /// Holds what is written from now on until `at`, when its token is due; sends it at once if that has passed.
    pub fn hold(self: &Arc<Self>, at: SimTime) {
        let mut held = self.held.lock();
        if let Some(last) = held.segments.back_mut()
            && last.due == at
        {
            last.n_tokens += 1;
            return;
        }
        let mut state = self.send_schedule.state.lock();
        if at <= state.sent_until {
            drop(state);
            self.send_schedule.observe(at, 1);
            return;
        }
        let place = state.waiting.partition_point(|(due, _)| *due <= at);
        state.waiting.insert(place, (at, self.clone()));
        held.segments.push_back(Segment { due: at, n_tokens: 1, bytes: Vec::new() });
    }

    /// Takes all of `bufs` or nothing.
    ///
    /// # Errors
    /// Fails if the socket is broken.
    pub fn poll_accept(&self, ctx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<Accepted>> {
        let mut held = self.held.lock();
        if held.segments.is_empty() {
            return Poll::Ready(Ok(Accepted::Passed));
        }
        let sent_until = self.send_schedule.state.lock().sent_until;
        if let Some(last) = held.segments.back_mut()
            && last.due > sent_until
        {
            bufs.iter().for_each(|buf| last.bytes.extend_from_slice(buf));
            let is_known = held.writer.as_ref().is_some_and(|writer| writer.will_wake(ctx.waker()));
            if !is_known {
                held.writer = Some(ctx.waker().clone());
            }
            return Poll::Ready(Ok(Accepted::Held));
        }
        ready!(held.poll_send(&self.stream, ctx, sent_until))?;
        Poll::Ready(Ok(Accepted::Passed))
    }

    /// Sends what is due and did not leave in its sweep.
    ///
    /// # Errors
    /// Fails if the socket is broken.
    pub fn poll_flush(&self, ctx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut held = self.held.lock();
        if held.segments.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let sent_until = self.send_schedule.state.lock().sent_until;
        held.poll_send(&self.stream, ctx, sent_until)
    }

    /// Sends everything, even what is not due.
    ///
    /// # Errors
    /// Fails if the socket is broken.
    pub fn poll_empty(&self, ctx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.held.lock().poll_send(&self.stream, ctx, SimTime(Duration::MAX))
    }

    /// Sends as much as the socket takes at once, because the connection is about to end.
    pub fn abandon(&self) {
        let mut held = self.held.lock();
        for segment in held.segments.drain(..) {
            let _cut_off = self.stream.try_send(&segment.bytes);
        }
    }

    fn send(&self, due: SimTime) {
        let mut held = self.held.lock();
        while let Some(first) = held.segments.front_mut()
            && first.due <= due
        {
            let n_sent = self.stream.try_send(&first.bytes);
            self.send_schedule.observe(first.due, std::mem::take(&mut first.n_tokens));
            if n_sent < first.bytes.len() {
                first.bytes.drain(..n_sent);
                if let Some(writer) = held.writer.take() {
                    writer.wake();
                }
                return;
            }
            held.segments.pop_front();
        }
    }
}

// === impl Held ===

impl Held {
    fn poll_send(
        &mut self,
        stream: &SharedStream,
        ctx: &mut Context<'_>,
        due: SimTime,
    ) -> Poll<io::Result<()>> {
        while let Some(first) = self.segments.front_mut()
            && first.due <= due
        {
            while !first.bytes.is_empty() {
                let n_sent = ready!(stream.poll_send(ctx, &first.bytes))?;
                first.bytes.drain(..n_sent);
            }
            self.segments.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}
