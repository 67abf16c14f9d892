//! Virtual time detached from the wall clock: it jumps to the next event once nothing else is to come at this moment. One
//! timeline moves all pods of a process, and knows of each driver only whether it has work, and when it next will.
//!
//! ```text
//! quiet: no driver has commands, no request has deliveries that its handler has not taken
//! quiet ──► next event within the limit? ──yes──► now = its time, wake whose it is
//!                                        └─no──► now = the limit, tell who advances
//! ```

mod state;

use super::clock::SimTime;
use parking_lot::Mutex;
use serde::Serialize;
use state::{Attention, SleeperKey, State};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use vllm_engine::request::RequestId;

/// Who says when time moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "pace", rename_all = "lowercase")]
pub enum Pace {
    /// As soon as nothing is to come now and at least so many requests are open.
    Auto { clients: usize },
    /// `advance` alone.
    Stepped,
}

/// Clones are the same one.
#[derive(Clone, Debug)]
pub struct Timeline {
    state: Arc<Mutex<State>>,
    /// A request arrived, or time has come to rest.
    changed: Arc<Notify>,
}

/// How far to go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    To(SimTime),
    By(Duration),
    /// Until no event is left; with `Auto` this lets the last requests end though there are fewer than `clients`.
    Idle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("time does not go back: it is {now:?}")]
pub struct InThePast {
    pub now: Duration,
}

/// What a timeline says of itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Status {
    pub pace: Pace,
    pub now: SimTime,
    /// `None`: nothing happens until a request arrives.
    pub next_event: Option<SimTime>,
    /// Of all pods since the start: completions that reached an engine. A request for `n` of them counts `n` times.
    pub arrived: u64,
    /// Those of them whose answer has not ended.
    pub open: usize,
    pub held_by: Option<Holder>,
}

/// Why time stands although there are events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// Somebody works at this very moment.
    Work,
    /// An answer is not read by its client.
    UnreadAnswer,
    /// Fewer requests are open than there are clients.
    Clients,
    /// The next event is after what `advance` asked for.
    Limit,
}

/// A driver's place, for those who send it commands; given up when it is dropped. Time waits while there are commands.
#[derive(Debug)]
pub(super) struct Seat {
    timeline: Timeline,
    idx: usize,
}

/// The same place for the driver itself, which does not keep it.
#[derive(Debug)]
pub(super) struct DriverSeat {
    timeline: Timeline,
    idx: usize,
}

/// A request's share in the timeline, from its submission until its handler lets it go.
#[derive(Debug)]
pub(super) struct Attendance {
    timeline: Timeline,
    seat_idx: usize,
    id: RequestId,
}

/// What a look into a channel finds.
#[derive(Debug)]
pub(super) enum Polled<T> {
    Ready(T),
    /// There is something, but Tokio wants the task to pause.
    Paused,
    Empty,
}

/// Lets all events happen until it is dropped.
struct Draining<'a>(&'a Timeline);

/// Time does not wait for it until it is dropped.
struct Stalled<'a>(&'a Timeline);

/// Time waits for it from its hour until it is dropped.
struct Sleeper<'a> {
    timeline: &'a Timeline,
    key: SleeperKey,
    woken: oneshot::Receiver<()>,
}

// === impl Timeline ===

impl Timeline {
    pub fn new(pace: Pace) -> Self {
        Self { state: Arc::new(Mutex::new(State::new(pace))), changed: Arc::default() }
    }

    pub fn now(&self) -> SimTime {
        self.state.lock().now
    }

    pub fn status(&self) -> Status {
        self.state.lock().status()
    }

    /// Goes there once `n_requests` have arrived since the start, and returns when all is done that happens on the way.
    ///
    /// # Errors
    /// When `goal` has passed.
    pub async fn advance(&self, goal: Goal, n_requests: u64) -> Result<Status, InThePast> {
        self.wait_until(|state| state.n_arrived >= n_requests).await;
        let target = {
            let mut state = self.state.lock();
            let now = state.now;
            match goal {
                Goal::To(at) if at < now => return Err(InThePast { now: now.0 }),
                Goal::To(at) => Some(at),
                Goal::By(duration) => Some(now + duration),
                Goal::Idle => None,
            }
            .inspect(|at| {
                state.target = state.target.max(*at);
                self.move_on(&mut state);
            })
        };
        match target {
            Some(target) => self.wait_until(|state| state.now >= target && state.is_at_rest()).await,
            None => {
                let draining = Draining::begin(self);
                self.wait_until(State::is_idle).await;
                drop(draining);
            }
        }
        Ok(self.status())
    }

    /// With `Auto`: from now on time waits for so many open requests; false with another pace.
    pub fn wait_for_clients(&self, clients: usize) -> bool {
        let mut state = self.state.lock();
        let is_auto = state.wait_for_clients(clients);
        self.move_on(&mut state);
        is_auto
    }

