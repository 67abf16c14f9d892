//! The way to a driver's thread. A detached clock is told of every command before it is sent: time waits until it is done.

use super::clock::{Clock, SimTime};
use super::live::Live;
use super::timeline::{Attendance, DriverSeat, Seat};
use super::{Command, Delivery, EngineDead};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use vllm_engine::engine::Engine;
use vllm_engine::request::RequestId;

/// Sends to one driver, whose thread ends when the last of these is gone.
#[derive(Clone, Debug)]
pub(super) struct Commands {
    tx: mpsc::Sender<Command>,
    /// `None` when the clock follows the wall's.
    seat: Option<Arc<Seat>>,
}

/// The driver's end.
#[derive(Debug)]
pub(super) struct Inbox {
    rx: Receiver<Command>,
    clock: Clock,
    seat: Option<DriverSeat>,
    /// Taken since the driver last waited.
    n_taken: usize,
}

/// What is done with the engine on the driver's thread, also while a step runs.
pub(super) type EngineWork = Box<dyn FnOnce(&mut Engine) -> Answer + Send>;
/// Tells whoever wanted it that it is done: called when the diary has it.
pub(super) type Answer = Box<dyn FnOnce() + Send>;

/// Why a driver goes on.
pub(super) enum Call {
    Command(Command),
    /// Its next event is due.
    Due,
}

pub(super) fn channel(clock: &Clock) -> (Commands, Inbox) {
    let (tx, rx) = mpsc::channel();
    let seat = clock.timeline().map(|timeline| {
        let tx = tx.clone();
        timeline.take_seat(move || {
            let _driver_ends = tx.send(Command::Wake);
        })
    });
    let inbox = Inbox { rx, clock: clock.clone(), seat: seat.as_ref().map(Seat::of_driver), n_taken: 0 };
    (Commands { tx, seat: seat.map(Arc::new) }, inbox)
}

// === impl Commands ===

impl Commands {
    /// # Errors
    /// When the driver's thread is gone.
    pub(super) fn send(&self, command: Command) -> Result<(), EngineDead> {
        if let Some(seat) = &self.seat {
            seat.announce_command();
        }
        self.tx.send(command).map_err(|_closed| EngineDead)
    }

    /// Sends what brings a request; what comes back lasts as long as its handler.
    ///
    /// # Errors
    /// When the driver's thread is gone.
    pub(super) fn send_request(
        &self,
        id: RequestId,
        is_alone: bool,
        command: Command,
    ) -> Result<Option<Attendance>, EngineDead> {
        let attendance = self.seat.as_ref().map(|seat| seat.announce_request(id, is_alone));
        self.tx.send(command).map_err(|_closed| EngineDead)?;
        Ok(attendance)
    }
}

// === impl Inbox ===

impl Inbox {
    /// Until a command comes or the event at `next` is due; `None` when nobody is left who could send any.
    pub(super) fn wait(&mut self, next: Option<SimTime>) -> Option<Call> {
        if let Some(seat) = &self.seat {
            seat.rest(std::mem::take(&mut self.n_taken), next);
            let command = self.rx.recv().ok()?;
            self.n_taken = 1;
            return Some(Call::Command(command));
        }
        let Some(next) = next else { return self.rx.recv().ok().map(Call::Command) };
        match self.rx.recv_timeout(self.clock.until(next)) {
            Ok(command) => Some(Call::Command(command)),
            Err(RecvTimeoutError::Timeout) => Some(Call::Due),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    /// What the request at the other end gets next; its client may have gone.
    pub(super) fn deliver(&self, id: RequestId, live: &Live, delivery: Delivery) {
        self.hand(id, || {
            let _client_gone = live.outlets.deliveries.send(delivery);
        });
    }

    /// `send` gives the request's handler something to do.
    pub(super) fn hand(&self, id: RequestId, send: impl FnOnce()) {
        match &self.seat {
            Some(seat) => seat.deliver(id, send),
            None => send(),
        }
    }

    /// One that waits already.
    pub(super) fn try_next(&mut self) -> Option<Command> {
        let command = self.rx.try_recv().ok()?;
        self.n_taken += 1;
        Some(command)
    }
}
