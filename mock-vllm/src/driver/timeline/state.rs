//! What a timeline knows, and the rule by which time moves. Pure: nothing here waits.

use super::{Holder, Pace, Status};
use crate::driver::clock::SimTime;
use hashbrown::HashMap;
use std::collections::BTreeMap;
use std::fmt;
use tokio::sync::oneshot;
use vllm_engine::request::RequestId;

/// A driver's index and its own name for the request.
pub(super) type RequestKey = (usize, RequestId);

/// When it wakes, and a number of its own.
pub(super) type SleeperKey = (SimTime, u64);

/// What the handler of a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attention {
    /// It has not asked for a delivery of this request yet and waits for another of its requests: time need not wait.
    Elsewhere,
    /// It has taken a delivery, or one is there for it: time waits.
    Working,
    /// It waits for the next delivery.
    Waiting,
}

struct SeatState {
    wake: Box<dyn Fn() + Send>,
    next_event: Option<SimTime>,
}

#[derive(Debug)]
pub(super) struct State {
    pace: Pace,
    pub(super) now: SimTime,
    /// How far somebody wants to go; with `Stepped` no event after it happens.
    pub(super) target: SimTime,
    /// Who wants all events to happen.
    pub(super) n_draining: usize,
    /// `None`: left.
    seats: Vec<Option<SeatState>>,
    /// Sent to drivers, and not done.
    n_commands: usize,
    requests: HashMap<RequestKey, Attention>,
    n_working: usize,
    pub(super) n_arrived: u64,
    sleepers: BTreeMap<SleeperKey, oneshot::Sender<()>>,
    next_sleeper: u64,
    /// Handlers that will never go on.
    pub(super) n_stalled: usize,
    /// Sleepers whose time has come and who have not gone on yet.
    n_waking: usize,
}

// === impl State ===

impl State {
    pub(super) fn new(pace: Pace) -> Self {
        Self {
            pace,
            now: SimTime::default(),
            target: SimTime::default(),
            n_draining: 0,
            seats: Vec::new(),
            n_commands: 0,
            requests: HashMap::new(),
            n_working: 0,
            n_arrived: 0,
            sleepers: BTreeMap::new(),
            next_sleeper: 0,
            n_stalled: 0,
            n_waking: 0,
        }
    }

    /// Jumps to the next event if nothing holds time, and wakes whose it is.
    pub(super) fn move_on(&mut self) {
        loop {
            match (self.holder(), self.next_event()) {
                (None, Some(next)) => {
                    self.now = self.now.max(next);
                    self.wake_due();
                }
                (Some(Holder::Limit), _) | (None, None) => {
                    self.now = self.now.max(self.target);
                    return;
                }
                (Some(Holder::Work | Holder::UnreadAnswer | Holder::Clients), _) => return,
            }
        }
    }

    /// Nothing happens any more until somebody does something.
    pub(super) fn is_at_rest(&self) -> bool {
        match self.holder() {
            Some(Holder::Work | Holder::UnreadAnswer) => false,
            Some(Holder::Clients | Holder::Limit) => true,
            None => self.next_event().is_none(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.next_event().is_none() && self.holder().is_none()
    }

    pub(super) fn status(&self) -> Status {
        Status {
            pace: self.pace,
            now: self.now,
            next_event: self.next_event(),
            arrived: self.n_arrived,
            open: self.requests.len(),
            held_by: self.holder(),
        }
    }

    pub(super) fn wait_for_clients(&mut self, n_clients: usize) -> bool {
        match &mut self.pace {
            Pace::Auto { clients } => {
                *clients = n_clients;
                true
            }
            Pace::Stepped => false,
        }
    }

    fn holder(&self) -> Option<Holder> {
        if self.n_waking > 0 || self.n_commands > 0 {
            return Some(Holder::Work);
        }
        // Who sleeps may have a delivery waiting; only that one is excused.
        if self.n_working > self.sleepers.len() + self.n_stalled {
            return Some(Holder::UnreadAnswer);
        }
        let next = self.next_event()?;
        match self.pace {
            Pace::Auto { clients } if self.n_draining == 0 && self.requests.len() < clients => {
                Some(Holder::Clients)
            }
            Pace::Stepped if self.n_draining == 0 && next > self.target => Some(Holder::Limit),
            Pace::Auto { .. } | Pace::Stepped => None,
        }
    }

    fn next_event(&self) -> Option<SimTime> {
        let of_drivers = self.seats.iter().flatten().filter_map(|seat| seat.next_event);
        let of_sleepers = self.sleepers.first_key_value().map(|((at, _), _)| *at);
        of_drivers.chain(of_sleepers).min()
    }

    fn wake_due(&mut self) {
        let now = self.now;
        for seat in self.seats.iter_mut().flatten().filter(|seat| seat.next_event.is_some_and(|at| at <= now))
        {
            seat.next_event = None;
            self.n_commands += 1;
            (seat.wake)();
        }
        while let Some(sleeper) = self.sleepers.first_entry().filter(|sleeper| sleeper.key().0 <= now) {
            let _sleeps_on_another_thread = sleeper.remove().send(());
            self.n_waking += 1;
        }
    }

    pub(super) fn add_seat(&mut self, wake: Box<dyn Fn() + Send>) -> usize {
        self.seats.push(Some(SeatState { wake, next_event: None }));
        self.seats.len() - 1
    }

    pub(super) fn remove_seat(&mut self, seat_idx: usize) {
        self.seats[seat_idx] = None;
    }

    pub(super) fn announce_command(&mut self) {
        self.n_commands += 1;
    }

    /// A command that could not be sent, or `n_done` that were.
    pub(super) fn commands_done(&mut self, n_done: usize) {
        self.n_commands -= n_done;
    }

    pub(super) fn plan(&mut self, seat_idx: usize, next_event: Option<SimTime>) {
        if let Some(seat) = &mut self.seats[seat_idx] {
            seat.next_event = next_event;
        }
    }

    pub(super) fn add_request(&mut self, key: RequestKey, attention: Attention) {
        self.n_arrived += 1;
        self.requests.insert(key, Attention::Elsewhere);
        self.attend(key, attention);
    }

    pub(super) fn remove_request(&mut self, key: RequestKey) {
        self.attend(key, Attention::Elsewhere);
        self.requests.remove(&key);
    }

    pub(super) fn attend(&mut self, key: RequestKey, attention: Attention) {
        let Some(seen) = self.requests.get_mut(&key) else { return };
        let before = std::mem::replace(seen, attention);
        self.n_working += usize::from(attention == Attention::Working);
        self.n_working -= usize::from(before == Attention::Working);
    }

    pub(super) fn deliver(&mut self, key: RequestKey) {
        if self.requests.get(&key) == Some(&Attention::Waiting) {
            self.attend(key, Attention::Working);
        }
    }

    pub(super) fn add_sleeper(&mut self, at: SimTime, wake: oneshot::Sender<()>) -> SleeperKey {
        let key = (at, self.next_sleeper);
        self.next_sleeper += 1;
        self.sleepers.insert(key, wake);
        key
    }

    /// It goes on, or was given up before its time.
    pub(super) fn remove_sleeper(&mut self, key: SleeperKey) {
        if self.sleepers.remove(&key).is_none() {
            self.n_waking -= 1;
        }
    }
}

// === impl SeatState ===

impl fmt::Debug for SeatState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wake: _, next_event } = self;
        f.debug_struct("SeatState").field("next_event", next_event).finish_non_exhaustive()
    }
}
