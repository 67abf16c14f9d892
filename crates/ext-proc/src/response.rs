//! Reads a response while its chunks pass: token usage, and the model's name if it must be restored. All other bytes go
//! on unchanged and at once; nothing is kept.
//!
//! JSON is one document; an event stream has one in the `data` of each event. Anything else, or a body that breaks the
//! grammar, passes unread.

mod events;
mod document;

use std::ops::Range;

use bytes::Bytes;

use self::document::Document;
use self::events::{Events, Step};

/// Tokens of a request and its response, counted by the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// `prompt_tokens`, or `input_tokens` in the Responses API; in the Messages API the sum of `input_tokens` and the
    /// tokens read from and written to the cache.
    pub prompt_tokens: Option<u32>,
    /// `completion_tokens`, or `output_tokens`.
    pub completion_tokens: Option<u32>,
    /// `prompt_tokens_details.cached_tokens`, `input_tokens_details.cached_tokens`, or `cache_read_input_tokens`.
    pub cached_tokens: Option<u32>,
}

/// The numbers in the body.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    usage: Usage,
    /// `cache_read_input_tokens`, which are not part of `input_tokens`.
    read: Option<u32>,
    /// `cache_creation_input_tokens`, which are not part of `input_tokens`.
    written: Option<u32>,
}

/// Layout of the response's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    Json,
    EventStream,
    /// Compressed, or of another type: passes unread.
    Opaque,
}

impl Layout {
    /// The layout according to the response's headers. A body without a type counts as JSON, because engines send
    /// nothing else.
    #[must_use]
    pub fn new(content_type: Option<&str>, content_encoding: Option<&str>) -> Self {
        if content_encoding.is_some_and(|encoding| !encoding.trim().eq_ignore_ascii_case("identity")) {
            return Self::Opaque;
        }
        match content_type {
            None => Self::Json,
            Some(kind) if is_of_kind(kind, "text/event-stream") => Self::EventStream,
            Some(kind) if is_of_kind(kind, "json") => Self::Json,
            Some(_) => Self::Opaque,
        }
    }
}

/// Returns true if `content_type` contains `kind`, in capitals or not.
pub(crate) fn is_of_kind(content_type: &str, kind: &str) -> bool {
    content_type.as_bytes().windows(kind.len()).any(|part| part.eq_ignore_ascii_case(kind.as_bytes()))
}

/// Reads one response body.
#[derive(Debug)]
pub struct ResponseReader {
    framing: Framing,
    counts: Counts,
    /// JSON string that replaces every `model` value; `None` changes nothing.
    model: Option<Bytes>,
    n_bytes: u64,
}

#[derive(Debug)]
enum Framing {
    Json(Document),
    Events(Events),
    Opaque,
}

impl ResponseReader {
    /// Creates a reader; `model` is the JSON string that replaces each `model` value.
    #[must_use]
    pub fn new(layout: Layout, model: Option<Bytes>) -> Self {
        let framing = match layout {
            Layout::Json => Framing::Json(Document::new()),
            Layout::EventStream => Framing::Events(Events::new()),
            Layout::Opaque => Framing::Opaque,
        };
        Self { framing, counts: Counts::default(), model, n_bytes: 0 }
    }

    /// The outgoing chunk: whole, or in parts if a model name in it is replaced.
    pub fn push(&mut self, chunk: &Bytes) -> Vec<Bytes> {
        self.n_bytes += chunk.len() as u64;
        let mut out = Parts { chunk, replacement: self.model.as_ref(), parts: Vec::new(), n_done: 0 };
        match &mut self.framing {
            Framing::Opaque => {}
            Framing::Json(document) => document.read(0..chunk.len(), &mut self.counts, &mut out),
            Framing::Events(events) => {
                let mut start = 0;
                while start < chunk.len() {
                    let (step, n_taken) = events.next(&chunk[start..]);
                    match step {
                        Step::Skipped => {}
                        Step::Data => {
                            events.document.read(start..start + n_taken, &mut self.counts, &mut out);
                        }
                        Step::EventEnd => events.document.restart(),
                    }
                    start += n_taken;
                }
            }
        }
        let swallows = match &self.framing {
            Framing::Opaque => false,
            Framing::Json(document) => document.is_in_model(),
            Framing::Events(events) => events.document.is_in_model(),
        };
        out.finish(swallows)
    }

    /// The usage so far; `None` if the body contained no token counts.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
        let usage = self.counts.usage();
        (usage != Usage::default()).then_some(usage)
    }

    /// Bytes of the body so far.
    #[must_use]
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }
}

impl Counts {
    fn usage(&self) -> Usage {
        let Self { usage, read, written } = *self;
        let beside = read.unwrap_or_default().saturating_add(written.unwrap_or_default());
        Usage {
            prompt_tokens: usage.prompt_tokens.map(|n_tokens| n_tokens.saturating_add(beside)),
            cached_tokens: usage.cached_tokens.or(read),
            ..usage
        }
    }
}

/// The outgoing parts of one chunk.
struct Parts<'a> {
    chunk: &'a Bytes,
    replacement: Option<&'a Bytes>,
    parts: Vec<Bytes>,
    /// Bytes of the chunk that are in the parts, or dropped.
    n_done: usize,
}

impl Parts<'_> {
    /// A model's value begins at `at`: its replacement goes out, whatever follows.
    fn begin_model(&mut self, at: usize) {
        if let Some(replacement) = self.replacement {
            self.keep(self.n_done..at);
            self.parts.push(replacement.clone());
            self.n_done = at;
        }
    }

    /// The value ended before `at`.
    fn end_model(&mut self, at: usize) {
        if self.replacement.is_some() {
            self.n_done = at;
        }
    }

    fn finish(mut self, swallows: bool) -> Vec<Bytes> {
        if !(swallows && self.replacement.is_some()) {
            self.keep(self.n_done..self.chunk.len());
        }
        self.parts
    }

    fn keep(&mut self, range: Range<usize>) {
        if !range.is_empty() {
            self.parts.push(self.chunk.slice(range));
        }
    }
}
