//! Answers that break off: streams are cut between frames, plain answers in the middle.

use crate::clock::Clock;
use crate::faults::socket::Connection;
use axum::body::{Body, BodyDataStream};
use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt as _;
use http::header;
use http_body_util::BodyExt as _;
use std::collections::VecDeque;
use std::io;
use std::time::Duration;

/// Effect of a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// Wait for this time; `None` waits for ever.
    Stall(Option<Duration>),
    Reset,
    Close,
}

/// Clock and connection that a cut works on.
#[derive(Clone, Debug)]
pub(super) struct Cutting {
    pub(super) clock: Clock,
    /// Connection of the answer; `None` without a socket.
    pub(super) connection: Option<Connection>,
}

struct CutStream {
    frames: BodyDataStream,
    /// Events of the last frame that were not sent yet.
    events: VecDeque<Bytes>,
    /// Cuts in order, each with the number of tokens before it.
    cuts: VecDeque<(u32, Cut)>,
    n_tokens: u32,
    cutting: Cutting,
}

/// Cuts a stream between events. An event that carries a choice, and not only its role, counts as a token.
pub(super) fn cut_stream(response: Response, cuts: Vec<(u32, Cut)>, cutting: &Cutting) -> Response {
    let (parts, body) = response.into_parts();
    Response::from_parts(parts, CutStream::new(body, cuts, cutting).into_body())
}

/// Cuts a plain answer. Cuts after no token come before the head, all others in the middle of the body.
pub(super) async fn cut_plain(response: Response, cuts: Vec<(u32, Cut)>, cutting: &Cutting) -> Response {
    let (before, amid): (Vec<_>, Vec<_>) = cuts.into_iter().partition(|(tokens, _)| *tokens == 0);
    for (_, cut) in before {
        if cutting.carry_out(cut).await.is_err() {
            // The connection is cut, so that no client reads this response.
            return response;
        }
    }
    if amid.is_empty() {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let bytes = whole(body).await;
    parts.headers.insert(header::CONTENT_LENGTH, bytes.len().into());
    let halves = [bytes.slice(..bytes.len() / 2), bytes.slice(bytes.len() / 2..)];
    let frames = futures::stream::iter(halves.map(Ok::<_, io::Error>));
    let cuts = amid.into_iter().map(|(_, cut)| (1, cut)).collect();
    Response::from_parts(parts, CutStream::new(Body::from_stream(frames), cuts, cutting).into_body())
}

/// Declares the body longer or shorter than it is, by `off` bytes.
pub(super) async fn with_wrong_length(response: Response, off: i64, cutting: &Cutting) -> Response {
    let (mut parts, body) = response.into_parts();
    let bytes = whole(body).await;
    let declared = (bytes.len() as u64).saturating_add_signed(off);
    parts.headers.insert(header::CONTENT_LENGTH, declared.into());
    let n_within = usize::try_from(declared).unwrap_or(usize::MAX).min(bytes.len());
    let (within, excess) = (bytes.slice(..n_within), bytes.slice(n_within..));
    let connection = cutting.connection.clone().filter(|_| !excess.is_empty());
    let body = futures::stream::once(async move {
        if let Some(connection) = connection {
            connection.exceed(excess);
        }
        Ok::<_, io::Error>(within)
    });
    // A body that is too short ends the connection: its bytes must be written before.
    let end = futures::stream::once(async {
        tokio::task::yield_now().await;
        Ok(Bytes::new())
    });
    // A stream has no length of its own that the server would compare with the header.
    Response::from_parts(parts, Body::from_stream(body.chain(end)))
}

async fn whole(body: Body) -> Bytes {
    body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default()
}

// === impl CutStream ===

impl CutStream {
    fn new(body: Body, cuts: Vec<(u32, Cut)>, cutting: &Cutting) -> Self {
        Self {
            frames: body.into_data_stream(),
            events: VecDeque::new(),
            cuts: cuts.into(),
            n_tokens: 0,
            cutting: cutting.clone(),
        }
    }

    fn into_body(self) -> Body {
        Body::from_stream(futures::stream::unfold(self, async |mut this| {
            let frame = this.next().await?;
            Some((frame, this))
        }))
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        while let Some((_, cut)) = self.cuts.pop_front_if(|(tokens, _)| *tokens <= self.n_tokens) {
            // Lets the server write what it has: it flushes when the body waits.
            tokio::task::yield_now().await;
            if let Err(error) = self.cutting.carry_out(cut).await {
                return Some(Err(error));
            }
        }
        if self.events.is_empty() {
            match self.frames.next().await? {
                Ok(frame) => self.events = events(&frame),
                Err(error) => return Some(Err(io::Error::other(error))),
            }
        }
        let event = self.events.pop_front().unwrap_or_default();
        self.n_tokens += u32::from(is_token(&event));
        Some(Ok(event))
    }
}

/// Splits a frame, which carries all events that had arrived.
fn events(frame: &Bytes) -> VecDeque<Bytes> {
    let Ok(text) = std::str::from_utf8(frame) else { return VecDeque::from([frame.clone()]) };
    text.split_inclusive("\n\n").map(|event| frame.slice_ref(event.as_bytes())).collect()
}

/// Returns true for a token. Anything that is not an event of a stream counts as one.
fn is_token(event: &Bytes) -> bool {
    let text = std::str::from_utf8(event).unwrap_or_default();
    !text.starts_with("data: ") || (text.contains("\"choices\":[{") && !text.contains("\"delta\":{\"role\""))
}

// === impl Cutting ===

impl Cutting {
    /// Carries out a cut.
    ///
    /// # Errors
    /// Fails if nothing may be sent any more.
    async fn carry_out(&self, cut: Cut) -> io::Result<()> {
        match cut {
            Cut::Stall(Some(delay)) => {
                self.clock.sleep_until(self.clock.now() + delay).await;
                return Ok(());
            }
            Cut::Stall(None) => std::future::pending().await,
            Cut::Reset => {
                if let Some(connection) = &self.connection {
                    connection.reset();
                }
            }
            Cut::Close => {
                if let Some(connection) = &self.connection {
                    connection.close();
                }
            }
        }
        // Lets the connection's task see that it is cut.
        tokio::task::yield_now().await;
        Err(io::Error::other("cut off by a fault"))
    }
}
