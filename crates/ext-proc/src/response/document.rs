//! A JSON document of a response: finds `model` and `usage` at the top level, and in `response` or `message`, where the
//! events of the Responses and Messages APIs have them.

use std::ops::Range;

use super::{Counts, Parts};
use crate::json::{Container, Event, Lexer};

/// Longest key that is compared, in bytes; the longest known one is `cache_creation_input_tokens`.
const MAX_KEY: usize = 27;
/// Deepest nesting of objects that are read: the document, `response`, `usage` and its details.
const MAX_SCOPES: usize = 4;

#[derive(Debug)]
pub(super) struct Document {
    lexer: Lexer,
    /// True if the grammar was broken: the rest is not read.
    broken: bool,
    /// The open objects that are read, outermost first.
    scopes: Vec<Scope>,
    /// Number of open containers of a value that is not read.
    n_skipped: u32,
    name: Vec<u8>,
    key: Key,
    string: Text,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Scope {
    Document,
    /// `response` or `message` in events.
    Response,
    Usage,
    Details,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Key {
    Model,
    Usage,
    Response,
    Details,
    PromptTokens,
    CompletionTokens,
    CachedTokens,
    CacheRead,
    CacheWritten,
    Other,
}

/// Meaning of the current string.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Text {
    Key,
    Model,
    Other,
}

impl Document {
    pub(super) fn new() -> Self {
        Self {
            lexer: Lexer::new(),
            broken: false,
            scopes: Vec::with_capacity(MAX_SCOPES),
            n_skipped: 0,
            name: Vec::new(),
            key: Key::Other,
            string: Text::Other,
        }
    }

    /// Begins another document, in the memory of this one.
    pub(super) fn restart(&mut self) {
        let Self { lexer, broken, scopes, n_skipped, name, key, string } = self;
        (*lexer, *broken, *n_skipped) = (Lexer::new(), false, 0);
        (*key, *string) = (Key::Other, Text::Other);
        scopes.clear();
        name.clear();
    }

    /// Returns true if the chunk ended inside a model's value.
    pub(super) fn is_in_model(&self) -> bool {
        self.string == Text::Model
    }

    /// Reads the bytes `part` of the chunk in `out`.
    pub(super) fn read(&mut self, part: Range<usize>, counts: &mut Counts, out: &mut Parts<'_>) {
        if self.broken {
            return;
        }
        let chunk = out.chunk.clone();
        let end = part.end;
        let mut rest = &chunk[part];
        loop {
            if let Some(key) = self.lexer.read_key(&mut rest)
                && self.n_skipped == 0
            {
                self.key = self.scopes.last().map_or(Key::Other, |scope| scope.key(key));
            }
            if let Some(event) = self.lexer.read_bracket(&mut rest) {
                self.apply(event, end - rest.len(), counts, out);
                continue;
            }
            match self.lexer.next(&mut rest) {
                Ok(Some(event)) => self.apply(event, end - rest.len(), counts, out),
                Ok(None) => return,
                Err(_) => {
                    self.broken = true;
                    if self.is_in_model() {
                        self.string = Text::Other;
                        out.end_model(end - rest.len());
                    }
                    return;
                }
            }
        }
    }

    /// Takes an event; `at` is its end in the chunk.
    fn apply(&mut self, event: Event<'_>, at: usize, counts: &mut Counts, out: &mut Parts<'_>) {
        if self.n_skipped > 0 {
            self.n_skipped = self.n_skipped.saturating_add_signed(event.depth_change());
            return;
        }
        match event {
            Event::KeyStart => {
                self.name.clear();
                self.string = Text::Key;
            }
            Event::KeyEnd => {
                self.string = Text::Other;
                self.key = self.scopes.last().map_or(Key::Other, |scope| scope.key(&self.name));
            }
            Event::Text(text) => self.push_text(text),
            Event::Char(char) => self.push_text(char.encode_utf8(&mut [0; 4]).as_bytes()),
            Event::StringStart { at: _ } if self.key == Key::Model => {
                self.string = Text::Model;
                out.begin_model(at - 1);
            }
            Event::StringEnd { end: _ } if self.is_in_model() => {
                self.string = Text::Other;
                out.end_model(at);
            }
            Event::StringStart { at: _ } | Event::StringEnd { end: _ } | Event::Literal(_) => {}
            Event::Number(number) => self.number(number.value, counts),
            Event::Open(container) => self.open(container),
            Event::Close(_) => {
                self.scopes.pop();
                self.key = Key::Other;
            }
        }
    }

    fn push_text(&mut self, text: &[u8]) {
        if self.string == Text::Key {
            let n_kept = text.len().min(MAX_KEY + 1 - self.name.len());
            self.name.extend_from_slice(&text[..n_kept]);
        }
    }

    /// Notes a count. Later counts replace earlier ones: an event stream may report several times.
    fn number(&self, value: Option<u32>, Counts { usage, read, written }: &mut Counts) {
        let field = match self.key {
            Key::CacheRead => read,
            Key::CacheWritten => written,
            Key::PromptTokens => &mut usage.prompt_tokens,
            Key::CompletionTokens => &mut usage.completion_tokens,
            Key::CachedTokens => &mut usage.cached_tokens,
            Key::Model | Key::Usage | Key::Response | Key::Details | Key::Other => return,
        };
        *field = value.or(*field);
    }

    fn open(&mut self, container: Container) {
        let scope = match (container, self.scopes.last(), self.key) {
            (Container::Object, None, _) => Scope::Document,
            (Container::Object, Some(_), Key::Usage) => Scope::Usage,
            (Container::Object, Some(_), Key::Response) => Scope::Response,
            (Container::Object, Some(_), Key::Details) => Scope::Details,
            _ => {
                self.n_skipped = 1;
                return;
            }
        };
        self.scopes.push(scope);
        self.key = Key::Other;
    }
}

impl Scope {
    fn key(self, name: &[u8]) -> Key {
        match (self, name) {
            (Self::Document | Self::Response, b"model") => Key::Model,
            (Self::Document | Self::Response, b"usage") => Key::Usage,
            (Self::Document, b"response" | b"message") => Key::Response,
            (Self::Usage, b"prompt_tokens" | b"input_tokens") => Key::PromptTokens,
            (Self::Usage, b"cache_read_input_tokens") => Key::CacheRead,
            (Self::Usage, b"cache_creation_input_tokens") => Key::CacheWritten,
            (Self::Usage, b"completion_tokens" | b"output_tokens") => Key::CompletionTokens,
            (Self::Usage, b"prompt_tokens_details" | b"input_tokens_details") => Key::Details,
            (Self::Details, b"cached_tokens") => Key::CachedTokens,
            (Self::Document | Self::Response | Self::Usage | Self::Details, _) => Key::Other,
        }
    }
}
