//! A request whose body is still arriving, and the answers after it is complete.

use std::ops::Range;

use bytes::Bytes;
use envoy_proto::service::ext_proc::v3::processing_response::Response;
use envoy_proto::service::ext_proc::v3::{HttpBody, ProcessingResponse};

use super::{BodyMode, Pending, StreamOptions, json_string};
use crate::body::{Api, BodyError, BodyScanner};
use crate::budget::{Full, Reservation};
use crate::compat::ReplyStyle;
use crate::pick_request::{Content, RequestHead, RequestId};
use crate::refusal::RequestFault;
use crate::reply::{self, MAX_CHUNK};
use crate::rewrite::{Pieces, replace_in_chunk};

/// Least memory of a chunk in the mode in which each chunk is answered: the size of the answer.
const ANSWER_BYTES: usize = 512;

/// The part of a body that has arrived, and what was read from it.
///
/// The bytes are copied out of the messages, because they would keep up to twice as much memory allocated. The copies
/// have the length of the outgoing pieces, so they are not copied again. A body that comes in one chunk waits for no
/// other, and is not copied.
#[derive(Debug)]
pub(crate) struct Collecting {
    head: RequestHead,
    mode: BodyMode,
    api: Api,
    scan: Scan,
    /// Pieces of [`MAX_CHUNK`] bytes; a body in one message is one piece.
    pieces: Vec<Bytes>,
    /// Bytes after the last piece.
    tail: Vec<u8>,
    /// Length of each chunk, if each chunk is answered.
    lengths: Vec<usize>,
    /// Memory of the body in bytes, at least its length.
    n_bytes: usize,
    max_bytes: usize,
    /// True if a body that is not JSON is refused before it is complete.
    refuses_before_the_end: bool,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of a stream, and it is boxed with the rest")]
enum Scan {
    Reading(BodyScanner),
    /// The fault of the body. It counts at the end of the body, if at all: a body that names no model need not be JSON.
    Broken(BodyError),
}

/// The next part of a request whose body is collected.
#[derive(Debug)]
pub(crate) enum NextPart {
    Chunk(HttpBody),
    Trailers,
    /// More should have come: the reason why it is not waited for any longer.
    Missing(RequestFault),
}

/// Result of a part.
#[derive(Debug)]
pub(crate) enum Progress {
    /// More of the body must come.
    More(Box<Collecting>),
    /// The request can be placed or refused.
    Done(Box<Collected>),
}

/// A request after its body was collected.
#[derive(Debug)]
pub(crate) struct Collected {
    pub(crate) head: RequestHead,
    pub(crate) content: Content,
    pub(crate) pending: Pending,
}

/// The end of a body that was collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEnd {
    /// The last chunk is marked as the last.
    EndOfStream,
    /// The trailers came.
    Trailers,
    /// A buffering proxy sent the whole body; its trailers are still to come.
    BeforeTrailers,
    /// More of the body is still to come, but nothing will be read from it.
    Open,
}

/// The bytes of a complete request, to be sent on.
#[derive(Debug)]
pub struct CollectedBody {
    mode: BodyMode,
    pieces: Vec<Bytes>,
    /// Length of each chunk, if each chunk is answered.
    lengths: Vec<usize>,
    /// Position of the model's name in the body, with its quotes; `None` if it was not read.
    model_span: Option<Range<usize>>,
    has_content_length: bool,
}

impl Collecting {
    pub(crate) fn new(
        head: RequestHead,
        mode: BodyMode,
        api: Api,
        (options, style): (&StreamOptions, &ReplyStyle),
    ) -> Self {
        Self {
            head,
            mode,
            api,
            scan: Scan::Reading(BodyScanner::new(api)),
            pieces: Vec::new(),
            tail: Vec::new(),
            lengths: Vec::new(),
            n_bytes: 0,
            max_bytes: options.max_body_bytes,
            refuses_before_the_end: style.refuses_before_the_end(api),
        }
    }

