//! Ctrl-C and SIGTERM, remembered: a signal that comes while nothing waits for it is reported to the next caller.

use anyhow::{Context as _, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Remembers if the user or the system has asked the program to end since [`Interrupt::listen`].
#[derive(Clone, Debug)]
pub struct Interrupt(CancellationToken);

impl Interrupt {
    /// Takes both signals over, so that they do not end the program by themselves.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn listen() -> Result<Self> {
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let token = CancellationToken::new();
        let heard = token.clone();
        TaskTracker::new().spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            heard.cancel();
        });
        Ok(Self(token))
    }

    /// Returns once the program is asked to end, at once if that was earlier.
    pub async fn requested(&self) {
        self.0.cancelled().await;
    }

    pub fn is_requested(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Returns the result of `work`. If the program is asked to end first, drops `work` and returns `None`.
    pub async fn unless<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.requested() => None,
        }
    }
}
