//! Reads what a chunk contains entirely in one step: keys, words, brackets, text of a string. Everything else, and every
//! fault, is left to [`Lexer::next`].

use super::text::{after_space, plain_prefix, unescaped};
use super::{Container, Event, Lexer, MAX_DEPTH, Owner, State};

impl Lexer {
    /// Reads on in the current string, without an event for each piece. Returns true if it read the closing quote, and
    /// false at a byte that [`Self::next`] must handle, at the end of the chunk, and outside of a string.
    pub(crate) fn read_text(&mut self, chunk: &mut &[u8], mut each: impl FnMut(&[u8])) -> bool {
        let State::Str(owner) = self.state else { return false };
        loop {
            let (text, rest) = chunk.split_at(plain_prefix(chunk));
            if !text.is_empty() {
                each(text);
                (self.offset, *chunk) = (self.offset + text.len(), rest);
            }
            match rest {
                [b'"', ..] => {
                    self.take(chunk);
                    self.end_string(owner);
                    return true;
                }
                [b'\\', escape, rest @ ..] => {
                    let Some(char) = unescaped(*escape) else { return false };
                    each(&[char]);
                    (self.offset, *chunk) = (self.offset + 2, rest);
                }
                _ => return false,
            }
        }
    }

    /// Reads the rest of the current string with its closing quote, if the chunk contains all of it and it has no
    /// escapes; otherwise reads nothing. Most keys and other words are read in this way.
    pub(crate) fn read_word<'a>(&mut self, chunk: &mut &'a [u8]) -> Option<&'a [u8]> {
        let State::Str(owner) = self.state else { return None };
        let (text, rest) = chunk.split_at(plain_prefix(chunk));
        if rest.first() != Some(&b'"') {
            return None;
        }
        (self.offset, *chunk) = (self.offset + text.len(), rest);
        self.take(chunk);
        self.end_string(owner);
        Some(text)
    }

    /// Reads the opening quote of a string that is a value, if that is what comes next; otherwise reads nothing. Returns
    /// the offset of the quote.
    #[inline]
    pub(crate) fn begin_string(&mut self, chunk: &mut &[u8]) -> Option<usize> {
        let (State::Value | State::FirstElement) = self.state else { return None };
        let rest = after_space(chunk).strip_prefix(b"\"")?;
        self.offset += chunk.len() - rest.len();
        (*chunk, self.state, self.value_start) = (rest, State::Str(Owner::Value), self.offset - 1);
        Some(self.value_start)
    }

    /// Reads a bracket, and the comma before it that separates it from another value of an array, if that is what comes
    /// next and is allowed; otherwise reads nothing.
    #[inline]
    pub(crate) fn read_bracket(&mut self, chunk: &mut &[u8]) -> Option<Event<'static>> {
        let mut rest = after_space(chunk);
        match self.state {
            State::AfterValue if self.depth > 0 => match (self.innermost(), rest) {
                (Container::Object, [b'}', after @ ..]) | (Container::Array, [b']', after @ ..]) => {
                    self.offset += chunk.len() - after.len();
                    *chunk = after;
                    return Some(self.leave());
                }
                (Container::Array, [b',', after @ ..]) => {
                    rest = after_space(after);
                }
                _ => return None,
            },
            State::Value | State::FirstElement => {}
            _ => return None,
        }
        let (container, after) = match rest {
            [b'{', after @ ..] => (Container::Object, after),
            [b'[', after @ ..] => (Container::Array, after),
            _ => return None,
        };
        if self.depth == MAX_DEPTH {
            return None;
        }
        self.offset += chunk.len() - after.len();
        (*chunk, self.value_start) = (after, self.offset - 1);
        Some(self.enter(container))
    }

    /// Reads the next key of an object with its quotes and its colon, if the chunk contains all of it and it has no
    /// escapes; otherwise reads nothing.
    #[inline]
    pub(crate) fn read_key<'a>(&mut self, chunk: &mut &'a [u8]) -> Option<&'a [u8]> {
        let rest = match self.state {
            State::FirstKey | State::Key => *chunk,
            State::AfterValue if self.depth > 0 && self.innermost() == Container::Object => {
                after_space(chunk).strip_prefix(b",")?
            }
            _ => return None,
        };
        let rest = after_space(rest).strip_prefix(b"\"")?;
        let (key, rest) = rest.split_at(plain_prefix(rest));
        let rest = after_space(rest.strip_prefix(b"\"")?).strip_prefix(b":")?;
        self.offset += chunk.len() - rest.len();
        self.state = State::Value;
        *chunk = rest;
        Some(key)
    }
}
