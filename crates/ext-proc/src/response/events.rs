//! Splits a `text/event-stream` into lines, wherever chunks are cut.

use super::document::Document;

/// Start of a line that contains an event's JSON.
const DATA: &[u8] = b"data:";

/// Position in the stream.
#[derive(Debug)]
pub(super) struct Events {
    line: Line,
    /// The JSON of the current event.
    pub(super) document: Document,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Line {
    /// The first bytes of `data:` were seen, as many as this.
    Start(usize),
    Data,
    /// A comment, or a field that is not `data`.
    Other,
}

/// Meaning of the next bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Step {
    Skipped,
    /// JSON of the current event.
    Data,
    /// The blank line after an event.
    EventEnd,
}

impl Events {
    pub(super) fn new() -> Self {
        Self { line: Line::Start(0), document: Document::new() }
    }

    /// The next step and its number of bytes; `bytes` must not be empty.
    pub(super) fn next(&mut self, bytes: &[u8]) -> (Step, usize) {
        match (self.line, bytes[0]) {
            (Line::Start(0), b'\n') => (Step::EventEnd, 1),
            (_, b'\n') => {
                self.line = Line::Start(0);
                (Step::Skipped, 1)
            }
            // Carriage return of a blank line that ends in CR LF.
            (Line::Start(0), b'\r') => (Step::Skipped, 1),
            (Line::Start(n_seen), byte) if byte == DATA[n_seen] => {
                self.line = if n_seen + 1 == DATA.len() { Line::Data } else { Line::Start(n_seen + 1) };
                (Step::Skipped, 1)
            }
            (Line::Start(_) | Line::Other, _) => {
                self.line = Line::Other;
                (Step::Skipped, line_len(bytes))
            }
            (Line::Data, _) => (Step::Data, line_len(bytes)),
        }
    }
}

/// Number of bytes before the end of the line.
fn line_len(bytes: &[u8]) -> usize {
    bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len())
}
