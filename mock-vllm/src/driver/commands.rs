//! The way to a driver's thread.

use super::clock::{Clock, SimTime};
use super::{Command, EngineDead};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use vllm_engine::engine::Engine;

/// Sends to one driver, whose thread ends when the last of these is gone.
#[derive(Clone, Debug)]
pub(super) struct Commands {
    tx: mpsc::Sender<Command>,
}

/// The driver's end.
#[derive(Debug)]
pub(super) struct Inbox {
    rx: Receiver<Command>,
    clock: Clock,
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
    (Commands { tx }, Inbox { rx, clock: clock.clone() })
}

// === impl Commands ===

impl Commands {
    /// # Errors
    /// When the driver's thread is gone.
    pub(super) fn send(&self, command: Command) -> Result<(), EngineDead> {
        self.tx.send(command).map_err(|_closed| EngineDead)
    }
}

// === impl Inbox ===

impl Inbox {
    /// Until a command comes or the event at `next` is due; `None` when nobody is left who could send any.
    pub(super) fn wait(&self, next: Option<SimTime>) -> Option<Call> {
        let Some(next) = next else { return self.rx.recv().ok().map(Call::Command) };
        match self.rx.recv_timeout(self.clock.until(next)) {
            Ok(command) => Some(Call::Command(command)),
            Err(RecvTimeoutError::Timeout) => Some(Call::Due),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    /// One that waits already.
    pub(super) fn try_next(&self) -> Option<Command> {
        self.rx.try_recv().ok()
    }
}
