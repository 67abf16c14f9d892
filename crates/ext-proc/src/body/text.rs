//! The text of a prompt, hashed while it is written: strings, JSON and media.

use prefix_index::chain::ChainBuilder;
use xxhash_rust::xxh3::Xxh3;

use crate::json::{Container, Event, Lexer, Literal, Number};

/// Bytes that an image, sound or video counts as in the text. An image is some hundred tokens, however long its URL is;
/// with more bytes than this, a small body could cause much hashing.
const MEDIA_BYTES: usize = 512;
/// Bytes of text that are hashed at once.
const WRITE_BYTES: usize = 2048;
/// Start of Claude Code's line about itself, which changes with each request; vLLM leaves it out of system prompts.
const BILLING_HEADER: &[u8] = b"x-anthropic-billing-header";

/// The hashed text of one prompt, without the seed.
#[derive(Clone, Debug, Default)]
pub struct PromptText {
    pub chain: ChainBuilder,
    /// Length of the text in bytes.
    pub n_bytes: u64,
}

/// Writes the text of a prompt. Escapes cut strings into short pieces; it collects them, because hashing them one by
/// one would take longer.
#[derive(Debug)]
pub(super) struct TextWriter {
    text: PromptText,
    /// Text that is written but not hashed yet: less than [`WRITE_BYTES`].
    pending: Vec<u8>,
}

/// Treatment of Claude Code's line in a system prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BillingLine {
    /// Left out up to the end of the line (chat).
    Cut,
    /// Left out with the block that begins with it (Messages API).
    CutBlock,
}

/// Leaves the billing line out of a text that arrives in pieces.
#[derive(Debug)]
pub(super) struct SystemText {
    line: BillingLine,
    state: SystemState,
    has_line: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum SystemState {
    /// Only the first bytes of the header were seen, as many as this.
    Start(usize),
    InLine,
    Text,
}

/// Writes JSON like Python's `json.dumps` with its defaults, so that the client's spacing makes no difference.
#[derive(Debug, Default)]
pub(super) struct JsonText {
    /// One bit per open container, the innermost lowest: 1 means that it already has a value.
    has_values: u128,
    is_behind_key: bool,
}

/// Reads a text that is itself JSON, in pieces, and writes it like [`JsonText`].
#[derive(Debug)]
pub(super) struct EmbeddedJson {
    lexer: Lexer,
    writer: JsonText,
}

/// Hash that identifies a value that is not text.
#[derive(Default)]
pub(super) struct Identity(Xxh3);

// === impl TextWriter ===

impl TextWriter {
    pub(super) fn new() -> Self {
        Self { text: PromptText::default(), pending: Vec::with_capacity(WRITE_BYTES) }
    }

    pub(super) fn push(&mut self, text: &[u8]) {
        if self.pending.len() + text.len() < WRITE_BYTES {
            self.pending.extend_from_slice(text);
        } else {
            self.flush();
            self.text.push(text);
        }
    }

    pub(super) fn finish(mut self) -> PromptText {
        self.flush();
        self.text
    }

    fn flush(&mut self) {
        self.text.push(&self.pending);
        self.pending.clear();
    }

    /// Writes a field whose effect on the prompt only the engine knows.
    pub(super) fn push_option(&mut self, key: &str, value: Identity) {
        self.push(key.as_bytes());
        self.push(&value.0.digest128().to_le_bytes());
        self.push(b"\n");
    }

    pub(super) fn push_media(&mut self, media: Identity) {
        let digest = media.0.digest128().to_le_bytes();
        for _ in 0..MEDIA_BYTES / digest.len() {
            self.push(&digest);
        }
    }
}

// === impl PromptText ===

impl PromptText {
    fn push(&mut self, text: &[u8]) {
        self.chain.push(text);
        self.n_bytes += text.len() as u64;
    }
}

// === impl SystemText ===

impl SystemText {
    pub(super) fn new(line: BillingLine) -> Self {
        Self { line, state: SystemState::Start(0), has_line: false }
    }