    /// Takes the next part and decides if it is the last one. `held` grows by the memory of the body.
    pub(crate) fn take(mut self: Box<Self>, part: NextPart, held: &mut Reservation) -> Progress {
        let end = match part {
            NextPart::Chunk(HttpBody { body, end_of_stream, .. }) => {
                match self.push(body, end_of_stream, held) {
                    Err(fault) => return Progress::Done(Box::new(self.refused(fault))),
                    Ok(()) if end_of_stream => BodyEnd::EndOfStream,
                    // A buffering proxy sends the body in one message, and marks its end only if no trailers follow.
                    Ok(()) if self.mode.is_buffered() => BodyEnd::BeforeTrailers,
                    Ok(()) if self.is_opaque() => BodyEnd::Open,
                    Ok(()) => return Progress::More(self),
                }
            }
            NextPart::Trailers => BodyEnd::Trailers,
            NextPart::Missing(fault) => return Progress::Done(Box::new(self.refused(fault))),
        };
        Progress::Done(Box::new(self.finish(end)))
    }

    fn refused(self, fault: RequestFault) -> Collected {
        let content = Content::Fault(fault.clone());
        Collected { head: self.head, content, pending: Pending::Fault(fault) }
    }

    fn push(&mut self, chunk: Bytes, is_last: bool, held: &mut Reservation) -> Result<(), RequestFault> {
        let answers_each = self.mode == BodyMode::StreamedAhead;
        let n_bytes = if answers_each { chunk.len().max(ANSWER_BYTES) } else { chunk.len() };
        self.n_bytes += n_bytes;
        if self.n_bytes > self.max_bytes {
            return Err(RequestFault::TooLarge { limit: self.max_bytes });
        }
        held.try_grow(n_bytes).map_err(|Full| RequestFault::NoRoom)?;
        self.read(&chunk)?;
        if answers_each {
            self.lengths.push(chunk.len());
        }
        let is_whole = is_last && self.pieces.is_empty() && self.tail.is_empty();
        if self.mode.is_buffered() || is_whole {
            self.pieces.push(chunk);
        } else {
            self.copy(&chunk);
        }
        Ok(())
    }

    fn copy(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min(MAX_CHUNK - self.tail.len()));
            let n_bytes = self.tail.len() + part.len();
            if n_bytes > self.tail.capacity() {
                let capacity = n_bytes.max(2 * self.tail.capacity()).min(MAX_CHUNK);
                self.tail.reserve_exact(capacity - self.tail.len());
            }
            self.tail.extend_from_slice(part);
            if self.tail.len() == MAX_CHUNK {
                self.end_tail();
            }
            bytes = rest;
        }
    }

    fn read(&mut self, chunk: &[u8]) -> Result<(), RequestFault> {
        let Scan::Reading(scanner) = &mut self.scan else { return Ok(()) };
        match scanner.push(chunk) {
            Ok(()) => Ok(()),
            Err(error) if self.refuses_before_the_end => Err(error.into()),
            Err(error) => {
                self.scan = Scan::Broken(error);
                Ok(())
            }
        }
    }

    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push(std::mem::take(&mut self.tail).into());
        }
    }

    /// Returns true if nothing will be read from the body.
    fn is_opaque(&self) -> bool {
        matches!(self.scan, Scan::Broken(_)) && !self.api.names_its_model()
    }

    fn finish(mut self: Box<Self>, end: BodyEnd) -> Collected {
        self.end_tail();
        let scanned = match &mut self.scan {
            Scan::Reading(scanner) => scanner.finish(&self.pieces),
            Scan::Broken(error) => Err(error.clone()),
        };
        let Self {
            head,
            mode,
            api,
            scan: _,
            pieces,
            tail: _,
            lengths,
            n_bytes: _,
            max_bytes: _,
            refuses_before_the_end: _,
        } = *self;
        let content = match scanned {
            Ok(body) => Content::Body(body),
            Err(_) if !api.names_its_model() => Content::Opaque,
            // The proxy cut the body at its buffer's limit: the client is not to blame for the missing part.
            Err(_) if mode == BodyMode::BufferedPartial && end != BodyEnd::EndOfStream => Content::Opaque,
            Err(error) => Content::Fault(RequestFault::Malformed(error)),
        };
        let model_span = match &content {
            Content::Body(body) => body.model.as_ref().ok().map(|model| model.span.clone()),
            Content::Opaque | Content::Fault(_) => None,
        };
        let has_content_length = head.has_content_length;
        let body = CollectedBody { mode, pieces, lengths, model_span, has_content_length };
        Collected { head, content, pending: Pending::Body { body, end } }
    }
}

