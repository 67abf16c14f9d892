//! Scanner of request bodies: finds what a body asks for while its chunks arrive. It never changes the bytes.
//!
//! One pass checks the document, finds its fields, and hashes a plain prompt ([`live`]). If the engine renders text in
//! another order than the body has it, the text is read again from the complete chunks ([`conversation`]); no copy of
//! it is kept. If a key appears twice, the last one counts, the same as in the engine. Limits: [`MAX_NESTING`] levels,
//! [`MAX_PROMPTS`] prompts; the caller bounds the size.

mod live;
mod lookup;
mod prompts;
mod conversation;
mod fields;
mod utf8;
mod writer;
mod source;
mod text;

use std::ops::Range;

use bytes::Bytes;

use self::fields::{Field, Fields};
use self::live::{Live, Shape, ValueState};
pub use self::lookup::{Lookup, Unseen};
pub use self::prompts::MAX_PROMPTS;
use self::source::{BodySource, Span, ValueKind, Word};
pub use self::text::PromptText;
use self::utf8::Utf8Checker;
use crate::json::{Container, Event, JsonError, Lexer, Literal, MAX_DEPTH};

/// Deepest nesting of arrays and objects in a body.
pub const MAX_NESTING: u32 = MAX_DEPTH;
/// Longest model name that is accepted, in bytes: the 256 characters of an InferenceModel's name, up to four bytes
/// each.
pub const MAX_MODEL_NAME: usize = 1024;
/// Bytes of a salt that are read; the rest is ignored. vLLM 0.33 allows 128 characters.
const MAX_SALT: usize = 1024;
/// U+FEFF in UTF-8 at the start of a document: engines skip it.
const BYTE_ORDER_MARK: [u8; 3] = [0xef, 0xbb, 0xbf];

/// Reason why a body is refused, as the client sees it.
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
    /// The field that is at fault, if it is one.
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

/// The API that a body is for. It decides where the prompt is and how the engine reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Api {
    /// Chat completions: `messages` and `tools`.
    Chat,
    /// Completions: `prompt`, or `prompt_embeds`, which do not show a prefix.
    Completions,
    /// Responses: `instructions`, `tools` and `input`.
    Responses,
    /// Anthropic's messages: `system`, `tools` and `messages`.
    Messages,
    /// Embeddings, scores and others that generate nothing: `input`, `messages`, or pairs of texts.
    Pooling,
    /// vLLM's own API, whose prompts are tokens: `token_ids`.
    Generate,
    /// A request without a path, which must be one of OpenAI's: `messages`, or `prompt` if there are none. It must have
    /// one of them.
    Any,
    /// The path does not name an API, and the body need not have a prompt: any of the above.
    Invocations,
    /// The engine computes no prompt, or the prompt's place is unknown: only the model's name is read.
    ModelOnly,
}

/// The name of the model that a body asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelName {
    pub name: String,
    /// Bytes of the value in the body, with its quotes.
    pub span: Range<usize>,
}

/// The contents of a complete body.
#[derive(Debug)]
pub struct RequestBody {
    pub api: Api,
    /// The model's name. Engines take a missing or empty name for their own model, so the pool decides if it is a
    /// fault.
    pub model: Result<ModelName, BodyError>,
    pub cache_salt: Option<String>,
    /// The text of each prompt, as the engine renders it: messages as `role: content\n`, tools and calls as JSON, text
    /// as it is, token ids as 4 bytes each (little endian). Engines know prompts that are not read here, so they refuse
    /// a missing one themselves.
    pub prompts: Result<Vec<PromptText>, BodyError>,
    pub lookup: Lookup,
    /// Length of the body in bytes.
    pub n_bytes: u64,
}

/// Scans one body.
#[derive(Debug)]
pub struct BodyScanner {
    n_bytes: u64,
    utf8: Utf8Checker,
    /// Number of bytes of a byte order mark so far; all of them once the document has begun.
    n_marked: usize,
    lexer: Lexer,
    root: Root,
}

/// The scanned part of the root object.
#[derive(Debug)]
struct Root {
    api: Api,
    depth: u32,
    is_object: bool,
    is_key: bool,
    key: Word,
    field: Field,
    value_start: usize,
    fields: Fields,
    /// The hashed text of the current value, while the value is plain.
    live: Option<Live>,
    /// The prompt that was hashed as it arrived, and its field.
    plain: Option<(Field, PromptText)>,
}

// === impl Api ===

impl Api {
    /// Returns true if the body must be JSON, and must name a model if the pool has InferenceModels. Any other body
    /// goes on unchanged.
    #[must_use]
    pub fn names_its_model(self) -> bool {
        match self {
            Self::Chat
            | Self::Completions
            | Self::Responses
            | Self::Messages
            | Self::Pooling
            | Self::Generate
            | Self::Any => true,
            Self::Invocations | Self::ModelOnly => false,
        }
    }

