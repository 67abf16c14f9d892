//! Sends tokens on time. The API server's time is between the end of a step and the moment at which its tokens are due.
//! In that time the mock writes the frames of a stream into the outbox of its connection. At that moment the driver's
//! thread, with a helper if there is much, sends what is in all outboxes in one sweep.
//!
//! ```text
//! step ends ──► tokens ──► frames ──► outboxes ──(due)──► sweep ──► sockets
//! ```
//! A frame that is written after its moment goes straight to the socket. Plain answers need none of this.

mod cores;
pub mod line;
pub mod pacing;

use crate::clock::{Clock, SimTime};
use crate::metrics::lateness::TokenLateness;
use cores::Core;
use line::Line;
use pacing::Pacing;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

/// Departures of one pod.
#[derive(Debug)]
pub struct Departures {
    clock: Clock,
    /// Metric that counts every streamed token.
    lateness: Option<Arc<TokenLateness>>,
    state: Mutex<State>,
    /// Second thread; the first sweep that needs it starts it.
    helper: OnceLock<Helper>,
}

/// Least wall time for which a token is held. With less time frames are hardly written ahead, and a sweep per step
/// would cost more than it gains.
const WORTH_HOLDING: Duration = Duration::from_micros(500);
/// Outboxes that a thread takes at once.
const PORTION: usize = 4;
/// Tokens of a step from which on the helper is called.
const WORTH_A_HELPER: usize = 32;

#[derive(Debug, Default)]
struct State {
    /// Outboxes in the order of their times.
    waiting: VecDeque<(SimTime, Arc<Outbox>)>,
    last_sweep: Sweep,
    pacing: Pacing,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sweep {
    /// Moment up to which everything that is due has left, or leaves as soon as it is written.
    due: SimTime,
    began: SimTime,
    n_outboxes: usize,
}

/// A second thread for large sweeps. It has a timer of its own: if the first thread woke it, it would come late, and on
/// the same core.
#[derive(Debug)]
struct Helper(Sender<Job>);

#[derive(Clone, Copy, Debug)]
struct Job {
    begin: SimTime,
    due: SimTime,
    /// Core on which the first thread will wake.
    busy: Option<Core>,
}

/// Bytes of one connection that were written ahead of their time.
#[derive(Debug)]
pub struct Outbox {
    line: Line,
    departures: Arc<Departures>,
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

// === impl Departures ===

impl Departures {
    pub fn new(clock: Clock, lateness: Option<Arc<TokenLateness>>) -> Self {
        Self { clock, lateness, state: Mutex::default(), helper: OnceLock::new() }
    }

    /// Returns whether tokens with `time_left` of virtual time should be held; others leave as they are written.
    pub fn are_worth(&self, time_left: Duration) -> bool {
        self.clock.in_wall(time_left) >= WORTH_HOLDING
    }

    /// Lets everything that is due by then leave as it is written.
    pub fn pass(&self, due: SimTime) {
        self.state.lock().begin(due, &self.clock);
    }

    /// Announces a sweep for `n_tokens` that are due then, and returns when it must begin.
    pub fn plan(self: &Arc<Self>, due: SimTime, n_tokens: usize) -> SimTime {
        let lead = self.state.lock().pacing.lead(n_tokens);
        let begin = SimTime(due.since(SimTime(self.clock.in_virtual(lead))));
        if n_tokens >= WORTH_A_HELPER {
            self.helper.get_or_init(|| Helper::start(self)).call(Job { begin, due, busy: cores::current() });
        }
        begin
    }

    /// Sends everything that is due by then; the sweep was planned to begin at `planned`.
    pub fn sweep(&self, due: SimTime, planned: SimTime) {
        self.share_sweep(due);
        let now = self.clock.now();
        let mut state = self.state.lock();
        let Sweep { began, n_outboxes, .. } = state.last_sweep;
        let overslept = self.clock.in_wall(began.since(planned));
        let spent = self.clock.in_wall(now.since(began));
        state.pacing.observe(overslept, spent, n_outboxes);
    }