    /// Calls `keep` with the parts of `piece` that stay.
    pub(super) fn push(&mut self, mut piece: &[u8], mut keep: impl FnMut(&[u8])) {
        while let SystemState::Start(n_seen) = self.state {
            let Some((first, rest)) = piece.split_first() else { return };
            if *first != BILLING_HEADER[n_seen] {
                self.state = SystemState::Text;
                keep(&BILLING_HEADER[..n_seen]);
                break;
            }
            piece = rest;
            let n_seen = n_seen + 1;
            self.has_line = n_seen == BILLING_HEADER.len();
            self.state = if self.has_line { SystemState::InLine } else { SystemState::Start(n_seen) };
        }
        if self.state == SystemState::InLine {
            let end = match self.line {
                BillingLine::Cut => piece.iter().position(|&byte| byte == b'\n'),
                BillingLine::CutBlock => None,
            };
            let Some(end) = end else { return };
            self.state = SystemState::Text;
            piece = &piece[end + 1..];
        }
        if !piece.is_empty() {
            keep(piece);
        }
    }

    /// Ends the text: calls `keep` with the bytes that were held back.
    pub(super) fn finish(self, mut keep: impl FnMut(&[u8])) {
        if let SystemState::Start(n_seen @ 1..) = self.state {
            keep(&BILLING_HEADER[..n_seen]);
        }
    }

    /// Returns true if the text begins with such a line.
    pub(super) fn has_line(&self) -> bool {
        self.has_line
    }
}

// === impl JsonText ===

impl JsonText {
    pub(super) fn write(&mut self, event: Event<'_>, mut out: impl FnMut(&[u8])) {
        match event {
            Event::Open(container) => {
                self.begin_value(&mut out);
                self.has_values <<= 1;
                out(if container == Container::Object { b"{" } else { b"[" });
            }
            Event::Close(container) => {
                self.has_values >>= 1;
                out(if container == Container::Object { b"}" } else { b"]" });
            }
            Event::KeyStart | Event::StringStart { at: _ } => {
                self.begin_value(&mut out);
                out(b"\"");
            }
            Event::KeyEnd => {
                self.is_behind_key = true;
                out(b"\": ");
            }
            Event::StringEnd { end: _ } => out(b"\""),
            Event::Text(text) => out(text),
            Event::Char('"') => out(b"\\\""),
            Event::Char('\\') => out(b"\\\\"),
            Event::Char('\n') => out(b"\\n"),
            Event::Char(char) => out(char.encode_utf8(&mut [0; 4]).as_bytes()),
            Event::Number(Number { value, fingerprint }) => {
                self.begin_value(&mut out);
                match value {
                    Some(value) => out(value.to_string().as_bytes()),
                    None => out(&fingerprint.to_le_bytes()),
                }
            }
            Event::Literal(literal) => {
                self.begin_value(&mut out);
                out(match literal {
                    Literal::True => b"true",
                    Literal::False => b"false",
                    Literal::Null => b"null",
                });
            }
        }
    }

    fn begin_value(&mut self, out: &mut impl FnMut(&[u8])) {
        if std::mem::take(&mut self.is_behind_key) {
            return;
        }
        if self.has_values & 1 == 1 {
            out(b", ");
        }
        self.has_values |= 1;
    }
}

// === impl EmbeddedJson ===

impl EmbeddedJson {
    pub(super) fn new() -> Self {
        Self { lexer: Lexer::new(), writer: JsonText::default() }
    }

    /// Takes the next piece. Text after the first fault in the JSON is ignored: the engine does not show it either.
    pub(super) fn push(&mut self, mut piece: &[u8], mut out: impl FnMut(&[u8])) {
        while let Ok(Some(event)) = self.lexer.next(&mut piece) {
            self.writer.write(event, &mut out);
        }
    }
}

// === impl Identity ===

impl Identity {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
}