impl CollectedBody {
    /// The body as it arrived.
    #[must_use]
    pub fn pieces(&self) -> &[Bytes] {
        &self.pieces
    }

    /// Length of the outgoing body, with its model renamed to `rewrite`.
    pub(crate) fn n_bytes(&self, rewrite: Option<&str>) -> usize {
        let n_bytes: usize = self.pieces.iter().map(Bytes::len).sum();
        match (&self.model_span, rewrite) {
            (Some(span), Some(name)) => n_bytes - span.len() + json_string(name).len(),
            _ => n_bytes,
        }
    }

    /// The answers that send the request to `destination`, with its model renamed to `rewrite`.
    pub(crate) fn answers(
        self,
        destination: &str,
        request_id: &RequestId,
        rewrite: Option<&str>,
        end: BodyEnd,
    ) -> Vec<ProcessingResponse> {
        let Self { mode, pieces, lengths, model_span, has_content_length } = self;
        let change = model_span.zip(rewrite.map(json_string));
        match mode {
            BodyMode::StreamedAhead => each_chunk(destination, request_id, (pieces, lengths), change),
            BodyMode::Buffered | BodyMode::BufferedPartial => {
                let changed = change.map(|(span, name)| Pieces::with_replaced(pieces, &span, &name).concat());
                vec![reply::picked_body(destination, changed)]
            }
            BodyMode::FullDuplex | BodyMode::Streamed | BodyMode::None => {
                let (pieces, content_length) = match change {
                    None => (Pieces::new(pieces), None),
                    Some((span, name)) => {
                        let pieces = Pieces::with_replaced(pieces, &span, &name);
                        let content_length = has_content_length.then(|| pieces.n_bytes());
                        (pieces, content_length)
                    }
                };
                let mut answers = vec![reply::picked_headers(destination, request_id, content_length)];
                let messages = pieces.into_messages(end == BodyEnd::EndOfStream);
                answers.extend(
                    messages
                        .into_iter()
                        .map(|body| reply::message(Response::RequestBody(reply::streamed(body)))),
                );
                answers
            }
        }
    }
}

/// One answer for the headers and one for each chunk that came.
fn each_chunk(
    destination: &str,
    request_id: &RequestId,
    (pieces, lengths): (Vec<Bytes>, Vec<usize>),
    change: Option<(Range<usize>, Bytes)>,
) -> Vec<ProcessingResponse> {
    let mut answers = vec![reply::picked_headers(destination, request_id, None)];
    let mut pieces = Pieces::new(pieces);
    let mut start = 0;
    for length in lengths {
        let chunk = pieces.next_up_to(length);
        let end = start + length;
        let body = match &change {
            Some((span, name)) if span.start < end && start < span.end => {
                let parts = replace_in_chunk(&chunk, start, span, name);
                reply::changed_body(
                    parts
                        .fold(Vec::new(), |mut body, part| {
                            body.extend_from_slice(&part);
                            body
                        })
                        .into(),
                )
            }
            _ => reply::unchanged_body(),
        };
        answers.push(reply::message(Response::RequestBody(body)));
        start = end;
    }
    answers
}
