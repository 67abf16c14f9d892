//! Hashes a plain prompt while its chunks arrive: a text, token ids, or a chat of texts.
//!
//! It gives up on any other value, and on fields that are not in the order in which they are hashed; such a prompt is
//! rendered when the body is complete. In all other cases the text is the same as the rendered one.

use super::source::{MAX_WORD, Word};
use super::text::{BillingLine, PromptText, SystemText, TextWriter};
use crate::json::{Container, Event};

/// The shape that the value must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// An array of messages.
    Chat,
    /// A text, or an array of token ids.
    Prompt,
    /// A text that is the only message, and the user's.
    UserText,
}

/// The state of the value: plain so far, or given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ValueState {
    Plain,
    GivenUp,
}

/// Takes the events of one value, from the first to the last.
#[derive(Debug)]
pub(super) struct Live {
    shape: Shape,
    place: Place,
    /// Number of open containers of a value that is not part of the prompt.
    n_skipped: u32,
    reads: Reads,
    key: Word,
    role: Word,
    part_type: Word,
    message: MessageState,
    /// State of the current text, in a system message.
    system: Option<SystemText>,
    text: TextWriter,
}

/// Place of the next value.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Start,
    TokenIds,
    Messages,
    /// In a message, after this key.
    Message(MessageKey),
    /// In the array of a message's content.
    Parts,
    Part(PartKey),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum MessageKey {
    Role,
    Content,
    /// A key whose value is not part of the prompt.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum PartKey {
    Type,
    Text,
    Other,
}

/// Target of the current string's text.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reads {
    Nothing,
    Key,
    Role,
    PartType,
    Prompt,
    /// The prompt; the string is in a system message.
    System,
    /// The prompt; the string begins a part of the content.
    Part,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum MessageState {
    /// Nothing of the message is hashed.
    Fresh,
    /// Its role is hashed, and its content has begun.
    Begun,
    /// Its role and a part with a text are hashed.
    HasPart,
}

// === impl Live ===

