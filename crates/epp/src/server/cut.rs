//! The end of all streams, for which each of them waits.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A stream's wait for the end. A stream is polled several times for each message, and asks the token for another wake-up
/// only if its task has changed.
#[derive(Debug)]
pub(super) struct Cut {
    token: CancellationToken,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The waker that the token knows.
    waker: Option<Waker>,
}

impl Cut {
    pub(super) fn new(token: CancellationToken) -> Self {
        let cancelled = Box::pin(token.clone().cancelled_owned());
        Self { token, cancelled, waker: None }
    }
}

impl Future for Cut {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { token, cancelled, waker } = &mut *self;
        if waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) && !token.is_cancelled() {
            return Poll::Pending;
        }
        *waker = Some(cx.waker().clone());
        cancelled.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::{Context, Poll, Wake, Waker};

    use tokio_util::sync::CancellationToken;

    use super::Cut;

    #[derive(Default)]
    struct Counted(AtomicU32);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_last_task_that_waits_is_woken() {
        let token = CancellationToken::new();
        let mut cut = pin!(Cut::new(token.clone()));
        let tasks = [Arc::<Counted>::default(), Arc::default()];
        for task in &tasks {
            let waker = Waker::from(Arc::clone(task));
            for _ in 0..3 {
                assert_eq!(cut.as_mut().poll(&mut Context::from_waker(&waker)), Poll::Pending);
            }
        }
        token.cancel();
        assert_eq!(tasks.each_ref().map(|task| task.0.load(Ordering::Relaxed)), [0, 1]);
        let waker = Waker::from(Arc::clone(&tasks[1]));
        assert_eq!(cut.poll(&mut Context::from_waker(&waker)), Poll::Ready(()));
    }
}
