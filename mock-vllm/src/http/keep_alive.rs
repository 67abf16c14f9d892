//! `--sse-keep-alive-interval`: sends comments in a stream that has nothing to send, so that no proxy takes it for
//! dead.

use crate::clock::{Clock, SimTime};
use axum::body::Body;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream, StreamExt as _};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

const COMMENT: &[u8] = b": keep-alive\n\n";

/// Longest silence of a stream, in virtual time; `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeepAlive(pub Option<Duration>);

/// Stream of frames, with comments between them.
struct Kept<S> {
    frames: S,
    clock: Clock,
    interval: Duration,
    last_sent: SimTime,
    /// Alarm at the end of the interval, counted from what had been sent last when it was set.
    alarm: BoxFuture<'static, ()>,
}

// === impl KeepAlive ===

impl KeepAlive {
    pub(super) fn around<S>(self, frames: S, clock: &Clock) -> Body
    where
        S: Stream<Item = Result<Bytes, Infallible>> + Send + Unpin + 'static,
    {
        let Self(Some(interval)) = self else { return Body::from_stream(frames) };
        let last_sent = clock.now();
        let alarm = alarm(clock.clone(), last_sent + interval);
        Body::from_stream(Kept { frames, clock: clock.clone(), interval, last_sent, alarm })
    }
}

// === impl Kept ===

impl<S: Stream<Item = Result<Bytes, Infallible>> + Unpin> Stream for Kept<S> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { frames, clock, interval, last_sent, alarm: armed } = &mut *self;
        if let Poll::Ready(frame) = frames.poll_next_unpin(ctx) {
            *last_sent = clock.now();
            return Poll::Ready(frame);
        }
        loop {
            ready!(armed.poll_unpin(ctx));
            let now = clock.now();
            let is_silent = now.since(*last_sent) >= *interval;
            if is_silent {
                *last_sent = now;
            }
            *armed = alarm(clock.clone(), *last_sent + *interval);
            if is_silent {
                return Poll::Ready(Some(Ok(Bytes::from_static(COMMENT))));
            }
        }
    }
}

fn alarm(clock: Clock, deadline: SimTime) -> BoxFuture<'static, ()> {
    async move { clock.sleep_until(deadline).await }.boxed()
}
