//! Channel to a driver's thread.

use super::{Command, EngineDead};
use crate::clock::{Clock, SimTime};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use vllm_engine::engine::Engine;

/// Sender to one driver, whose thread ends when the last of these is dropped.
#[derive(Clone, Debug)]
pub(super) struct Commands {
    tx: mpsc::Sender<Command>,
}

/// The driver's end of the channel.
#[derive(Debug)]
pub(super) struct Inbox {
    rx: Receiver<Command>,
    clock: Clock,
}

/// Work with the engine on the driver's thread, which may run during a step.
pub(super) type EngineWork = Box<dyn FnOnce(&mut Engine) -> ReportDone + Send>;
/// Reports to the caller that the work is done; called after the cache log has its changes.
pub(super) type ReportDone = Box<dyn FnOnce() + Send>;

/// Reason why a driver wakes up.
pub(super) enum WakeUp {
    Command(Command),
    /// The next event is due.
    Due,
}

pub(super) fn channel(clock: &Clock) -> (Commands, Inbox) {
    let (tx, rx) = mpsc::channel();
    (Commands { tx }, Inbox { rx, clock: clock.clone() })
}

// === impl Commands ===

impl Commands {
    /// Sends a command.
    ///
    /// # Errors
    /// Fails if the driver's thread is gone.
    pub(super) fn send(&self, command: Command) -> Result<(), EngineDead> {
        self.tx.send(command).map_err(|_closed| EngineDead)
    }
}

// === impl Inbox ===

impl Inbox {
    /// Waits until a command arrives or the event at `next` is due; `None` if all senders are gone.
    pub(super) fn wait(&self, next: Option<SimTime>) -> Option<WakeUp> {
        let Some(next) = next else { return self.rx.recv().ok().map(WakeUp::Command) };
        match self.rx.recv_timeout(self.clock.until(next)) {
            Ok(command) => Some(WakeUp::Command(command)),
            Err(RecvTimeoutError::Timeout) => Some(WakeUp::Due),
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    /// Returns a command that has arrived already.
    pub(super) fn try_next(&self) -> Option<Command> {
        self.rx.try_recv().ok()
    }
}
