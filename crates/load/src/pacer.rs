//! Timer that wakes its owner at given moments, within some tens of microseconds on an idle core. It sleeps on a thread
//! of its own, because the runtime's timers are whole milliseconds, rounded up, and fire only when a worker is free.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::Stopwatch;

/// Handle of the timer; its thread ends when this is dropped.
#[derive(Debug)]
pub struct Pacer {
    stopwatch: Stopwatch,
    moments: Sender<Duration>,
    wake: Arc<Notify>,
}

impl Pacer {
    /// Starts the thread. Moments are counted from the start of `stopwatch`.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(stopwatch: Stopwatch) -> io::Result<Self> {
        let (moments, inbox) = channel();
        let wake = Arc::new(Notify::new());
        let sleeper = Sleeper { stopwatch, inbox, wake: Arc::clone(&wake) };
        std::thread::Builder::new().name("pacer".to_owned()).spawn(move || sleeper.run())?;
        Ok(Self { stopwatch, moments, wake })
    }

    /// Waits until `at`, or not at all if that has passed; never returns early. The future may be dropped at any time.
    pub async fn until(&mut self, at: Duration) {
        if self.stopwatch.elapsed() < at {
            let _lives_as_long = self.moments.send(at);
        }
        // A dropped call may have left a permit behind, so look at the clock again.
        while self.stopwatch.elapsed() < at {
            self.wake.notified().await;
        }
    }
}

/// Moments at an even distance, the first one at once. After a late moment the next ones come earlier, so the mean rate
/// holds.
#[derive(Debug)]
pub struct Beat {
    pacer: Pacer,
    period: Duration,
    due: Duration,
}

impl Beat {
    /// # Errors
    /// Fails when [`Pacer::start`] fails.
    pub fn start(period: Duration) -> io::Result<Self> {
        let pacer = Pacer::start(Stopwatch::start())?;
        Ok(Self { pacer, period, due: Duration::ZERO })
    }

    /// Waits for the next moment.
    pub async fn tick(&mut self) {
        self.pacer.until(self.due).await;
        self.due += self.period;
    }
}

/// The part of a [`Pacer`] that runs on the thread.
struct Sleeper {
    stopwatch: Stopwatch,
    inbox: Receiver<Duration>,
    wake: Arc<Notify>,
}

impl Sleeper {
    fn run(self) {
        let Self { stopwatch, inbox, wake } = self;
        let mut next = inbox.recv().ok();
        while let Some(at) = next {
            next = match inbox.recv_timeout(at.saturating_sub(stopwatch.elapsed())) {
                Ok(other) => Some(other),
                Err(RecvTimeoutError::Timeout) if stopwatch.elapsed() < at => Some(at),
                Err(RecvTimeoutError::Timeout) => {
                    wake.notify_one();
                    inbox.recv().ok()
                }
                Err(RecvTimeoutError::Disconnected) => None,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt as _;

    use super::{Beat, Pacer};
    use crate::clock::Stopwatch;

    #[tokio::test]
    async fn it_wakes_at_each_moment_and_never_before() {
        let stopwatch = Stopwatch::start();
        let mut pacer = Pacer::start(stopwatch).unwrap();
        for micros in [0, 500, 700, 5_000, 5_001, 12_345] {
            let at = Duration::from_micros(micros);
            pacer.until(at).await;
            assert!(stopwatch.elapsed() >= at, "{micros} us");
        }
    }

    #[tokio::test]
    async fn a_moment_that_is_given_up_does_not_hold_up_the_next() {
        let stopwatch = Stopwatch::start();
        let mut pacer = Pacer::start(stopwatch).unwrap();
        assert!(pacer.until(Duration::from_secs(3_600)).now_or_never().is_none());
        let soon = stopwatch.elapsed() + Duration::from_millis(2);
        pacer.until(soon).await;
        assert!(stopwatch.elapsed() >= soon);
        // Its wake-up comes although nothing waits for it; the next moment must still be right.
        let given_up = stopwatch.elapsed() + Duration::from_millis(1);
        assert!(pacer.until(given_up).now_or_never().is_none());
        std::thread::sleep(Duration::from_millis(3));
        let later = stopwatch.elapsed() + Duration::from_millis(2);
        pacer.until(later).await;
        assert!(stopwatch.elapsed() >= later);
    }

    #[tokio::test]
    async fn a_beat_makes_up_for_a_late_moment() {
        let stopwatch = Stopwatch::start();
        let mut beat = Beat::start(Duration::from_millis(2)).unwrap();
        beat.tick().await;
        std::thread::sleep(Duration::from_millis(11));
        // The moments at 2, 4, 6, 8 and 10 ms have passed.
        for _ in 0..5 {
            assert!(beat.tick().now_or_never().is_some());
        }
        for _ in 0..20 {
            beat.tick().await;
        }
        assert!(stopwatch.elapsed() >= Duration::from_millis(50));
    }
}
