//! What a request body asks for, scanned as its chunks arrive; the bytes themselves are never touched.
//!
//! Reads `model`, `cache_salt` and the prompt, checks the whole document, and keeps nothing else. A key that appears
//! twice counts the last time, as in the engine. Limits: [`MAX_NESTING`] levels; the caller bounds the size.

mod utf8;

use std::ops::Range;

use prefix_index::chain::ChainBuilder;

use self::utf8::Utf8Checker;
use crate::json::{Container, Event, JsonError, Lexer, MAX_DEPTH};

/// Deepest nesting of arrays and objects in a body.
pub const MAX_NESTING: u32 = MAX_DEPTH;
/// Longest model name that is taken [bytes]: the 256 characters of an InferenceModel's, each of up to four.
pub const MAX_MODEL_NAME: usize = 1024;
/// Longest key that is told apart [bytes]; no key that is read has more than 13.
const MAX_KEY: usize = 16;

/// Why a body is refused. Displayed to the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    #[error("the body is not valid JSON: {problem} at byte {offset}")]
    Syntax { offset: usize, problem: &'static str },
    #[error("the body is not valid JSON: invalid UTF-8 at byte {offset}")]
    Utf8 { offset: usize },
    #[error("the body is nested more than {limit} levels deep at byte {offset}")]
    Depth { offset: usize, limit: u32 },
    #[error("the body must be a JSON object")]
    NotAnObject,
    #[error("the field `model` is required")]
    ModelMissing,
    #[error("the field `model` must be a non-empty string")]
    ModelType,
    #[error("the field `model` is longer than {limit} bytes")]
    ModelTooLong { limit: usize },
    #[error("the field `{key}` is required")]
    PromptMissing { key: &'static str },
    #[error("the field `{key}` has a type that a prompt cannot have")]
    PromptType { key: &'static str },
    #[error("the field `{key}` must not be empty")]
    PromptEmpty { key: &'static str },
}

impl BodyError {
    /// The field that is at fault, if one is.
    #[must_use]
    pub fn param(&self) -> Option<&'static str> {
        match self {
            Self::ModelMissing | Self::ModelType | Self::ModelTooLong { .. } => Some("model"),
            Self::PromptMissing { key } | Self::PromptType { key } | Self::PromptEmpty { key } => Some(key),
            Self::Syntax { .. } | Self::Utf8 { .. } | Self::Depth { .. } | Self::NotAnObject => None,
        }
    }
}

impl From<JsonError> for BodyError {
    fn from(error: JsonError) -> Self {
        match error {
            JsonError::Syntax { offset, problem } => Self::Syntax { offset, problem },
            JsonError::Depth { offset } => Self::Depth { offset, limit: MAX_NESTING },
        }
    }
}

/// What was read from a complete body.
#[derive(Debug)]
pub struct RequestBody {
    pub model: String,
    /// The bytes of the `model` value in the body, quotes included.
    pub model_span: Range<usize>,
    pub cache_salt: Option<String>,
    /// What the prefix estimate hashes: messages as `role: content\n`, text as it is, token ids as 4 bytes each
    /// (little endian). Hashed already; the seed is missing.
    pub prompt: ChainBuilder,
    /// Length of that text in bytes.
    pub prompt_bytes: u64,
    /// Length of the body.
    pub n_bytes: u64,
}

/// Where a body has its prompt, by the API that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PromptField {
    /// Chat completions: `messages`.
    Messages,
    /// Completions: `prompt`; vLLM takes `prompt_embeds` instead, which says nothing of a prefix.
    Prompt,
    /// Responses: `input`.
    Input,
    /// Embeddings: `input`; vLLM takes `messages` too.
    Embedded,
    /// The API is not known: `messages`, or `prompt` where there are none.
    Any,
}

impl PromptField {
    /// The keys that are read; of several in one body the first of these counts.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Messages => &["messages"],
            Self::Prompt => &["prompt"],
            Self::Input => &["input"],
            Self::Embedded => &["input", "messages"],
            Self::Any => &["messages", "prompt"],
        }
    }

    /// A key that stands for a prompt that is not read.
    fn unread_key(self) -> Option<&'static str> {
        match self {
            Self::Prompt | Self::Any => Some("prompt_embeds"),
            Self::Messages | Self::Input | Self::Embedded => None,
        }
    }
}

