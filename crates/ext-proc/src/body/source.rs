//! A complete body, read again by position. The first pass has checked its grammar.

use std::ops::Range;

use bytes::Bytes;

use super::text::JsonText;
use crate::json::{Event, Lexer, Literal, plain_prefix};

/// Longest key or short text that is compared, in bytes; the longest known one is `continue_final_message`.
pub(super) const MAX_WORD: usize = 24;

/// Position of a value in the body.
pub(super) type Span = Range<usize>;

/// The chunks of a body, indexed by offset.
#[derive(Debug)]
pub(super) struct BodySource<'a> {
    chunks: &'a [Bytes],
    /// Offset of each chunk.
    starts: Vec<usize>,
}

/// The kind of a value, from its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ValueKind {
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

/// A walk through a container, which finds the values by their quotes, brackets, commas and colons. The grammar was checked
/// before, and most values are read on their own afterwards.
struct Walker<'a> {
    source: &'a BodySource<'a>,
    /// Offset of the next byte in the body.
    offset: usize,
    token: Token,
    /// Number of open containers.
    depth: usize,
    /// Offsets at which the outermost ones begin.
    starts: [usize; 3],
    /// True if it is an object, for the container and for the value right inside it.
    are_objects: [bool; 2],
    /// The last key of the container, and of the value right inside it.
    keys: [Word; 2],
    /// True if a string that begins here is a key.
    takes_key: bool,
}

/// The part of the document that the next byte belongs to.
#[derive(Clone, Copy)]
enum Token {
    Punctuation,
    Text {
        start: usize,
        is_key: bool,
        escapes: Escapes,
    },
    /// A number or a literal.
    Scalar {
        start: usize,
    },
}

/// The backslashes in a string so far.
#[derive(Clone, Copy, PartialEq)]
enum Escapes {
    Absent,
    Seen,
    /// The last byte was one.
    Open,
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

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

// === impl ValueKind ===

impl ValueKind {
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

// === impl Walker ===

impl<'a> Walker<'a> {
    /// A walk through the container that begins at `offset`.
    fn new(source: &'a BodySource<'a>, offset: usize) -> Self {
        Self {
            source,
            offset,
            token: Token::Punctuation,
            depth: 0,
            starts: [0; 3],
            are_objects: [false; 2],
            keys: [Word::default(); 2],
            takes_key: false,
        }
    }

    /// Finds the value that ends next in `piece`, which is shortened by what was passed; `None` when it is used up.
    fn next_value(&mut self, piece: &mut &[u8]) -> Option<Span> {
        while let Some(&byte) = piece.first() {
            let start = match self.token {
                Token::Text { start, is_key, escapes } => self.text(piece, (start, is_key, escapes)),
                Token::Scalar { start } => match byte {
                    b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r' => {
                        self.token = Token::Punctuation;
                        Some(start)
                    }
                    _ => {
                        self.pass(piece, 1);
                        None
                    }
                },
                Token::Punctuation => {
                    self.pass(piece, 1);
                    self.punctuation(byte)
                }
            };
            if let Some(start) = start {
                return Some(start..self.offset);
            }
        }
        None
    }

    fn pass(&mut self, piece: &mut &[u8], n_bytes: usize) {
        *piece = &piece[n_bytes..];
        self.offset += n_bytes;
    }

    /// Takes a byte between values, which was passed: begins one, or ends a container and returns its start.
    fn punctuation(&mut self, byte: u8) -> Option<usize> {
        let start = self.offset - 1;
        match byte {
            b'{' | b'[' => {
                self.takes_key = byte == b'{';
                if let Some(begun) = self.starts.get_mut(self.depth) {
                    *begun = start;
                }
                if let Some(key) = self.keys.get_mut(self.depth) {
                    key.clear();
                    self.are_objects[self.depth] = self.takes_key;
                }
                self.depth += 1;
            }
            b'}' | b']' => {
                self.depth -= 1;
                return Some(self.starts.get(self.depth).copied().unwrap_or_default());
            }
            b',' => self.takes_key = self.are_objects.get(self.depth - 1).copied().unwrap_or_default(),
            b':' => self.takes_key = false,
            b' ' | b'\t' | b'\n' | b'\r' => {}
            b'"' => {
                let is_key = self.takes_key && self.depth <= self.keys.len();
                if is_key {
                    self.keys[self.depth - 1].clear();
                }
                self.token = Token::Text { start, is_key, escapes: Escapes::Absent };
            }
            _ => self.token = Token::Scalar { start },
        }
        None
    }

    /// Passes over some of a string; its start if it is a value and ends here.
    fn text(&mut self, piece: &mut &[u8], (start, is_key, escapes): (usize, bool, Escapes)) -> Option<usize> {
        if escapes == Escapes::Open {
            self.pass(piece, 1);
            self.token = Token::Text { start, is_key, escapes: Escapes::Seen };
            return None;
        }
        let (plain, rest) = piece.split_at(plain_prefix(piece));
        if is_key {
            self.keys[self.depth - 1].push(plain);
        }
        self.pass(piece, plain.len());
        let last = rest.first()?;
        self.pass(piece, 1);
        if *last == b'\\' {
            self.token = Token::Text { start, is_key, escapes: Escapes::Open };
            return None;
        }
        self.token = Token::Punctuation;
        if is_key && escapes == Escapes::Seen {
            self.keys[self.depth - 1] = self.source.word(&(start..self.offset));
        }
        (!is_key).then_some(start)
    }
}

// === impl BodySource ===

impl<'a> BodySource<'a> {
    pub(super) fn new(chunks: &'a [Bytes]) -> Self {
        let mut n_bytes = 0;
        let starts = chunks.iter().map(|chunk| {
            n_bytes += chunk.len();
            n_bytes - chunk.len()
        });
        Self { chunks, starts: starts.collect() }
    }

    /// The kind of the value at `span`.
    pub(super) fn kind(&self, span: &Span) -> ValueKind {
        ValueKind::of(self.pieces(span).next().and_then(|piece| piece.first()).copied().unwrap_or_default())
    }

    /// Calls `each` with every value directly in the container at `span`; the fields of a value that is an object come
    /// before it.
    pub(super) fn walk(&self, span: &Span, mut each: impl FnMut(Inner<'_>) -> Walk) {
        let mut walker = Walker::new(self, span.start);
        for mut piece in self.pieces(span) {
            while let Some(span) = walker.next_value(&mut piece) {
                let [key, inner_key] = walker.keys.each_ref().map(Word::as_bytes);
                let went = match walker.depth {
                    1 => each(Inner::Value(key, span)),
                    2 if !inner_key.is_empty() => each(Inner::Field(inner_key, span)),
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
        if self.kind(span) == ValueKind::Object {
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
        if self.kind(span) != ValueKind::Text {
            return;
        }
        let mut lexer = Lexer::starting_at(span.start);
        for mut piece in self.pieces(span) {
            loop {
                if lexer.read_text(&mut piece, &mut each) {
                    return;
                }
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