    /// Time need not wait for who sleeps.
    pub async fn sleep_until(&self, deadline: SimTime) {
        self.fall_asleep(deadline).wake().await;
    }

    /// Never goes on, and time need not wait for it.
    pub async fn stall(&self) -> ! {
        let _stalled = Stalled::begin(self);
        std::future::pending().await
    }

    /// A driver's place at the table; `wake` is called, with the timeline locked, when its next event is due.
    pub(super) fn take_seat(&self, wake: impl Fn() + Send + 'static) -> Seat {
        let idx = self.state.lock().add_seat(Box::new(wake));
        Seat { timeline: self.clone(), idx }
    }

    fn fall_asleep(&self, deadline: SimTime) -> Sleeper<'_> {
        let (tx, woken) = oneshot::channel();
        let mut state = self.state.lock();
        let key = state.add_sleeper(deadline, tx);
        self.move_on(&mut state);
        Sleeper { timeline: self, key, woken }
    }

    async fn wait_until(&self, condition: impl Fn(&State) -> bool) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            if condition(&self.state.lock()) {
                return;
            }
            changed.await;
        }
    }

    fn move_on(&self, state: &mut State) {
        state.move_on();
        if state.is_at_rest() {
            self.changed.notify_waiters();
        }
    }
}

// === impl Seat ===

impl Seat {
    pub(super) fn of_driver(&self) -> DriverSeat {
        DriverSeat { timeline: self.timeline.clone(), idx: self.idx }
    }

    /// To be called before a command is sent.
    pub(super) fn announce_command(&self) {
        self.timeline.state.lock().announce_command();
    }

    /// To be called before a request is sent to the driver.
    pub(super) fn announce_request(&self, id: RequestId, is_alone: bool) -> Attendance {
        let attention = if is_alone { Attention::Working } else { Attention::Elsewhere };
        let mut state = self.timeline.state.lock();
        state.announce_command();
        state.add_request((self.idx, id), attention);
        drop(state);
        self.timeline.changed.notify_waiters();
        Attendance { timeline: self.timeline.clone(), seat_idx: self.idx, id }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.timeline.state.lock();
        state.remove_seat(self.idx);
        self.timeline.move_on(&mut state);
    }
}

// === impl DriverSeat ===

impl DriverSeat {
    /// `n_commands` are done, and nothing is left to do before `next_event`.
    pub(super) fn rest(&self, n_commands: usize, next_event: Option<SimTime>) {
        let mut state = self.timeline.state.lock();
        state.commands_done(n_commands);
        state.plan(self.idx, next_event);
        self.timeline.move_on(&mut state);
    }

    /// `send` gives the request something to do, and time waits until it has done it.
    pub(super) fn deliver(&self, id: RequestId, send: impl FnOnce()) {
        let mut state = self.timeline.state.lock();
        state.deliver((self.idx, id));
        send();
    }
}

// === impl Attendance ===

impl Attendance {
    /// What is there for the handler; when there is nothing, it has done its work and waits.
    pub(super) fn poll<T>(&self, poll: impl FnOnce() -> Polled<T>) -> Poll<T> {
        let mut state = self.timeline.state.lock();
        let (attention, polled) = match poll() {
            Polled::Ready(value) => (Attention::Working, Poll::Ready(value)),
            Polled::Paused => (Attention::Working, Poll::Pending),
            Polled::Empty => (Attention::Waiting, Poll::Pending),
        };
        state.attend((self.seat_idx, self.id), attention);
        self.timeline.move_on(&mut state);
        polled
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        let mut state = self.timeline.state.lock();
        state.remove_request((self.seat_idx, self.id));
        self.timeline.move_on(&mut state);
    }
}

// === impl Draining ===

impl<'a> Draining<'a> {
    fn begin(timeline: &'a Timeline) -> Self {
        let mut state = timeline.state.lock();
        state.n_draining += 1;
        timeline.move_on(&mut state);
        drop(state);
        Self(timeline)
    }
}

impl Drop for Draining<'_> {
    fn drop(&mut self) {
        self.0.state.lock().n_draining -= 1;
    }
}

// === impl Stalled ===

impl<'a> Stalled<'a> {
    fn begin(timeline: &'a Timeline) -> Self {
        let mut state = timeline.state.lock();
        state.n_stalled += 1;
        timeline.move_on(&mut state);
        drop(state);
        Self(timeline)
    }
}

impl Drop for Stalled<'_> {
    fn drop(&mut self) {
        self.0.state.lock().n_stalled -= 1;
    }
}

// === impl Sleeper ===

impl Sleeper<'_> {
    async fn wake(mut self) {
        let _nobody_moves_time_any_more = (&mut self.woken).await;
    }
}

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        let mut state = self.timeline.state.lock();
        state.remove_sleeper(self.key);
        self.timeline.move_on(&mut state);
    }
}