    /// The shape that the value of `field` must have to be hashed as it arrives.
    fn shape(self, field: Field) -> Option<Shape> {
        match (self, field) {
            (Self::Chat | Self::Any | Self::Invocations, Field::Messages) => Some(Shape::Chat),
            (Self::Completions | Self::Any | Self::Invocations, Field::Prompt)
            | (Self::Pooling, Field::Input)
            | (Self::Generate, Field::TokenIds) => Some(Shape::Prompt),
            (Self::Responses, Field::Input) => Some(Shape::UserText),
            _ => None,
        }
    }
}

// === impl BodyScanner ===

impl BodyScanner {
    #[must_use]
    pub fn new(api: Api) -> Self {
        Self {
            n_bytes: 0,
            utf8: Utf8Checker::default(),
            n_marked: 0,
            lexer: Lexer::new(),
            root: Root::new(api),
        }
    }

    /// Scans the next chunk.
    ///
    /// # Errors
    /// If the body cannot become valid JSON any more, or is nested too deeply.
    pub fn push(&mut self, mut chunk: &[u8]) -> Result<(), BodyError> {
        self.n_bytes += chunk.len() as u64;
        self.utf8.push(chunk)?;
        while self.n_marked < BYTE_ORDER_MARK.len() {
            let Some((first, rest)) = chunk.split_first() else { return Ok(()) };
            if *first == BYTE_ORDER_MARK[self.n_marked] {
                (self.n_marked, chunk) = (self.n_marked + 1, rest);
                self.lexer = Lexer::starting_at(self.n_marked);
            } else if self.n_marked == 0 {
                self.n_marked = BYTE_ORDER_MARK.len();
            } else {
                return Err(BodyError::Syntax { offset: 0, problem: "expected a value" });
            }
        }
        loop {
            if let Some(text) = self.root.live.as_mut().and_then(Live::current_text)
                && self.lexer.read_text(&mut chunk, |piece| text.push(piece))
            {
                self.root.end_string(&self.lexer);
            }
            // Most of a body is read without an event for each byte that has a meaning.
            if let Some(key) = self.lexer.read_key(&mut chunk) {
                self.root.take_key(key);
            }
            if let Some(at) = self.lexer.begin_string(&mut chunk) {
                self.root.start_string(at);
                if self.root.live.as_ref().is_none_or(Live::reads_word)
                    && let Some(word) = self.lexer.read_word(&mut chunk)
                {
                    self.root.push_text(word);
                    self.root.end_string(&self.lexer);
                }
                continue;
            }
            if let Some(event) = self.lexer.read_bracket(&mut chunk) {
                self.root.apply(event, &self.lexer);
                continue;
            }
            let Some(event) = self.lexer.next(&mut chunk)? else { return Ok(()) };
            match event {
                Event::Text(text) => self.root.push_text(text),
                Event::Char(char) => self.root.push_text(char.encode_utf8(&mut [0; 4]).as_bytes()),
                Event::StringStart { at } => self.root.start_string(at),
                Event::StringEnd { end: _ } => self.root.end_string(&self.lexer),
                Event::Open(_)
                | Event::Close(_)
                | Event::KeyStart
                | Event::KeyEnd
                | Event::Number(_)
                | Event::Literal(_) => self.root.apply(event, &self.lexer),
            }
        }
    }

    /// Returns what the body asks for, once after its last chunk. `chunks` are all chunks that were pushed, cut in any way.
    ///
    /// # Errors
    /// If the document is incomplete or not an object.
    pub fn finish(&mut self, chunks: &[Bytes]) -> Result<RequestBody, BodyError> {
        let Self { n_bytes, utf8, n_marked: _, lexer, root } = self;
        utf8.finish()?;
        lexer.finish()?;
        let Root { api, is_object, fields, plain, .. } = root;
        let (n_bytes, api) = (*n_bytes, *api);
        if !*is_object {
            return Err(BodyError::NotAnObject);
        }
        let source = BodySource::new(chunks);
        let prompts = prompts::read(&source, api, fields, plain.take());
        Ok(RequestBody {
            api,
            model: model(&source, fields),
            cache_salt: cache_salt(&source, fields),
            lookup: lookup::of(&source, api, fields, &prompts),
            prompts: prompts.texts,
            n_bytes,
        })
    }
}

// === impl Root ===

impl Root {
    fn new(api: Api) -> Self {
        Self {
            api,
            depth: 0,
            is_object: false,
            is_key: false,
            key: Word::default(),
            field: Field::Other,
            value_start: 0,
            fields: Fields::default(),
            live: None,
            plain: None,
        }
    }

