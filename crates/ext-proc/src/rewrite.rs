//! Bodies in which the name of the model is replaced, cut to the sizes that the proxy accepts. All other bytes stay as
//! they came.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use envoy_proto::service::ext_proc::v3::StreamedBodyResponse;

use crate::reply::MAX_CHUNK;

/// A body, unchanged or with one range replaced.
#[derive(Debug, Default)]
pub struct Pieces {
    pieces: VecDeque<Bytes>,
}

impl Pieces {
    #[must_use]
    pub fn new(chunks: Vec<Bytes>) -> Self {
        let mut pieces = VecDeque::from(chunks);
        pieces.retain(|piece| !piece.is_empty());
        Self { pieces }
    }

    /// The body with `replacement` in place of `span`.
    #[must_use]
    pub fn with_replaced(chunks: Vec<Bytes>, span: &Range<usize>, replacement: &Bytes) -> Self {
        let mut pieces = VecDeque::with_capacity(chunks.len() + 2);
        let mut start = 0;
        for chunk in chunks {
            pieces.extend(replace_in_chunk(&chunk, start, span, replacement));
            start += chunk.len();
        }
        Self { pieces }
    }

    /// Returns true if this is `chunk`, unchanged.
    #[must_use]
    pub fn is_whole(&self, chunk: &Bytes) -> bool {
        match self.pieces.as_slices() {
            ([], _) => chunk.is_empty(),
            ([only], []) => only.as_ptr() == chunk.as_ptr() && only.len() == chunk.len(),
            _ => false,
        }
    }

    /// Total length in bytes.
    #[must_use]
    pub fn n_bytes(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum()
    }

    /// The whole body in one buffer.
    #[must_use]
    pub fn concat(mut self) -> Bytes {
        self.next_up_to(usize::MAX)
    }

    /// The body in messages of [`MAX_CHUNK`] bytes; the last one has the rest, and an empty body is one empty message.
    /// The last message has this `end_of_stream`.
    #[must_use]
    pub fn into_messages(mut self, end_of_stream: bool) -> Vec<StreamedBodyResponse> {
        let mut messages = Vec::with_capacity(self.n_bytes() / MAX_CHUNK + 1);
        loop {
            let body = self.next_up_to(MAX_CHUNK);
            let is_last = self.pieces.is_empty();
            messages.push(StreamedBodyResponse {
                body,
                end_of_stream: is_last && end_of_stream,
                ..StreamedBodyResponse::default()
            });
            if is_last {
                return messages;
            }
        }
    }

    /// Removes and returns `limit` bytes from the front, or all if there are fewer; copies only to join pieces.
    pub(crate) fn next_up_to(&mut self, limit: usize) -> Bytes {
        let Some(first) = self.take_up_to(limit) else { return Bytes::new() };
        if first.len() == limit || self.pieces.is_empty() {
            return first;
        }
        let mut joined = BytesMut::with_capacity(limit.min(first.len() + self.n_bytes()));
        joined.extend_from_slice(&first);
        while joined.len() < limit
            && let Some(next) = self.take_up_to(limit - joined.len())
        {
            joined.extend_from_slice(&next);
        }
        joined.freeze()
    }

    /// Removes the first piece, or the front of it.
    fn take_up_to(&mut self, limit: usize) -> Option<Bytes> {
        let mut first = self.pieces.pop_front()?;
        if first.len() > limit {
            let rest = first.split_off(limit);
            self.pieces.push_front(rest);
        }
        Some(first)
    }
}

/// The parts of a chunk that starts at byte `start` of the body; `replacement` is where `span` begins.
pub fn replace_in_chunk(
    chunk: &Bytes,
    start: usize,
    span: &Range<usize>,
    replacement: &Bytes,
) -> impl Iterator<Item = Bytes> {
    let end = start + chunk.len();
    let before = span.start.clamp(start, end) - start;
    let behind = span.end.clamp(start, end) - start;
    let begins_here = (start..end).contains(&span.start);
    let parts = [
        chunk.slice(..before),
        if begins_here { replacement.clone() } else { Bytes::new() },
        chunk.slice(behind..),
    ];
    parts.into_iter().filter(|part| !part.is_empty())
}
