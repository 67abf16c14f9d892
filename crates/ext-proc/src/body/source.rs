//! A complete body, read again by position. The first pass has checked its grammar.

use std::ops::Range;

use bytes::Bytes;

use super::text::JsonText;
use crate::json::{Event, Lexer, Literal};

/// Longest key or short text that is compared, in bytes; the longest known one is `continue_final_message`.
pub(super) const MAX_WORD: usize = 24;

/// Position of a value in the body.
pub(super) type Span = Range<usize>;

/// The chunks of a body, indexed by offset.
#[derive(Debug)]
pub(super) struct Source<'a> {
    chunks: &'a [Bytes],
    /// Offset of each chunk.
    starts: Vec<usize>,
}

/// The kind of a value, from its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Array,
    Object,
    Number,
    Literal(Literal),
}

/// A key or another short text. Text longer than [`MAX_WORD`] is cut to one byte more, so that it equals no known word.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Word {
    bytes: [u8; MAX_WORD + 1],
    len: usize,
}

/// A value in a container.
#[derive(Debug)]
pub(super) enum Inner<'w> {
    /// A field of an object that is directly in the container; the [`Self::Value`] of that object follows its last
    /// field.
    Field(&'w [u8], Span),
    /// A value directly in the container, with its key if the container is an object.
    Value(&'w [u8], Span),
}

/// Result of a visit: the walk continues, or stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Walk {
    On,
    Stop,
}

// === impl Word ===

impl Word {
    pub(super) fn clear(&mut self) {
        self.len = 0;
    }

    pub(super) fn push(&mut self, text: &[u8]) {
        let n_kept = text.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..self.len + n_kept].copy_from_slice(&text[..n_kept]);
        self.len += n_kept;
    }

    pub(super) fn push_char(&mut self, char: char) {
        self.push(char.encode_utf8(&mut [0; 4]).as_bytes());
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

// === impl Kind ===

impl Kind {
    fn of(first: u8) -> Self {
        match first {
            b'"' => Self::Text,
            b'[' => Self::Array,
            b'{' => Self::Object,
            b't' => Self::Literal(Literal::True),
            b'f' => Self::Literal(Literal::False),
            b'n' => Self::Literal(Literal::Null),
            _ => Self::Number,
        }
    }
}

// === impl Source ===

impl<'a> Source<'a> {
    pub(super) fn new(chunks: &'a [Bytes]) -> Self {
        let mut n_bytes = 0;
        let starts = chunks.iter().map(|chunk| {
            n_bytes += chunk.len();
            n_bytes - chunk.len()
        });
        Self { chunks, starts: starts.collect() }
    }

    /// The kind of the value at `span`.
    pub(super) fn kind(&self, span: &Span) -> Kind {
        Kind::of(self.pieces(span).next().and_then(|piece| piece.first()).copied().unwrap_or_default())
    }

    /// Calls `each` with every value directly in the container at `span`; the fields of a value that is an object come
    /// before it.
    pub(super) fn walk(&self, span: &Span, mut each: impl FnMut(Inner<'_>) -> Walk) {
        let mut lexer = Lexer::starting_at(span.start);
        let (mut depth, mut starts, mut is_key) = (0_usize, [0; 3], false);
        // Current keys of the container and of the value in it.
        let mut keys = [Word::default(); 2];
        for mut piece in self.pieces(span) {
            loop {
                if !is_key {
                    lexer.read_text(&mut piece, |_| {});
                }
                let Ok(Some(event)) = lexer.next(&mut piece) else { break };
                let ended = match event {
                    Event::Open(_) => {
                        if let Some(start) = starts.get_mut(depth) {
                            *start = lexer.value_start();
                        }
                        if let Some(key) = keys.get_mut(depth) {
                            key.clear();
                        }
                        depth += 1;
                        None
                    }
                    Event::Close(_) => {
                        depth -= 1;
                        Some(starts.get(depth).copied().unwrap_or_default())
                    }
                    Event::StringEnd { .. } | Event::Number(_) | Event::Literal(_) => {
                        Some(lexer.value_start())
                    }
                    Event::KeyStart => {
                        is_key = depth <= keys.len();
                        if is_key {
                            keys[depth - 1].clear();
                        }
                        None
                    }
                    Event::KeyEnd => {
                        is_key = false;
                        None
                    }
                    Event::Text(text) if is_key => {
                        keys[depth - 1].push(text);
                        None
                    }
                    Event::Char(char) if is_key => {
                        keys[depth - 1].push_char(char);
                        None
                    }
                    Event::StringStart { .. } | Event::Text(_) | Event::Char(_) => None,
                };
                let Some(start) = ended else { continue };
                let span = start..lexer.offset();
                let went = match depth {
                    1 => each(Inner::Value(keys[0].as_bytes(), span)),
                    2 if !keys[1].as_bytes().is_empty() => each(Inner::Field(keys[1].as_bytes(), span)),
                    _ => Walk::On,
                };
                if went == Walk::Stop {
                    return;
                }
            }
        }
    }

    /// Calls `each` with the fields of the object at `span`, in their order; never if it is not an object.
    pub(super) fn fields(&self, span: &Span, mut each: impl FnMut(&[u8], Span)) {
        if self.kind(span) == Kind::Object {
            self.walk(span, |inner| {
                if let Inner::Value(key, span) = inner {
                    each(key, span);
                }
                Walk::On
            });
        }
    }

    /// Calls `each` with the pieces of the string at `span`, without escapes; never if it is not a string.
    pub(super) fn text(&self, span: &Span, mut each: impl FnMut(&[u8])) {
        if self.kind(span) != Kind::Text {
            return;
        }
        let mut lexer = Lexer::starting_at(span.start);
        for mut piece in self.pieces(span) {
            loop {
                lexer.read_text(&mut piece, &mut each);
                match lexer.next(&mut piece) {
                    Ok(Some(Event::Text(text))) => each(text),
                    Ok(Some(Event::Char(char))) => each(char.encode_utf8(&mut [0; 4]).as_bytes()),
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => break,
                }
            }
        }
    }

    /// The short string at `span`.
    pub(super) fn word(&self, span: &Span) -> Word {
        let mut word = Word::default();
        self.text(span, |text| word.push(text));
        word
    }

    /// Calls `each` with the pieces of the value at `span`, written as Python writes JSON.
    pub(super) fn json(&self, span: &Span, mut each: impl FnMut(&[u8])) {
        let mut writer = JsonText::default();
        self.events(span, |event| writer.write(event, &mut each));
    }

    pub(super) fn events(&self, span: &Span, mut each: impl FnMut(Event<'_>)) {
        let mut lexer = Lexer::starting_at(span.start);
        // The space ends a number at the end of the value.
        for mut piece in self.pieces(span).chain([b" ".as_slice()]) {
            while let Ok(Some(event)) = lexer.next(&mut piece) {
                each(event);
            }
        }
    }

    fn pieces(&self, span: &Span) -> impl Iterator<Item = &'a [u8]> {
        let Span { start, end } = *span;
        let first = self.starts.partition_point(|chunk_start| *chunk_start <= start).saturating_sub(1);
        let chunks = self.chunks.iter().zip(&self.starts).skip(first);
        chunks
            .take_while(move |(_, chunk_start)| **chunk_start < end)
            .map(move |(chunk, chunk_start)| {
                let cut = |at: usize| at.saturating_sub(*chunk_start).min(chunk.len());
                &chunk[cut(start)..cut(end)]
            })
            .filter(|piece| !piece.is_empty())
    }
}