    /// Takes text of the current key or string.
    fn push_text(&mut self, text: &[u8]) {
        if self.is_key {
            self.key.push(text);
        } else if let Some(live) = &mut self.live
            && live.push_text(text) == ValueState::GivenUp
        {
            self.live = None;
        }
    }

    /// Takes a whole key.
    fn take_key(&mut self, key: &[u8]) {
        if self.depth == 1 {
            self.field = Field::of(key);
        } else if let Some(live) = &mut self.live
            && live.take_key(key) == ValueState::GivenUp
        {
            self.live = None;
        }
    }

    /// Takes the start of a string that is a value.
    fn start_string(&mut self, at: usize) {
        if self.depth == 1 {
            self.begin_value(at);
        }
        self.apply_live(Event::StringStart { at });
    }

    /// Takes the end of the current string, before which `lexer` is.
    fn end_string(&mut self, lexer: &Lexer) {
        let event = Event::StringEnd { end: lexer.offset() };
        self.apply_live(event);
        if self.depth == 1 {
            self.end_value(lexer.offset(), event);
        }
    }

    /// Takes any other event.
    fn apply(&mut self, event: Event<'_>, lexer: &Lexer) {
        if self.depth > 1 && !matches!(event, Event::Open(_) | Event::Close(_)) {
            return self.apply_live(event);
        }
        match event {
            Event::Open(container) => {
                match self.depth {
                    0 => self.is_object = container == Container::Object,
                    1 => self.begin_value(lexer.value_start()),
                    _ => {}
                }
                self.depth += 1;
            }
            Event::Close(_) => self.depth -= 1,
            Event::Number(_) | Event::Literal(_) if self.depth == 1 => self.begin_value(lexer.value_start()),
            Event::KeyStart if self.depth == 1 => {
                self.is_key = true;
                self.key.clear();
                return;
            }
            Event::KeyEnd if self.is_key => {
                self.is_key = false;
                let key = self.key;
                return self.take_key(key.as_bytes());
            }
            Event::StringStart { .. }
            | Event::StringEnd { .. }
            | Event::Number(_)
            | Event::Literal(_)
            | Event::KeyStart
            | Event::KeyEnd
            | Event::Text(_)
            | Event::Char(_) => {}
        }
        self.apply_live(event);
        if self.depth == 1 && matches!(event, Event::Close(_) | Event::Number(_) | Event::Literal(_)) {
            self.end_value(lexer.offset(), event);
        }
    }

    #[inline(always)]
    fn apply_live(&mut self, event: Event<'_>) {
        if let Some(live) = &mut self.live
            && live.apply(event) == ValueState::GivenUp
        {
            self.live = None;
        }
    }

    fn begin_value(&mut self, start: usize) {
        self.value_start = start;
        if let Some(shape) = self.api.shape(self.field) {
            self.live = Some(Live::new(shape));
            self.plain = None;
        }
    }

    fn end_value(&mut self, end: usize, last: Event<'_>) {
        let is_null = last == Event::Literal(Literal::Null);
        self.fields.note(self.field, self.value_start..end, is_null);
        if let Some(live) = self.live.take() {
            self.plain = Some((self.field, live.finish()));
        }
        self.field = Field::Other;
    }
}

fn model(source: &BodySource<'_>, fields: &Fields) -> Result<ModelName, BodyError> {
    let Some(span) = fields.get(Field::Model) else {
        let missing =
            if fields.is_null(Field::Model) { BodyError::ModelType } else { BodyError::ModelMissing };
        return Err(missing);
    };
    if source.kind(span) != ValueKind::Text {
        return Err(BodyError::ModelType);
    }
    let name = short_text(source, span, MAX_MODEL_NAME + 1);
    match name.len() {
        0 => Err(BodyError::ModelType),
        1..=MAX_MODEL_NAME => Ok(ModelName { name, span: span.clone() }),
        _ => Err(BodyError::ModelTooLong { limit: MAX_MODEL_NAME }),
    }
}

fn cache_salt(source: &BodySource<'_>, fields: &Fields) -> Option<String> {
    let span = fields.get(Field::CacheSalt)?;
    (source.kind(span) == ValueKind::Text).then(|| short_text(source, span, MAX_SALT))
}

/// The text at `span`, or its first `limit` bytes.
fn short_text(source: &BodySource<'_>, span: &Span, limit: usize) -> String {
    let mut bytes = Vec::new();
    source.text(span, |text| {
        let n_kept = text.len().min(limit - bytes.len());
        bytes.extend_from_slice(&text[..n_kept]);
    });
    // The first pass has checked the bytes, so only a character that the limit cuts is lost.
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