    /// Takes due outboxes, a few at a time, until none is left.
    fn share_sweep(&self, due: SimTime) {
        let mut taken = Vec::with_capacity(PORTION);
        loop {
            self.state.lock().take_portion(due, &self.clock, &mut taken);
            if taken.is_empty() {
                return;
            }
            for outbox in taken.drain(..) {
                outbox.send(due);
            }
        }
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
    fn departed(&self) -> SimTime {
        self.last_sweep.due
    }

    fn begin(&mut self, due: SimTime, clock: &Clock) {
        if due > self.departed() {
            self.last_sweep = Sweep { due, began: clock.now(), n_outboxes: 0 };
        }
    }

    fn take_portion(&mut self, due: SimTime, clock: &Clock, taken: &mut Vec<Arc<Outbox>>) {
        self.begin(due, clock);
        while taken.len() < PORTION
            && let Some((_, outbox)) = self.waiting.pop_front_if(|(at, _)| *at <= due)
        {
            taken.push(outbox);
        }
        self.last_sweep.n_outboxes += taken.len();
    }
}

// === impl Helper ===

impl Helper {
    /// Starts the thread. If the system has none left, the driver sweeps alone.
    fn start(departures: &Arc<Departures>) -> Self {
        let (jobs, inbox) = channel::<Job>();
        let departures = Arc::downgrade(departures);
        let help = move || {
            let mut avoided = None;
            for Job { begin, due, busy } in inbox {
                let Some(departures) = departures.upgrade() else { return };
                if let Some(core) = busy
                    && busy != avoided
                {
                    cores::avoid(core);
                    avoided = busy;
                }
                std::thread::sleep(departures.clock.until(begin));
                departures.share_sweep(due);
            }
        };
        if let Err(error) = std::thread::Builder::new().name("departures".to_owned()).spawn(help) {
            tracing::warn!(%error, "Cannot start a second thread that sends tokens");
        }
        Self(jobs)
    }

    fn call(&self, job: Job) {
        let _no_thread = self.0.send(job);
    }
}

// === impl Outbox ===

impl Outbox {
    pub fn new(line: Line, departures: Arc<Departures>) -> Self {
        Self { line, departures, held: Mutex::default() }
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
        let mut state = self.departures.state.lock();
        if at <= state.departed() {
            drop(state);
            self.departures.observe(at, 1);
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
        let departed = self.departures.state.lock().departed();
        if let Some(last) = held.segments.back_mut()
            && last.due > departed
        {
            bufs.iter().for_each(|buf| last.bytes.extend_from_slice(buf));
            let is_known = held.writer.as_ref().is_some_and(|writer| writer.will_wake(ctx.waker()));
            if !is_known {
                held.writer = Some(ctx.waker().clone());
            }
            return Poll::Ready(Ok(Accepted::Held));
        }
        ready!(held.poll_send(&self.line, ctx, departed))?;
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
        let departed = self.departures.state.lock().departed();
        held.poll_send(&self.line, ctx, departed)
    }

    /// Sends everything, even what is not due.
    ///
    /// # Errors
    /// Fails if the socket is broken.
    pub fn poll_empty(&self, ctx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.held.lock().poll_send(&self.line, ctx, SimTime(Duration::MAX))
    }

    /// Sends as much as the socket takes at once, because the connection is about to end.
    pub fn abandon(&self) {
        let mut held = self.held.lock();
        for segment in held.segments.drain(..) {
            let _cut_off = self.line.try_send(&segment.bytes);
        }
    }

    fn send(&self, due: SimTime) {
        let mut held = self.held.lock();
        while let Some(first) = held.segments.front_mut()
            && first.due <= due
        {
            let n_sent = self.line.try_send(&first.bytes);
            self.departures.observe(first.due, std::mem::take(&mut first.n_tokens));
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
    fn poll_send(&mut self, line: &Line, ctx: &mut Context<'_>, due: SimTime) -> Poll<io::Result<()>> {
        while let Some(first) = self.segments.front_mut()
            && first.due <= due
        {
            while !first.bytes.is_empty() {
                let n_sent = ready!(line.poll_send(ctx, &first.bytes))?;
                first.bytes.drain(..n_sent);
            }
            self.segments.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}
