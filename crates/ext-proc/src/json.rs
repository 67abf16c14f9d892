//! Incremental JSON lexer: takes bytes as they arrive, returns events, checks the whole grammar (RFC 8259).
//!
//! ```text
//! Value ─► String │ Number │ Literal ─► AfterValue ─► (',' Key ─► Colon ─► Value) │ close ─► AfterValue
//! ```
//! It keeps no text: the content of a string is borrowed from the chunk, escapes come as single characters. It does not
//! know what the document means.

mod whole;
mod text;

pub(crate) use self::text::plain_prefix;
use self::text::unescaped;

/// Deepest nesting of arrays and objects (serde_json's `recursion_limit` default).
pub(crate) const MAX_DEPTH: u32 = 128;

/// Reason why a text is not JSON, or not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JsonError {
    Syntax {
        /// Offset of the first byte that is not allowed.
        offset: usize,
        problem: &'static str,
    },
    Depth {
        offset: usize,
    },
}

/// An event of the document. Text between a start and an end belongs to that string or key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Event<'a> {
    Open(Container),
    Close(Container),
    KeyStart,
    KeyEnd,
    /// `at` is the offset of the opening quote in the body.
    StringStart {
        at: usize,
    },
    /// `end` is the offset after the closing quote.
    StringEnd {
        end: usize,
    },
    /// Part of the current string or key, without escapes.
    Text(&'a [u8]),
    /// One unescaped character of the current string or key; a lone surrogate is U+FFFD.
    Char(char),
    Number(Number),
    Literal(Literal),
}

