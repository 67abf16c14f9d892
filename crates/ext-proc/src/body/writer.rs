//! Writes messages, tools and calls as the text of a prompt, the same for every API.

use super::source::{BodySource, Inner, Span, ValueKind, Walk};
use super::text::{BillingLine, EmbeddedJson, Identity, PromptText, SystemText, TextWriter};
use crate::json::{Event, Literal};

/// Fields of a content part that contain an image, sound or video, or its location.
const MEDIA: [&[u8]; 12] = [
    b"image_url",
    b"input_audio",
    b"audio_url",
    b"video_url",
    b"image",
    b"audio",
    b"video",
    b"image_embeds",
    b"audio_embeds",
    b"source",
    b"file",
    b"file_id",
];

/// The type of a message's part, and the positions of its fields.
#[derive(Debug, Default)]
pub(super) struct ContentPart {
    pub(super) kind: Option<Span>,
    pub(super) text: Option<Span>,
    media: Option<Span>,
    /// Id that the client gives a medium (vLLM's `uuid`).
    uuid: Option<Span>,
    refusal: Option<Span>,
    pub(super) thinking: Option<Span>,
    pub(super) name: Option<Span>,
    pub(super) input: Option<Span>,
    pub(super) content: Option<Span>,
}

#[derive(Debug)]
pub(super) struct Writer<'a> {
    pub(super) source: &'a BodySource<'a>,
    text: TextWriter,
    /// True if a part of the current message's content is written.
    has_part: bool,
    has_media: bool,
    has_billing_line: bool,
}

/// A written text, and its differences from the engine's prompt.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) text: PromptText,
    pub(super) has_media: bool,
    /// True if a line was left out that older engines keep.
    pub(super) has_billing_line: bool,
}

// === impl ContentPart ===

impl ContentPart {
    pub(super) fn note(&mut self, key: &[u8], span: Span) {
        let field = match key {
            b"type" => &mut self.kind,
            b"text" => &mut self.text,
            b"uuid" => &mut self.uuid,
            b"refusal" => &mut self.refusal,
            b"thinking" => &mut self.thinking,
            b"name" => &mut self.name,
            b"input" => &mut self.input,
            b"content" => &mut self.content,
            _ if MEDIA.contains(&key) => &mut self.media,
            _ => return,
        };
        *field = Some(span);
    }
}

// === impl Writer ===

impl<'a> Writer<'a> {
    pub(super) fn new(source: &'a BodySource<'a>) -> Self {
        Self { source, text: TextWriter::new(), has_part: false, has_media: false, has_billing_line: false }
    }

    pub(super) fn finish(self) -> Written {
        let Self { source: _, text, has_part: _, has_media, has_billing_line } = self;
        Written { text: text.finish(), has_media, has_billing_line }
    }

    pub(super) fn begin_message(&mut self, role: &[u8]) {
        self.text.push(role);
        self.text.push(b": ");
        self.has_part = false;
    }

    pub(super) fn end_message(&mut self) {
        self.text.push(b"\n");
    }

    /// Writes `text` between two texts that the engine joins into one message.
    pub(super) fn separator(&mut self, text: &[u8]) {
        if self.has_part {
            self.text.push(text);
            self.has_part = false;
        }
    }

    /// Writes a text as it is.
    pub(super) fn text(&mut self, span: &Span) {
        let Self { source, text, .. } = self;
        source.text(span, |piece| text.push(piece));
    }

    /// Writes token ids, four bytes each, little endian. Returns false if one is not an integer of 32 bits.
    pub(super) fn token_ids(&mut self, span: &Span) -> bool {
        let mut are_ids = true;
        let Self { source, text, .. } = self;
        source.events(span, |event| match event {
            Event::Number(number) => match number.value {
                Some(id) => text.push(&id.to_le_bytes()),
                None => are_ids = false,
            },
            Event::Open(_) | Event::Close(_) => {}
            _ => are_ids = false,
        });
        are_ids
    }

