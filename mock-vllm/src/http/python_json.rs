//! Reads JSON like Python's `json.loads` reads the bytes of a body: in five encodings, with or without a byte order
//! mark, with numbers that are not finite, and with Python's messages and places for errors.

use serde_json::{Number, Value};
use std::borrow::Cow;

/// Deepest nesting of a document, which is `serde_json`'s limit; Python's is near 1,000.
const MAX_DEPTH: usize = 127;
/// Replacements for numbers that are not finite, which `serde_json` cannot hold. No parameter of a request is that
/// large.
const NAN: &str = "8e307";
const INFINITY: &str = "9e307";
const NEGATIVE_INFINITY: &str = "-9e307";
/// Smallest value that is read as infinity: between the two replacements.
const LEAST_INFINITY: f64 = 8.5e307;
const LEAST_NAN: f64 = 7.5e307;

/// Reason why a body cannot be read as JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum JsonError {
    /// The bytes are not text, or the nesting is too deep; the web framework says no more.
    Unreadable,
    Syntax(SyntaxError),
}

/// Python's `JSONDecodeError`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) message: &'static str,
    /// Number of characters before the place in the text.
    pub(super) offset: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Utf8,
    Utf16(Endian),
    Utf32(Endian),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Endian {
    Big,
    Little,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Container {
    Array,
    Object,
}

/// Result of beginning a value: it has ended already, or its first part follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begun {
    Whole,
    Inside,
}

/// Reads a text like Python's scanner, and writes it again with replacements.
#[derive(Debug)]
struct Scanner<'a> {
    text: &'a str,
    /// Position in bytes.
    at: usize,
    open: Vec<Container>,
    rewritten: String,
    /// Number of bytes of the text that are in `rewritten`.
    n_copied: usize,
}

/// Reads a body.
///
/// # Errors
/// Fails if `json.loads` would raise an exception.
pub(super) fn loads(body: &[u8]) -> Result<Value, JsonError> {
    // Most bodies are plain JSON: only the others are read a second time.
    if let Ok(value) = serde_json::from_slice(body) {
        return Ok(value);
    }
    let text = decode(body).ok_or(JsonError::Unreadable)?;
    let finite = Scanner::new(&text).finish()?;
    // What still fails is half of a surrogate pair.
    serde_json::from_str(&finite).map_err(|_not_unicode| JsonError::Unreadable)
}

/// Returns the number that Python reads there, with replacements undone.
pub(super) fn float(number: &Number) -> Option<f64> {
    let value = number.as_f64()?;
    Some(match value.abs() {
        magnitude if magnitude >= LEAST_INFINITY => f64::INFINITY.copysign(value),
        magnitude if magnitude >= LEAST_NAN => f64::NAN,
        _ => value,
    })
}

/// Writes a float like Python.
pub(super) fn float_repr(value: f64) -> String {
    if value.is_nan() { "nan".to_owned() } else { format!("{value:?}") }
}

/// Decodes the bytes; `None` if they are not text in their encoding.
fn decode(body: &[u8]) -> Option<Cow<'_, str>> {
    let (encoding, bytes) = detect_encoding(body);
    match encoding {
        Encoding::Utf8 => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Encoding::Utf16(endian) => {
            let (units, rest) = bytes.as_chunks::<2>();
            let units = units.iter().map(|unit| match endian {
                Endian::Big => u16::from_be_bytes(*unit),
                Endian::Little => u16::from_le_bytes(*unit),
            });
            let text: Result<String, _> = char::decode_utf16(units).collect();
            text.ok().filter(|_| rest.is_empty()).map(Cow::Owned)
        }
        Encoding::Utf32(endian) => {
            let (units, rest) = bytes.as_chunks::<4>();
            let characters = units.iter().map(|unit| {
                char::from_u32(match endian {
                    Endian::Big => u32::from_be_bytes(*unit),
                    Endian::Little => u32::from_le_bytes(*unit),
                })
            });
            let text: Option<String> = characters.collect();
            text.filter(|_| rest.is_empty()).map(Cow::Owned)
        }
    }
}

/// Finds the encoding like Python's `json.detect_encoding`, and returns the bytes after the byte order mark. Text
/// begins with an ASCII character, so that the places of zeros show the encoding.
fn detect_encoding(body: &[u8]) -> (Encoding, &[u8]) {
    let marks: [(&[u8], Encoding); 5] = [
        (b"\x00\x00\xfe\xff", Encoding::Utf32(Endian::Big)),
        (b"\xff\xfe\x00\x00", Encoding::Utf32(Endian::Little)),
        (b"\xfe\xff", Encoding::Utf16(Endian::Big)),
        (b"\xff\xfe", Encoding::Utf16(Endian::Little)),
        (b"\xef\xbb\xbf", Encoding::Utf8),
    ];
    for (mark, encoding) in marks {
        if let Some(bytes) = body.strip_prefix(mark) {
            return (encoding, bytes);
        }
    }
    let encoding = match body {
        [0, 0, _, _, ..] => Encoding::Utf32(Endian::Big),
        [0, _, _, _, ..] | [0, _] => Encoding::Utf16(Endian::Big),
        [_, 0, 0, 0, ..] => Encoding::Utf32(Endian::Little),
        [_, 0, _, _, ..] | [_, 0] => Encoding::Utf16(Endian::Little),
        _ => Encoding::Utf8,
    };
    (encoding, body)
}

