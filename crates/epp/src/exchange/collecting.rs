//! A request whose body is still arriving, and the answers once it is complete.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use envoy_proto::service::ext_proc::v3::ProcessingResponse;
use envoy_proto::service::ext_proc::v3::processing_response::Response;

use super::{BodyEnd, BodyMode, json_string};
use crate::body::{Api, BodyScanner};
use crate::inquiry::{Content, RequestHead, RequestId};
use crate::refusal::BodyFault;
use crate::reply::{self, Pieces};

/// Chunks below this are put together, so that a body that trickles in takes no more memory than another.
const SMALL_CHUNK: usize = 4096;
/// What a chunk takes at least in the mode in which each is answered: the answer.
const ANSWER_BYTES: usize = 512;

/// Chunks as they came, and what was read from them.
#[derive(Debug)]
pub(crate) struct Collecting {
    head: RequestHead,
    mode: BodyMode,
    scanner: BodyScanner,
    chunks: Vec<Bytes>,
    /// What comes behind the chunks: small ones, put together.
    tail: BytesMut,
    /// Memory that the body takes, at least its length.
    n_bytes: usize,
    max_bytes: usize,
}

/// A complete request.
#[derive(Debug)]
pub(crate) struct Collected {
    pub(crate) head: RequestHead,
    pub(crate) content: Content,
    pub(crate) body: CollectedBody,
}

/// The bytes of a complete request, to be sent on.
#[derive(Debug)]
pub struct CollectedBody {
    mode: BodyMode,
    chunks: Vec<Bytes>,
    /// Where the body names its model, quotes included; `None` when it was not read.
    model_span: Option<Range<usize>>,
    has_content_length: bool,
}

impl Collecting {
    pub(crate) fn new(head: RequestHead, mode: BodyMode, api: Api, max_bytes: usize) -> Self {
        Self {
            head,
            mode,
            scanner: BodyScanner::new(api),
            chunks: Vec::new(),
            tail: BytesMut::new(),
            n_bytes: 0,
            max_bytes,
        }
    }

    pub(crate) fn push(&mut self, chunk: Bytes) -> Result<(), BodyFault> {
        let answers_each = self.mode == BodyMode::StreamedAhead;
        self.n_bytes += if answers_each { chunk.len().max(ANSWER_BYTES) } else { chunk.len() };
        if self.n_bytes > self.max_bytes {
            return Err(BodyFault::TooLarge { limit: self.max_bytes });
        }
        self.scanner.push(&chunk)?;
        if answers_each {
            self.chunks.push(chunk);
        } else if chunk.len() < SMALL_CHUNK {
            self.tail.extend_from_slice(&chunk);
        } else {
            self.end_tail();
            self.chunks.push(chunk);
        }
        Ok(())
    }

    fn end_tail(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push(self.tail.split().freeze());
        }
    }

    pub(crate) fn into_head(self) -> RequestHead {
        self.head
    }

    pub(crate) fn finish(mut self, end: BodyEnd) -> Collected {
        self.end_tail();
        let Self { head, mode, scanner, chunks, tail: _, n_bytes: _, max_bytes: _ } = self;
        let content = match scanner.finish(&chunks) {
            Ok(body) => Content::Body(body),
            // The proxy cut the body at its buffer's limit: what is missing cannot be blamed on the client.
            Err(_) if mode == BodyMode::BufferedPartial && end == BodyEnd::Trailers => Content::Opaque,
            Err(error) => Content::Fault(BodyFault::Malformed(error)),
        };
        let model_span = match &content {
            Content::Body(body) => body.model.as_ref().ok().map(|model| model.span.clone()),
            Content::Opaque | Content::Fault(_) => None,
        };
        let has_content_length = head.has_content_length;
        Collected { head, content, body: CollectedBody { mode, chunks, model_span, has_content_length } }
    }
}

impl CollectedBody {
    /// The body as it came.
    pub(crate) fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }

    /// Length of the body that goes on, its model renamed to `rewrite`.
    pub(crate) fn n_bytes(&self, rewrite: Option<&str>) -> usize {
        let n_bytes: usize = self.chunks.iter().map(Bytes::len).sum();
        match (&self.model_span, rewrite) {
            (Some(span), Some(name)) => n_bytes - span.len() + json_string(name).len(),
            _ => n_bytes,
        }
    }

    /// The answers that send the request to `destination`, its model renamed to `rewrite`.
    pub(crate) fn answers(
        self,
        destination: &str,
        request_id: &RequestId,
        rewrite: Option<&str>,
        end: BodyEnd,
    ) -> Vec<ProcessingResponse> {
        let Self { mode, chunks, model_span, has_content_length } = self;
        let change = model_span.zip(rewrite.map(json_string));
        match mode {
            BodyMode::StreamedAhead => each_chunk(destination, request_id, &chunks, change),
            BodyMode::Buffered | BodyMode::BufferedPartial => {
                let changed = change.map(|(span, name)| Pieces::with_replaced(chunks, &span, &name).concat());
                vec![reply::picked_body(destination, changed)]
            }
            BodyMode::FullDuplex | BodyMode::Streamed | BodyMode::None => {
                let (pieces, content_length) = match change {
                    None => (Pieces::new(chunks), None),
                    Some((span, name)) => {
                        let pieces = Pieces::with_replaced(chunks, &span, &name);
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
    chunks: &[Bytes],
    change: Option<(Range<usize>, Bytes)>,
) -> Vec<ProcessingResponse> {
    let mut answers = vec![reply::picked_headers(destination, request_id, None)];
    let mut start = 0;
    for chunk in chunks {
        let end = start + chunk.len();
        let body = match &change {
            Some((span, name)) if span.start < end && start < span.end => {
                let parts = reply::replace_in_chunk(chunk, start, span, name);
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