    /// Writes a message's content: a text, or parts with a line each.
    pub(super) fn content(&mut self, span: &Span) {
        match self.source.kind(span) {
            ValueKind::Text => self.part_text(span),
            ValueKind::Array => self.each_part(span, Self::part),
            ValueKind::Object | ValueKind::Number | ValueKind::Literal(_) => {}
        }
    }

    /// Writes the content of a system message.
    pub(super) fn system_content(&mut self, span: &Span, line: BillingLine) {
        match self.source.kind(span) {
            ValueKind::Text => self.system_text(span, line),
            ValueKind::Array => self.each_part(span, |writer, part, span| match &part.text {
                Some(text) if part.media.is_none() => writer.system_text(text, line),
                _ if writer.source.kind(span) == ValueKind::Text => writer.system_text(span, line),
                _ => writer.part(part, span),
            }),
            ValueKind::Object | ValueKind::Number | ValueKind::Literal(_) => {}
        }
    }

    /// Calls `each` with every part in the array at `span`, and its position.
    pub(super) fn each_part(&mut self, span: &Span, mut each: impl FnMut(&mut Self, &ContentPart, &Span)) {
        let mut part = ContentPart::default();
        self.source.walk(span, |inner| {
            match inner {
                Inner::Field(key, span) => part.note(key, span),
                Inner::Value(_, span) => each(self, &std::mem::take(&mut part), &span),
            }
            Walk::On
        });
    }

    pub(super) fn part(&mut self, part: &ContentPart, span: &Span) {
        if self.source.kind(span) == ValueKind::Text {
            return self.part_text(span);
        }
        let kind = part.kind.as_ref().map(|kind| self.source.word(kind)).unwrap_or_default();
        let text = match kind.as_bytes() {
            b"text" | b"input_text" | b"output_text" | b"summary_text" | b"reasoning_text" => &part.text,
            b"refusal" => &part.refusal,
            b"thinking" => &part.thinking,
            b"tool_reference" => &part.name,
            _ if part.media.is_none() && part.uuid.is_none() && part.text.is_some() => &part.text,
            _ => {
                let media = self.identity(part, span);
                self.has_media = true;
                self.text.push_media(media);
                self.has_part = true;
                return;
            }
        };
        if let Some(text) = text {
            self.part_text(text);
        }
    }

    /// Writes declarations of functions: a chat's, or the flat ones of the Responses and Messages APIs.
    pub(super) fn tools(&mut self, span: &Span) {
        if self.source.kind(span) != ValueKind::Array {
            return;
        }
        let mut n_tools = 0_u32;
        self.source.walk(span, |inner| {
            if let Inner::Value(_, span) = inner {
                n_tools += u32::from(self.tool(&span, if n_tools == 0 { b"tools:\n" } else { b"\n" }));
            }
            Walk::On
        });
        if n_tools > 0 {
            self.text.push(b"\n");
        }
    }

    /// Writes the model's call of a function; `arguments` is an object, or a text that contains one.
    pub(super) fn call(&mut self, name: Option<&Span>, arguments: Option<&Span>) {
        self.text.push(b"\n{\"name\": ");
        self.json(name);
        self.text.push(b", \"arguments\": ");
        let Self { source, text, .. } = self;
        match arguments {
            Some(span) if source.kind(span) == ValueKind::Text => {
                let mut json = EmbeddedJson::new();
                source.text(span, |piece| json.push(piece, |piece| text.push(piece)));
            }
            span => self.json(span),
        }
        self.text.push(b"}");
        self.has_part = true;
    }

    /// Writes a field whose effect on the prompt the picker does not know.
    pub(super) fn option(&mut self, key: &str, span: &Span) {
        let mut value = Identity::default();
        self.source.json(span, |piece| value.push(piece));
        self.text.push_option(key, value);
    }

    fn part_text(&mut self, span: &Span) {
        let mut has_part = self.has_part;
        let Self { source, text, .. } = self;
        let mut is_begun = false;
        source.text(span, |piece| {
            if !std::mem::replace(&mut is_begun, true) && has_part {
                text.push(b"\n");
            }
            has_part = true;
            text.push(piece);
        });
        self.has_part = has_part;
    }