// === impl Scanner ===

impl<'a> Scanner<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, at: 0, open: Vec::new(), rewritten: String::with_capacity(text.len()), n_copied: 0 }
    }

    /// Returns the whole text with its replacements.
    fn finish(mut self) -> Result<String, JsonError> {
        self.skip_whitespace();
        loop {
            if self.begin_value()? == Begun::Whole && !self.end_value()? {
                break;
            }
        }
        self.skip_whitespace();
        if self.at < self.text.len() {
            return Err(self.broken("Extra data", self.at));
        }
        self.rewritten.push_str(&self.text[self.n_copied..]);
        Ok(self.rewritten)
    }

    fn begin_value(&mut self) -> Result<Begun, JsonError> {
        match self.peek() {
            Some(b'{') => self.open(Container::Object, b'}'),
            Some(b'[') => self.open(Container::Array, b']'),
            Some(b'"') => self.string().map(|()| Begun::Whole),
            Some(_) | None => self.scalar().map(|()| Begun::Whole),
        }
    }

    fn open(&mut self, container: Container, end: u8) -> Result<Begun, JsonError> {
        self.at += 1;
        self.skip_whitespace();
        if self.peek() == Some(end) {
            self.at += 1;
            return Ok(Begun::Whole);
        }
        self.open.push(container);
        if self.open.len() > MAX_DEPTH {
            return Err(JsonError::Unreadable);
        }
        if container == Container::Object {
            self.key()?;
        }
        Ok(Begun::Inside)
    }

    /// Returns whether another value follows, and moves to it.
    fn end_value(&mut self) -> Result<bool, JsonError> {
        while let Some(container) = self.open.last().copied() {
            self.skip_whitespace();
            match (self.peek(), container) {
                (Some(b']'), Container::Array) | (Some(b'}'), Container::Object) => {
                    self.at += 1;
                    self.open.pop();
                }
                (Some(b','), Container::Array) => {
                    self.at += 1;
                    self.skip_whitespace();
                    return Ok(true);
                }
                (Some(b','), Container::Object) => {
                    self.at += 1;
                    self.skip_whitespace();
                    return self.key().map(|()| true);
                }
                (Some(_) | None, _) => return Err(self.broken("Expecting ',' delimiter", self.at)),
            }
        }
        Ok(false)
    }

    /// Reads a name and what is between it and its value.
    fn key(&mut self) -> Result<(), JsonError> {
        if self.peek() != Some(b'"') {
            return Err(self.broken("Expecting property name enclosed in double quotes", self.at));
        }
        self.string()?;
        self.skip_whitespace();
        if self.peek() != Some(b':') {
            return Err(self.broken("Expecting ':' delimiter", self.at));
        }
        self.at += 1;
        self.skip_whitespace();
        Ok(())
    }

    fn string(&mut self) -> Result<(), JsonError> {
        let begin = self.at;
        self.at += 1;
        loop {
            let Some(byte) = self.peek() else {
                return Err(self.broken("Unterminated string starting at", begin));
            };
            match byte {
                b'"' => {
                    self.at += 1;
                    return Ok(());
                }
                b'\\' => self.escape(begin)?,
                0..=0x1f => return Err(self.broken("Invalid control character at", self.at)),
                _ => self.at += 1,
            }
        }
    }

    fn escape(&mut self, string_begin: usize) -> Result<(), JsonError> {
        let rest = &self.text.as_bytes()[self.at + 1..];
        match rest {
            [] => Err(self.broken("Unterminated string starting at", string_begin)),
            [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => {
                self.at += 2;
                Ok(())
            }
            [b'u', digits @ ..] => match digits.first_chunk::<4>() {
                // Python needs one character more, at least the closing quote.
                Some(hex) if hex.iter().all(u8::is_ascii_hexdigit) && digits.len() > hex.len() => {
                    self.at += 2 + hex.len();
                    Ok(())
                }
                Some(_) | None => Err(self.broken("Invalid \\uXXXX escape", self.at + 1)),
            },
            _ => Err(self.broken("Invalid \\escape", self.at)),
        }
    }

    /// Reads a number or a constant.
    fn scalar(&mut self) -> Result<(), JsonError> {
        let rest = &self.text[self.at..];
        let constants = [
            ("null", None),
            ("true", None),
            ("false", None),
            ("NaN", Some(NAN)),
            ("Infinity", Some(INFINITY)),
            ("-Infinity", Some(NEGATIVE_INFINITY)),
        ];
        let constant = constants.into_iter().find(|(name, _)| rest.starts_with(name));
        let (len, stand_in) = match constant {
            Some((name, stand_in)) => (name.len(), stand_in),
            None => {
                let len = number_len(rest.as_bytes());
                let value: f64 = rest[..len].parse().map_err(|_| self.broken("Expecting value", self.at))?;
                let is_float = rest[..len].contains(['.', 'e', 'E']);
                let stand_in = if value > 0.0 { INFINITY } else { NEGATIVE_INFINITY };
                (len, (is_float && value.is_infinite()).then_some(stand_in))
            }
        };
        if let Some(stand_in) = stand_in {
            self.rewritten.push_str(&self.text[self.n_copied..self.at]);
            self.rewritten.push_str(stand_in);
            self.n_copied = self.at + len;
        }
        self.at += len;
        Ok(())
    }

    fn skip_whitespace(&mut self) {
        let rest = self.text[self.at..].trim_start_matches([' ', '\t', '\n', '\r']);
        self.at = self.text.len() - rest.len();
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn broken(&self, message: &'static str, at: usize) -> JsonError {
        JsonError::Syntax(SyntaxError { message, offset: self.text[..at].chars().count() })
    }
}

/// Returns the length of the number at the beginning; 0 without one.
fn number_len(bytes: &[u8]) -> usize {
    let n_digits = |from: usize| bytes[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let mut len = usize::from(bytes.first() == Some(&b'-'));
    match bytes.get(len) {
        Some(b'0') => len += 1,
        Some(b'1'..=b'9') => len += n_digits(len),
        Some(_) | None => return 0,
    }
    if bytes.get(len) == Some(&b'.') && n_digits(len + 1) > 0 {
        len += 1 + n_digits(len + 1);
    }
    if let Some(b'e' | b'E') = bytes.get(len) {
        let sign = usize::from(matches!(bytes.get(len + 1), Some(b'+' | b'-')));
        let digits = n_digits((len + 1 + sign).min(bytes.len()));
        len += if digits > 0 { 1 + sign + digits } else { 0 };
    }
    len
}

#[cfg(test)]
mod tests {
    use super::{JsonError, SyntaxError, float, loads};
    use serde_json::{Value, json};

    #[track_caller]
    fn check_broken(body: &str, message: &'static str, offset: usize) {
        assert_eq!(loads(body.as_bytes()), Err(JsonError::Syntax(SyntaxError { message, offset })), "{body}");
    }

    #[test]
    fn places_and_words_are_pythons() {
        check_broken("", "Expecting value", 0);
        check_broken(" x", "Expecting value", 1);
        check_broken("-", "Expecting value", 0);
        check_broken("01", "Extra data", 1);
        check_broken("1.", "Extra data", 1);
        check_broken("1e+", "Extra data", 1);
        check_broken("[1,]", "Expecting value", 3);
        check_broken("[1", "Expecting ',' delimiter", 2);
        check_broken("{\"a\": 1,}", "Expecting property name enclosed in double quotes", 8);
        check_broken("{\"a\"", "Expecting ':' delimiter", 4);
        check_broken("{\"é\": tru}", "Expecting value", 6);
        check_broken("{\"a\": \"x\ny\"}", "Invalid control character at", 8);
        check_broken(r#"["\x"]"#, r"Invalid \escape", 2);
        check_broken(r#"["\u12x4"]"#, r"Invalid \uXXXX escape", 3);
        check_broken(r#"["\u1234"#, r"Invalid \uXXXX escape", 3);
        check_broken(r#"["\"#, "Unterminated string starting at", 1);
    }

    #[test]
    fn numbers_that_are_not_finite_are_read() {
        let floats = |body: &str| -> Vec<f64> {
            let Value::Array(items) = loads(body.as_bytes()).unwrap() else { panic!("an array") };
            items.iter().map(|item| float(item.as_number().unwrap()).unwrap()).collect()
        };
        let read = floats("[NaN, Infinity, -Infinity, 1e400, -1e400, 1e300, 2]");
        assert!(read[0].is_nan());
        let infinite = [f64::INFINITY, f64::NEG_INFINITY];
        assert_eq!(read[1..], [infinite[0], infinite[1], infinite[0], infinite[1], 1e300, 2.0]);
        assert_eq!(loads(br#"{"a": "NaN \" NaN", "b": NaN}"#).unwrap()["a"], json!("NaN \" NaN"));
    }

    #[test]
    fn what_is_no_text_or_too_deep_is_not_read() {
        let deep = |n: usize| [vec![b'['; n], vec![b']'; n]].concat();
        assert!(loads(&deep(127)).is_ok());
        for body in [
            b"\xff".to_vec(),
            b"\xff\xfe{".to_vec(),
            br#"["\ud800"]"#.to_vec(),
            deep(128),
            vec![b'['; 1 << 20],
        ] {
            assert_eq!(loads(&body), Err(JsonError::Unreadable));
        }
    }
}