/// The properties of a number that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Number {
    /// The value, if it is an integer of 32 bits without sign, fraction or exponent.
    pub(crate) value: Option<u32>,
    /// FNV-1a hash of the digits and signs: equal for numbers that are written in the same way.
    pub(crate) fingerprint: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Literal {
    True,
    False,
    Null,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Container {
    Array,
    Object,
}

#[derive(Debug)]
pub(crate) struct Lexer {
    state: State,
    /// One bit per open container, the innermost lowest: 1 means object.
    containers: u128,
    depth: u32,
    /// Offset of the next byte in the body.
    offset: usize,
    /// Offset of the first byte of the last value that began.
    value_start: usize,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Value,
    /// After `[`: a value or `]`.
    FirstElement,
    /// After `{`: a key or `}`.
    FirstKey,
    /// After `,` in an object.
    Key,
    Colon,
    AfterValue,
    Str(Owner),
    Escape(Owner),
    Unicode(Owner, Unicode),
    /// After a high surrogate; its other half may follow.
    Surrogate(Owner, u16),
    /// After a high surrogate and a backslash.
    SurrogateEscape(Owner, u16),
    Number(NumberPart, Number),
    /// In a literal, before these bytes.
    Literal(&'static [u8], Literal),
}

/// Role of a string.
#[derive(Clone, Copy, Debug)]
enum Owner {
    Key,
    Value,
}

#[derive(Clone, Copy, Debug)]
struct Unicode {
    n_digits: u8,
    code: u16,
    /// The high surrogate before this escape.
    high: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum NumberPart {
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    ExponentMark,
    ExponentSign,
    Exponent,
}

impl Event<'_> {
    /// Change of the depth: 1 if the event opens an object or an array, -1 if it closes one.
    pub(crate) fn depth_change(&self) -> i32 {
        match self {
            Self::Open(_) => 1,
            Self::Close(_) => -1,
            Self::KeyStart
            | Self::KeyEnd
            | Self::StringStart { .. }
            | Self::StringEnd { .. }
            | Self::Text(_)
            | Self::Char(_)
            | Self::Number(_)
            | Self::Literal(_) => 0,
        }
    }
}

impl Lexer {
    pub(crate) fn new() -> Self {
        Self::starting_at(0)
    }

    /// A lexer for a value that begins at `offset` of the body.
    pub(crate) fn starting_at(offset: usize) -> Self {
        Self { state: State::Value, containers: 0, depth: 0, offset, value_start: offset }
    }

    /// Offset of the next byte.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// Offset of the first byte of the last value that began.
    pub(crate) fn value_start(&self) -> usize {
        self.value_start
    }

    /// The next event in `chunk`, which is shortened by the bytes that were read; `None` at its end.
    ///
    /// # Errors
    /// If a byte is not allowed by JSON at its place.
    pub(crate) fn next<'a>(&mut self, chunk: &mut &'a [u8]) -> Result<Option<Event<'a>>, JsonError> {
        while let Some(&byte) = chunk.first() {
            let event = match self.state {
                State::Str(owner) => self.string(owner, chunk)?,
                State::Surrogate(owner, high) => self.surrogate(owner, high, byte, chunk),
                State::Number(part, number) => self.number(part, number, byte, chunk)?,
                State::Escape(owner) => {
                    self.take(chunk);
                    self.escape(owner, byte)?
                }
                State::SurrogateEscape(owner, high) => self.surrogate_escape(owner, high, byte, chunk),
                State::Unicode(owner, unicode) => {
                    self.take(chunk);
                    self.unicode(owner, unicode, byte)?
                }
                State::Literal(rest, literal) => {
                    self.take(chunk);
                    self.literal(rest, literal, byte)?
                }
                State::Value
                | State::FirstElement
                | State::FirstKey
                | State::Key
                | State::Colon
                | State::AfterValue => {
                    self.take(chunk);
                    if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') { None } else { self.structure(byte)? }
                }
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    /// Checks the end of the document.
    ///
    /// # Errors
    /// If the document is not complete.
    pub(crate) fn finish(&self) -> Result<(), JsonError> {
        let complete = match self.state {
            State::AfterValue => self.depth == 0,
            State::Number(part, _) => self.depth == 0 && part.may_end(),
            State::Value
            | State::FirstElement
            | State::FirstKey
            | State::Key
            | State::Colon
            | State::Str(_)
            | State::Escape(_)
            | State::Unicode(..)
            | State::Surrogate(..)
            | State::SurrogateEscape(..)
            | State::Literal(..) => false,
        };
        if complete {
            return Ok(());
        }
        Err(JsonError::Syntax { offset: self.offset, problem: "the document ends too early" })
    }

    fn take(&mut self, chunk: &mut &[u8]) {
        *chunk = &chunk[1..];
        self.offset += 1;
    }

    /// An error at the byte that was read last.
    fn fault(&self, problem: &'static str) -> JsonError {
        JsonError::Syntax { offset: self.offset.saturating_sub(1), problem }
    }

    fn structure(&mut self, byte: u8) -> Result<Option<Event<'static>>, JsonError> {
        match (self.state, byte) {
            (State::FirstElement, b']') => self.close(Container::Array),
            (State::Value | State::FirstElement, _) => self.value(byte),
            (State::FirstKey, b'}') => self.close(Container::Object),
            (State::FirstKey | State::Key, b'"') => {
                self.state = State::Str(Owner::Key);
                Ok(Some(Event::KeyStart))
            }
            (State::FirstKey | State::Key, _) => Err(self.fault("expected a key in double quotes")),
            (State::Colon, b':') => {
                self.state = State::Value;
                Ok(None)
            }
            (State::Colon, _) => Err(self.fault("expected `:`")),
            (_, b',') if self.depth > 0 => {
                self.state = match self.innermost() {
                    Container::Array => State::Value,
                    Container::Object => State::Key,
                };
                Ok(None)
            }
            (_, b']') if self.depth > 0 => self.close(Container::Array),
            (_, b'}') if self.depth > 0 => self.close(Container::Object),
            _ if self.depth == 0 => Err(self.fault("more than one document")),
            _ => Err(self.fault("expected `,` or a closing bracket")),
        }
    }

    fn value(&mut self, byte: u8) -> Result<Option<Event<'static>>, JsonError> {
        self.value_start = self.offset - 1;
        self.state = match byte {
            b'{' => return self.open(Container::Object),
            b'[' => return self.open(Container::Array),
            b'"' => {
                self.state = State::Str(Owner::Value);
                return Ok(Some(Event::StringStart { at: self.offset - 1 }));
            }
            b'-' => State::Number(NumberPart::Minus, Number::new(None, byte)),
            b'0' => State::Number(NumberPart::Zero, Number::new(Some(0), byte)),
            b'1'..=b'9' => {
                State::Number(NumberPart::Integer, Number::new(Some(u32::from(byte - b'0')), byte))
            }
            b't' => State::Literal(b"rue", Literal::True),
            b'f' => State::Literal(b"alse", Literal::False),
            b'n' => State::Literal(b"ull", Literal::Null),
            _ => return Err(self.fault("expected a value")),
        };
        Ok(None)
    }

    fn open(&mut self, container: Container) -> Result<Option<Event<'static>>, JsonError> {
        if self.depth == MAX_DEPTH {
            return Err(JsonError::Depth { offset: self.offset - 1 });
        }
        Ok(Some(self.enter(container)))
    }

    fn enter(&mut self, container: Container) -> Event<'static> {
        self.depth += 1;
        (self.containers, self.state) = match container {
            Container::Array => (self.containers << 1, State::FirstElement),
            Container::Object => (self.containers << 1 | 1, State::FirstKey),
        };
        Event::Open(container)
    }

    fn close(&mut self, container: Container) -> Result<Option<Event<'static>>, JsonError> {
        if self.innermost() != container {
            return Err(self.fault("mismatched closing bracket"));
        }
        Ok(Some(self.leave()))
    }

    fn leave(&mut self) -> Event<'static> {
        let container = self.innermost();
        self.depth -= 1;
        self.containers >>= 1;
        self.state = State::AfterValue;
        Event::Close(container)
    }

    fn innermost(&self) -> Container {
        if self.containers & 1 == 1 { Container::Object } else { Container::Array }
    }

    fn string<'a>(&mut self, owner: Owner, chunk: &mut &'a [u8]) -> Result<Option<Event<'a>>, JsonError> {
        match chunk[0] {
            b'"' => {
                self.take(chunk);
                Ok(Some(self.end_string(owner)))
            }
            b'\\' => {
                self.take(chunk);
                self.state = State::Escape(owner);
                Ok(None)
            }
            0x00..0x20 => {
                self.take(chunk);
                Err(self.fault("a control character inside a string must be escaped"))
            }
            _ => {
                let (text, rest) = chunk.split_at(plain_prefix(chunk));
                (self.offset, *chunk) = (self.offset + text.len(), rest);
                Ok(Some(Event::Text(text)))
            }
        }
    }

    fn end_string(&mut self, owner: Owner) -> Event<'static> {
        match owner {
            Owner::Key => {
                self.state = State::Colon;
                Event::KeyEnd
            }
            Owner::Value => {
                self.state = State::AfterValue;
                Event::StringEnd { end: self.offset }
            }
        }
    }

    fn escape(&mut self, owner: Owner, byte: u8) -> Result<Option<Event<'static>>, JsonError> {
        if byte == b'u' {
            self.state = State::Unicode(owner, Unicode { n_digits: 0, code: 0, high: None });
            return Ok(None);
        }
        let Some(char) = unescaped(byte) else { return Err(self.fault("unknown escape")) };
        self.state = State::Str(owner);
        Ok(Some(Event::Char(char.into())))
    }

    fn unicode(
        &mut self,
        owner: Owner,
        unicode: Unicode,
        byte: u8,
    ) -> Result<Option<Event<'static>>, JsonError> {
        let Some(digit) = char::from(byte).to_digit(16).and_then(|digit| u16::try_from(digit).ok()) else {
            return Err(self.fault("expected four hexadecimal digits"));
        };
        let Unicode { n_digits, code, high } = unicode;
        let code = code << 4 | digit;
        if n_digits < 3 {
            self.state = State::Unicode(owner, Unicode { n_digits: n_digits + 1, code, high });
            return Ok(None);
        }
        self.state = State::Str(owner);
        let char = match (high, code) {
            (Some(high), 0xDC00..=0xDFFF) => {
                let code = 0x10000 + (u32::from(high - 0xD800) << 10) + u32::from(code - 0xDC00);
                char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            (_, 0xD800..=0xDBFF) => {
                self.state = State::Surrogate(owner, code);
                return Ok(high.map(|_| Event::Char(char::REPLACEMENT_CHARACTER)));
            }
            (_, code) => char::from_u32(u32::from(code)).unwrap_or(char::REPLACEMENT_CHARACTER),
        };
        Ok(Some(Event::Char(char)))
    }

    fn surrogate(&mut self, owner: Owner, high: u16, byte: u8, chunk: &mut &[u8]) -> Option<Event<'static>> {
        if byte == b'\\' {
            self.take(chunk);
            self.state = State::SurrogateEscape(owner, high);
            return None;
        }
        self.state = State::Str(owner);
        Some(Event::Char(char::REPLACEMENT_CHARACTER))
    }

    fn surrogate_escape(
        &mut self,
        owner: Owner,
        high: u16,
        byte: u8,
        chunk: &mut &[u8],
    ) -> Option<Event<'static>> {
        if byte == b'u' {
            self.take(chunk);
            self.state = State::Unicode(owner, Unicode { n_digits: 0, code: 0, high: Some(high) });
            return None;
        }
        self.state = State::Escape(owner);
        Some(Event::Char(char::REPLACEMENT_CHARACTER))
    }

    fn number(
        &mut self,
        part: NumberPart,
        number: Number,
        byte: u8,
        chunk: &mut &[u8],
    ) -> Result<Option<Event<'static>>, JsonError> {
        use NumberPart::{Exponent, ExponentMark, ExponentSign, Fraction, Integer, Minus, Point, Zero};
        let next = match (part, byte) {
            (Minus, b'0') => (Zero, None),
            (Minus, b'1'..=b'9') => (Integer, None),
            (Integer, b'0'..=b'9') => {
                let digit = u32::from(byte - b'0');
                (Integer, number.value.and_then(|value| value.checked_mul(10)?.checked_add(digit)))
            }
            (Zero | Integer, b'.') => (Point, None),
            (Point | Fraction, b'0'..=b'9') => (Fraction, None),
            (Zero | Integer | Fraction, b'e' | b'E') => (ExponentMark, None),
            (ExponentMark, b'+' | b'-') => (ExponentSign, None),
            (ExponentMark | ExponentSign | Exponent, b'0'..=b'9') => (Exponent, None),
            _ if part.may_end() => {
                self.state = State::AfterValue;
                return Ok(Some(Event::Number(number)));
            }
            _ => {
                self.offset += 1;
                return Err(self.fault("malformed number"));
            }
        };
        self.take(chunk);
        let (part, value) = next;
        self.state = State::Number(part, Number { value, ..number.extended(byte) });
        Ok(None)
    }

    fn literal(
        &mut self,
        rest: &'static [u8],
        literal: Literal,
        byte: u8,
    ) -> Result<Option<Event<'static>>, JsonError> {
        match rest {
            [expected, rest @ ..] if *expected == byte => {
                if rest.is_empty() {
                    self.state = State::AfterValue;
                    return Ok(Some(Event::Literal(literal)));
                }
                self.state = State::Literal(rest, literal);
                Ok(None)
            }
            _ => Err(self.fault("expected a value")),
        }
    }
}

impl Number {
    /// Offset basis and prime of FNV-1a with 64 bits.
    const FNV: (u64, u64) = (0xcbf2_9ce4_8422_2325, 0x0100_0000_01b3);

    fn new(value: Option<u32>, first: u8) -> Self {
        Self { value, fingerprint: Self::FNV.0 }.extended(first)
    }

    fn extended(self, byte: u8) -> Self {
        let fingerprint = (self.fingerprint ^ u64::from(byte)).wrapping_mul(Self::FNV.1);
        Self { fingerprint, ..self }
    }
}

impl NumberPart {
    fn may_end(self) -> bool {
        matches!(self, Self::Zero | Self::Integer | Self::Fraction | Self::Exponent)
    }
}