impl Live {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            shape,
            place: Place::Start,
            n_skipped: 0,
            reads: Reads::Nothing,
            key: Word::default(),
            role: Word::default(),
            part_type: Word::default(),
            message: MessageState::Fresh,
            system: None,
            text: TextWriter::new(),
        }
    }

    /// The prompt, after its last event.
    pub(super) fn finish(self) -> PromptText {
        self.text.finish()
    }

    /// Takes an event that is not text of a key or string.
    #[inline(always)]
    pub(super) fn apply(&mut self, event: Event<'_>) -> ValueState {
        if self.n_skipped > 0 {
            self.n_skipped = self.n_skipped.saturating_add_signed(event.depth_change());
            return ValueState::Plain;
        }
        match event {
            Event::Text(_) | Event::Char(_) => {}
            Event::KeyStart => {
                self.key.clear();
                self.reads = Reads::Key;
            }
            Event::KeyEnd => {
                let key = self.key;
                return self.take_key(key.as_bytes());
            }
            Event::StringStart { at: _ } => return self.start_string(),
            Event::StringEnd { end: _ } => self.end_string(),
            Event::Number(number) => match (self.place, number.value) {
                (Place::TokenIds, Some(id)) => self.text.push(&id.to_le_bytes()),
                _ => return self.scalar(),
            },
            Event::Literal(_) => return self.scalar(),
            Event::Open(container) => return self.open(container),
            Event::Close(_) => return self.close(),
        }
        ValueState::Plain
    }

    /// Target of the current string's text, if the text is part of the prompt as it is.
    pub(super) fn current_text(&mut self) -> Option<&mut TextWriter> {
        (self.reads == Reads::Prompt).then_some(&mut self.text)
    }

    /// Returns true if the current string is a word, such as a role, or is not part of the prompt.
    pub(super) fn reads_word(&self) -> bool {
        matches!(self.reads, Reads::Nothing | Reads::Role | Reads::PartType)
    }

    /// Takes text of the current key or string, or a piece of it.
    #[inline]
    pub(super) fn push_text(&mut self, text: &[u8]) -> ValueState {
        match self.reads {
            Reads::Nothing => {}
            Reads::Key => self.key.push(text),
            Reads::Role => self.role.push(text),
            Reads::PartType => self.part_type.push(text),
            Reads::Prompt => self.text.push(text),
            Reads::System => {
                if let Some(system) = &mut self.system {
                    system.push(text, |kept| self.text.push(kept));
                    if system.has_line() {
                        return ValueState::GivenUp;
                    }
                }
            }
            Reads::Part => {
                if self.message == MessageState::HasPart {
                    self.text.push(b"\n");
                }
                self.message = MessageState::HasPart;
                self.text.push(text);
                self.reads = Reads::Prompt;
            }
        }
        ValueState::Plain
    }

    /// Takes a whole key.
    pub(super) fn take_key(&mut self, key: &[u8]) -> ValueState {
        if self.n_skipped > 0 {
            return ValueState::Plain;
        }
        self.reads = Reads::Nothing;
        self.place = match (self.place, key) {
            (Place::Message(_), b"role") if self.role.as_bytes().is_empty() => {
                Place::Message(MessageKey::Role)
            }
            (Place::Message(_), b"content") if self.message == MessageState::Fresh => {
                Place::Message(MessageKey::Content)
            }
            // A key that occurred before, or one that changes what is rendered.
            (
                Place::Message(_),
                b"role" | b"content" | b"tool_calls" | b"reasoning" | b"reasoning_content" | b"thinking",
            )
            | (Place::Part(PartKey::Text), b"text") => return ValueState::GivenUp,
            (Place::Message(_), _) => Place::Message(MessageKey::Other),
            (Place::Part(_), b"type") => Place::Part(PartKey::Type),
            (Place::Part(_), b"text") => Place::Part(PartKey::Text),
            (Place::Part(_), b"cache_control") => Place::Part(PartKey::Other),
            (Place::Part(_), _) => return ValueState::GivenUp,
            (place @ (Place::Start | Place::TokenIds | Place::Messages | Place::Parts), _) => place,
        };
        ValueState::Plain
    }

    fn start_string(&mut self) -> ValueState {
        self.reads = match (self.place, self.shape) {
            (Place::Start, Shape::Prompt) => Reads::Prompt,
            (Place::Start, Shape::UserText) => {
                self.text.push(b"user: ");
                Reads::Prompt
            }
            (Place::Message(MessageKey::Role), _) => Reads::Role,
            (Place::Message(MessageKey::Other), _) | (Place::Part(PartKey::Other), _) => Reads::Nothing,
            (Place::Message(MessageKey::Content), _) => {
                if self.begin_message() == ValueState::GivenUp {
                    return ValueState::GivenUp;
                }
                if self.system.is_some() { Reads::System } else { Reads::Prompt }
            }
            (Place::Part(PartKey::Type), _) => {
                self.part_type.clear();
                Reads::PartType
            }
            (Place::Part(PartKey::Text) | Place::Parts, _) => Reads::Part,
            (Place::Start | Place::TokenIds | Place::Messages, _) => return ValueState::GivenUp,
        };
        ValueState::Plain
    }

    fn end_string(&mut self) {
        if let Some(system) = self.system.take() {
            system.finish(|kept| self.text.push(kept));
        }
        if self.place == Place::Start && self.shape == Shape::UserText {
            self.text.push(b"\n");
        }
        self.reads = Reads::Nothing;
    }

    /// Takes a number, `null` or the like: ignored in some places, otherwise the value is not plain.
    fn scalar(&mut self) -> ValueState {
        match self.place {
            Place::Message(MessageKey::Content | MessageKey::Other) | Place::Part(PartKey::Other) => {
                ValueState::Plain
            }
            Place::Start
            | Place::TokenIds
            | Place::Messages
            | Place::Message(MessageKey::Role)
            | Place::Parts
            | Place::Part(PartKey::Type | PartKey::Text) => ValueState::GivenUp,
        }
    }

    fn open(&mut self, container: Container) -> ValueState {
        self.place = match (self.place, container) {
            (Place::Start, Container::Array) => match self.shape {
                Shape::Chat => Place::Messages,
                Shape::Prompt => Place::TokenIds,
                Shape::UserText => return ValueState::GivenUp,
            },
            (Place::Messages, Container::Object) => {
                self.role.clear();
                self.message = MessageState::Fresh;
                Place::Message(MessageKey::Other)
            }
            (Place::Message(MessageKey::Content), Container::Array) => {
                if self.role.as_bytes() == b"system" || self.begin_message() == ValueState::GivenUp {
                    return ValueState::GivenUp;
                }
                Place::Parts
            }
            (Place::Parts, Container::Object) => {
                self.part_type.clear();
                Place::Part(PartKey::Other)
            }
            (place @ (Place::Message(MessageKey::Other) | Place::Part(PartKey::Other)), _) => {
                self.n_skipped = 1;
                place
            }
            _ => return ValueState::GivenUp,
        };
        ValueState::Plain
    }

    fn close(&mut self) -> ValueState {
        self.place = match self.place {
            Place::TokenIds | Place::Messages | Place::Start => Place::Start,
            Place::Message(_) => {
                if self.message == MessageState::Fresh && self.begin_message() == ValueState::GivenUp {
                    return ValueState::GivenUp;
                }
                self.text.push(b"\n");
                self.system = None;
                Place::Messages
            }
            Place::Parts => Place::Message(MessageKey::Content),
            Place::Part(_) => match self.part_type.as_bytes() {
                b"" | b"text" | b"input_text" | b"output_text" => Place::Parts,
                _ => return ValueState::GivenUp,
            },
        };
        ValueState::Plain
    }

    /// Hashes the role, which must be known before.
    fn begin_message(&mut self) -> ValueState {
        let role = self.role.as_bytes();
        match role {
            b"" | b"developer" => return ValueState::GivenUp,
            b"system" => self.system = Some(SystemText::new(BillingLine::Cut)),
            _ if role.len() > MAX_WORD => return ValueState::GivenUp,
            _ => {}
        }
        self.text.push(role);
        self.text.push(b": ");
        self.message = MessageState::Begun;
        ValueState::Plain
    }
}