/// Scans one body.
#[derive(Debug)]
pub struct BodyScanner {
    n_bytes: u64,
    utf8: Utf8Checker,
    lexer: Lexer,
    fields: Fields,
}

impl BodyScanner {
    #[must_use]
    pub fn new(prompt_field: PromptField) -> Self {
        Self {
            n_bytes: 0,
            utf8: Utf8Checker::default(),
            lexer: Lexer::new(),
            fields: Fields::new(prompt_field),
        }
    }

    /// # Errors
    /// When the body cannot become valid JSON any more, or is too deep.
    pub fn push(&mut self, mut chunk: &[u8]) -> Result<(), BodyError> {
        self.n_bytes += chunk.len() as u64;
        self.utf8.push(chunk)?;
        while let Some(event) = self.lexer.next(&mut chunk)? {
            self.fields.apply(event);
        }
        Ok(())
    }

    /// # Errors
    /// When the document is incomplete, or lacks a model or a prompt.
    pub fn finish(self) -> Result<RequestBody, BodyError> {
        self.utf8.finish()?;
        self.lexer.finish()?;
        self.fields.finish(self.n_bytes)
    }
}

/// Where in the document the next value stands.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Root,
    /// In the root object, behind this key.
    Field(Field),
    /// In the array of the prompt.
    Elements,
    /// In an array of token ids inside the prompt's array.
    TokenIds,
    /// In a message, behind this key.
    Message(MessageKey),
    /// In a message's content array.
    Parts,
    /// In an object of that array; true behind the key `text`.
    Part(PartKey),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Field {
    Model,
    CacheSalt,
    Prompt,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum MessageKey {
    Role,
    Content,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum PartKey {
    Text,
    Other,
}

/// Where the text of the current string goes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    Nowhere,
    Key,
    Model,
    CacheSalt,
    Prompt,
    Role,
    Content,
}

/// How far a field was read.
#[derive(Debug, PartialEq)]
enum Seen<T> {
    Absent,
    WrongType,
    Value(T),
}

#[derive(Debug)]
struct Fields {
    prompt_field: PromptField,
    /// Which of the field's keys the prompt was read from.
    prompt_rank: usize,
    /// Whether there is a prompt that is not read.
    has_unread_prompt: bool,
    place: Place,
    target: Target,
    /// Open containers of a value that nothing is read from.
    n_skipped: u32,
    key: Vec<u8>,
    root: Seen<()>,
    model: Seen<Range<usize>>,
    model_name: Vec<u8>,
    cache_salt: Seen<()>,
    salt: Vec<u8>,
    prompt: Seen<()>,
    text: ChainBuilder,
    text_bytes: u64,
    role: Vec<u8>,
    content: Vec<u8>,
}

impl Fields {
    fn new(prompt_field: PromptField) -> Self {
        Self {
            prompt_field,
            prompt_rank: usize::MAX,
            has_unread_prompt: false,
            place: Place::Root,
            target: Target::Nowhere,
            n_skipped: 0,
            key: Vec::with_capacity(MAX_KEY + 1),
            root: Seen::Absent,
            model: Seen::Absent,
            model_name: Vec::new(),
            cache_salt: Seen::Absent,
            salt: Vec::new(),
            prompt: Seen::Absent,
            text: ChainBuilder::new(),
            text_bytes: 0,
            role: Vec::new(),
            content: Vec::new(),
        }
    }

    fn apply(&mut self, event: Event<'_>) {
        if self.n_skipped > 0 {
            match event {
                Event::Open(_) => self.n_skipped += 1,
                Event::Close(_) => self.n_skipped -= 1,
                Event::KeyStart
                | Event::KeyEnd
                | Event::StringStart { .. }
                | Event::StringEnd { .. }
                | Event::Text(_)
                | Event::Char(_)
                | Event::Number(_)
                | Event::Literal => {}
            }
            return;
        }
        match event {
            Event::Text(text) => self.push_text(text),
            Event::Char(char) => self.push_text(char.encode_utf8(&mut [0; 4]).as_bytes()),
            Event::KeyStart => {
                self.key.clear();
                self.target = Target::Key;
            }
            Event::KeyEnd => self.end_key(),
            Event::StringStart { at } => self.start_string(at),
            Event::StringEnd { end } => self.end_string(end),
            Event::Number(value) => self.number(value),
            Event::Literal => self.literal(),
            Event::Open(container) => self.open(container),
            Event::Close(container) => self.close(container),
        }
    }

    fn push_text(&mut self, text: &[u8]) {
        match self.target {
            Target::Nowhere => {}
            Target::Key => {
                let n_kept = text.len().min(MAX_KEY + 1 - self.key.len());
                self.key.extend_from_slice(&text[..n_kept]);
            }
            Target::Model => {
                let n_kept = text.len().min(MAX_MODEL_NAME + 1 - self.model_name.len());
                self.model_name.extend_from_slice(&text[..n_kept]);
            }
            Target::CacheSalt => self.salt.extend_from_slice(text),
            Target::Prompt => self.push_prompt(text),
            Target::Role => self.role.extend_from_slice(text),
            Target::Content => self.content.extend_from_slice(text),
        }
    }

    fn end_key(&mut self) {
        self.target = Target::Nowhere;
        self.place = match self.place {
            Place::Field(_) => Place::Field(self.root_field()),
            Place::Message(_) => Place::Message(match self.key.as_slice() {
                b"role" => MessageKey::Role,
                b"content" => MessageKey::Content,
                _ => MessageKey::Other,
            }),
            Place::Part(_) => Place::Part(if self.key == b"text" { PartKey::Text } else { PartKey::Other }),
            place @ (Place::Root | Place::Elements | Place::TokenIds | Place::Parts) => place,
        };
        self.forget();
    }

    fn root_field(&mut self) -> Field {
        let key = self.key.as_slice();
        match key {
            b"model" => return Field::Model,
            b"cache_salt" => return Field::CacheSalt,
            _ => {}
        }
        if self.prompt_field.unread_key().is_some_and(|unread| unread.as_bytes() == key) {
            self.has_unread_prompt = true;
        }
        let rank = self.prompt_field.keys().iter().position(|prompt| prompt.as_bytes() == key);
        match rank {
            Some(rank) if rank <= self.prompt_rank => {
                self.prompt_rank = rank;
                Field::Prompt
            }
            Some(_) | None => Field::Other,
        }
    }

    /// A key that appears again replaces what it said before.
    fn forget(&mut self) {
        match self.place {
            Place::Field(Field::Model) => {
                self.model = Seen::Absent;
                self.model_name.clear();
            }
            Place::Field(Field::CacheSalt) => {
                self.cache_salt = Seen::Absent;
                self.salt.clear();
            }
            Place::Field(Field::Prompt) => {
                self.prompt = Seen::Absent;
                self.text = ChainBuilder::new();
                self.text_bytes = 0;
            }
            Place::Message(MessageKey::Role) => self.role.clear(),
            Place::Message(MessageKey::Content) => self.content.clear(),
            Place::Root
            | Place::Field(Field::Other)
            | Place::Elements
            | Place::TokenIds
            | Place::Message(MessageKey::Other)
            | Place::Parts
            | Place::Part(_) => {}
        }
    }

    fn start_string(&mut self, at: usize) {
        self.target = match self.place {
            Place::Root => {
                self.root = Seen::WrongType;
                Target::Nowhere
            }
            Place::Field(Field::Model) => {
                self.model = Seen::Value(at..at);
                Target::Model
            }
            Place::Field(Field::CacheSalt) => {
                self.cache_salt = Seen::Value(());
                Target::CacheSalt
            }
            Place::Field(Field::Prompt) => {
                self.prompt = Seen::Value(());
                Target::Prompt
            }
            Place::Elements => Target::Prompt,
            Place::Message(MessageKey::Role) => Target::Role,
            Place::Message(MessageKey::Content) | Place::Part(PartKey::Text) => Target::Content,
            Place::Parts => Target::Content,
            Place::Field(Field::Other)
            | Place::TokenIds
            | Place::Message(MessageKey::Other)
            | Place::Part(PartKey::Other) => Target::Nowhere,
        };
    }

    fn end_string(&mut self, end: usize) {
        if self.target == Target::Model
            && let Seen::Value(span) = &mut self.model
        {
            span.end = end;
        }
        self.target = Target::Nowhere;
    }

    fn number(&mut self, value: Option<u32>) {
        match (self.place, value) {
            (Place::Elements | Place::TokenIds, Some(id)) => self.push_prompt(&id.to_le_bytes()),
            (Place::Elements | Place::TokenIds, None) => self.prompt = Seen::WrongType,
            _ => self.scalar(),
        }
    }

    /// `null` is as good as absent, where that is allowed.
    fn literal(&mut self) {
        self.scalar();
    }

    fn scalar(&mut self) {
        match self.place {
            Place::Root => self.root = Seen::WrongType,
            Place::Field(Field::Model) => self.model = Seen::WrongType,
            Place::Field(Field::Prompt) => self.prompt = Seen::WrongType,
            Place::Field(Field::CacheSalt | Field::Other)
            | Place::Elements
            | Place::TokenIds
            | Place::Message(_)
            | Place::Parts
            | Place::Part(_) => {}
        }
    }

    fn open(&mut self, container: Container) {
        self.place = match (self.place, container) {
            (Place::Root, Container::Object) => {
                self.root = Seen::Value(());
                Place::Field(Field::Other)
            }
            (Place::Field(Field::Prompt), Container::Array) => {
                self.prompt = Seen::Value(());
                Place::Elements
            }
            (Place::Elements, Container::Array) => Place::TokenIds,
            (Place::Elements, Container::Object) => {
                self.role.clear();
                self.content.clear();
                Place::Message(MessageKey::Other)
            }
            (Place::Message(MessageKey::Content), Container::Array) => Place::Parts,
            (Place::Parts, Container::Object) => Place::Part(PartKey::Other),
            (place, _) => {
                self.scalar();
                self.n_skipped = 1;
                place
            }
        };
    }

    fn close(&mut self, container: Container) {
        self.place = match (self.place, container) {
            (Place::Elements, _) => Place::Field(Field::Prompt),
            (Place::TokenIds, _) => Place::Elements,
            (Place::Message(_), Container::Object) => {
                self.end_message();
                Place::Elements
            }
            (Place::Parts, _) => Place::Message(MessageKey::Content),
            (Place::Part(_), _) => Place::Parts,
            (Place::Field(_) | Place::Root | Place::Message(_), _) => Place::Root,
        };
    }

    fn end_message(&mut self) {
        self.role.extend_from_slice(b": ");
        self.content.push(b'\n');
        self.text.push(&self.role).push(&self.content);
        self.text_bytes += (self.role.len() + self.content.len()) as u64;
    }

    fn push_prompt(&mut self, text: &[u8]) {
        self.text.push(text);
        self.text_bytes += text.len() as u64;
    }

    fn finish(self, n_bytes: u64) -> Result<RequestBody, BodyError> {
        let keys = self.prompt_field.keys();
        let key = keys.get(self.prompt_rank).copied().unwrap_or(keys[0]);
        if self.root != Seen::Value(()) {
            return Err(BodyError::NotAnObject);
        }
        let model_span = match self.model {
            Seen::Absent => return Err(BodyError::ModelMissing),
            Seen::WrongType => return Err(BodyError::ModelType),
            Seen::Value(_) if self.model_name.is_empty() => return Err(BodyError::ModelType),
            Seen::Value(_) if self.model_name.len() > MAX_MODEL_NAME => {
                return Err(BodyError::ModelTooLong { limit: MAX_MODEL_NAME });
            }
            Seen::Value(span) => span,
        };
        match self.prompt {
            Seen::Absent if self.has_unread_prompt => {}
            Seen::Absent => return Err(BodyError::PromptMissing { key }),
            Seen::WrongType => return Err(BodyError::PromptType { key }),
            Seen::Value(()) if self.text_bytes == 0 => return Err(BodyError::PromptEmpty { key }),
            Seen::Value(()) => {}
        }
        Ok(RequestBody {
            model: lossy(self.model_name),
            model_span,
            cache_salt: matches!(self.cache_salt, Seen::Value(())).then(|| lossy(self.salt)),
            prompt: self.text,
            prompt_bytes: self.text_bytes,
            n_bytes,
        })
    }
}

/// The scanner checked the bytes already, so nothing is lost.
fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