    fn system_text(&mut self, span: &Span, line: BillingLine) {
        let mut has_part = self.has_part;
        let mut system = SystemText::new(line);
        let Self { source, text, .. } = self;
        let mut is_begun = false;
        let joint: &[u8] = match line {
            BillingLine::Cut => b"\n",
            BillingLine::CutBlock => b"",
        };
        let mut keep = |piece: &[u8]| {
            if !std::mem::replace(&mut is_begun, true) && has_part {
                text.push(joint);
            }
            has_part = true;
            text.push(piece);
        };
        source.text(span, |piece| system.push(piece, &mut keep));
        self.has_billing_line |= system.has_line();
        system.finish(keep);
        self.has_part = has_part;
    }

    /// Writes `joint` and the declaration, unless it does not declare a function.
    fn tool(&mut self, span: &Span, joint: &[u8]) -> bool {
        let source = self.source;
        let (mut kind, mut function) = (None, None);
        source.fields(span, |key, span| match key {
            b"type" => kind = Some(source.word(&span)),
            b"function" => function = Some(span),
            _ => {}
        });
        // Engines show only functions; other tools are for services that run them themselves.
        if kind.is_some_and(|kind| !matches!(kind.as_bytes(), b"" | b"function" | b"custom")) {
            return false;
        }
        let [mut name, mut description, mut parameters, mut strict, mut defer_loading] = [const { None }; 5];
        source.fields(&function.unwrap_or_else(|| span.clone()), |key, span| {
            let field = match key {
                b"name" => &mut name,
                b"description" => &mut description,
                b"parameters" | b"input_schema" => &mut parameters,
                b"strict" => &mut strict,
                b"defer_loading" => &mut defer_loading,
                _ => return,
            };
            *field = (source.kind(&span) != ValueKind::Literal(Literal::Null)).then_some(span);
        });
        self.text.push(joint);
        self.text.push(b"{\"type\": \"function\", \"function\": {\"name\": ");
        self.json(name.as_ref());
        self.text.push(b", \"description\": ");
        self.json(description.as_ref());
        self.text.push(b", \"parameters\": ");
        self.json(parameters.as_ref());
        for (key, span) in [("strict", strict), ("defer_loading", defer_loading)] {
            if let Some(span) = span {
                self.text.push(format!(", \"{key}\": ").as_bytes());
                self.json(Some(&span));
            }
        }
        self.text.push(b"}}");
        true
    }

    fn json(&mut self, span: Option<&Span>) {
        let Self { source, text, .. } = self;
        match span {
            Some(span) => source.json(span, |piece| text.push(piece)),
            None => text.push(b"null"),
        }
    }

    /// Identity of a part: equal for equal URLs or data, whatever its other fields are. An unknown part is identified
    /// by its whole value.
    fn identity(&self, part: &ContentPart, span: &Span) -> Identity {
        let mut identity = Identity::default();
        let mut push = |piece: &[u8]| identity.push(piece);
        let Some(media) = part.uuid.as_ref().or(part.media.as_ref()) else {
            self.source.json(span, push);
            return identity;
        };
        let (mut url, mut data, mut media_type) = (None, None, None);
        self.source.fields(media, |key, span| match key {
            b"url" => url = Some(span),
            b"data" => data = Some(span),
            b"media_type" => media_type = Some(span),
            _ => {}
        });
        match (self.source.kind(media), url, data, media_type) {
            (ValueKind::Text, ..) => self.source.text(media, push),
            (_, Some(url), ..) => self.source.text(&url, push),
            // The data URL that the Messages API writes in this form.
            (_, None, Some(data), Some(media_type)) => {
                push(b"data:");
                self.source.text(&media_type, &mut push);
                push(b";base64,");
                self.source.text(&data, push);
            }
            _ => self.source.json(media, push),
        }
        identity
    }
}
