//! The prompts of a body: usually one, several in an array, or none.

use super::fields::{Field, Fields};
use super::source::{BodySource, Inner, Span, ValueKind, Walk};
use super::text::PromptText;
use super::writer::Writer;
use super::{Api, BodyError, conversation};

/// Most prompts of a body that are read, from the first on: all are looked up and noted while the lock of the picks is
/// held.
pub const MAX_PROMPTS: usize = 128;

/// Fields besides the messages that change a conversation.
const BESIDE_MESSAGES: [Field; 9] = [
    Field::Tools,
    Field::Instructions,
    Field::ChatTemplate,
    Field::ChatTemplateKwargs,
    Field::Documents,
    Field::ReasoningEffort,
    Field::Reasoning,
    Field::AddGenerationPrompt,
    Field::ContinueFinalMessage,
];

/// The prompts, and properties that are not in their texts.
#[derive(Debug)]
pub(super) struct Prompts {
    pub(super) texts: Result<Vec<PromptText>, BodyError>,
    pub(super) has_media: bool,
    pub(super) has_billing_line: bool,
}

/// Reads the prompts. `hashed` is the prompt that was hashed as it arrived, and its field.
pub(super) fn read(
    source: &BodySource<'_>,
    api: Api,
    fields: &Fields,
    hashed: Option<(Field, PromptText)>,
) -> Prompts {
    let plain = |texts| Prompts { texts, has_media: false, has_billing_line: false };
    if api == Api::ModelOnly {
        return plain(Ok(Vec::new()));
    }
    let Some((field, key)) = api.fields().iter().find(|(field, _)| fields.get(*field).is_some()) else {
        return plain(absent(api, fields));
    };
    let span = fields.get(*field).cloned().unwrap_or_default();
    let is_conversation = api.is_conversation(*field);
    let is_plain = !is_conversation || BESIDE_MESSAGES.iter().all(|beside| fields.get(*beside).is_none());
    let mut prompts = match hashed {
        Some((hashed_field, text)) if hashed_field == *field && is_plain => plain(Ok(vec![text])),
        _ if is_conversation => conversation(source, api, fields, &span),
        _ => plain(several(source, api, fields, *field).ok_or(BodyError::PromptType { key })),
    };
    if is_conversation && *field == Field::Messages && source.kind(&span) != ValueKind::Array {
        prompts.texts = Err(BodyError::PromptType { key });
    }
    if let Ok(texts) = &prompts.texts
        && texts.iter().all(|text| text.n_bytes == 0)
    {
        let stands_for_none = api != Api::Any && fields.get(Field::PromptEmbeds).is_some();
        prompts.texts = if stands_for_none { Ok(Vec::new()) } else { Err(BodyError::PromptEmpty { key }) };
    }
    prompts
}

// === impl Api ===

impl Api {
    /// Fields that may contain the prompt, and their keys; if a body has several, the first in this list counts.
    fn fields(self) -> &'static [(Field, &'static str)] {
        match self {
            Self::Chat | Self::Messages => &[(Field::Messages, "messages")],
            Self::Completions => &[(Field::Prompt, "prompt")],
            Self::Responses => &[(Field::Input, "input")],
            Self::Pooling => &[
                (Field::Input, "input"),
                (Field::Messages, "messages"),
                (Field::First, "query"),
                (Field::Second, "documents"),
            ],
            Self::Generate => &[(Field::TokenIds, "token_ids")],
            Self::Any => &[(Field::Messages, "messages"), (Field::Prompt, "prompt")],
            Self::Invocations => &[
                (Field::Messages, "messages"),
                (Field::Prompt, "prompt"),
                (Field::Input, "input"),
                (Field::First, "query"),
            ],
            Self::ModelOnly => &[],
        }
    }

    /// Returns true if the value of `field` is a conversation, from which a chat template makes the prompt.
    fn is_conversation(self, field: Field) -> bool {
        field == Field::Messages || self == Self::Responses
    }
}

fn absent(api: Api, fields: &Fields) -> Result<Vec<PromptText>, BodyError> {
    let key = api.fields().first().map_or("prompt", |(_, key)| *key);
    let null = api.fields().iter().find(|(field, _)| fields.is_null(*field));
    let has_embeds = matches!(api, Api::Completions | Api::Any | Api::Invocations)
        && fields.get(Field::PromptEmbeds).is_some();
    match null {
        Some((_, key)) if api == Api::Any || !has_embeds => Err(BodyError::PromptType { key }),
        _ if has_embeds => Ok(Vec::new()),
        _ => Err(BodyError::PromptMissing { key }),
    }
}

fn conversation(source: &BodySource<'_>, api: Api, fields: &Fields, messages: &Span) -> Prompts {
    let written = conversation::write(source, api, fields, messages);
    Prompts {
        texts: Ok(vec![written.text]),
        has_media: written.has_media,
        has_billing_line: written.has_billing_line,
    }
}

/// A prompt for each text or array of token ids in the fields; `None` if an element is neither.
fn several(source: &BodySource<'_>, api: Api, fields: &Fields, field: Field) -> Option<Vec<PromptText>> {
    let mut texts = Vec::new();
    let pairs = [Field::First, Field::Second, Field::Documents];
    let all: &[Field] = if pairs.contains(&field) { &pairs } else { &[field] };
    for span in all.iter().filter_map(|field| fields.get(*field)) {
        let is_read = match source.kind(span) {
            ValueKind::Text => push_text(source, span, &mut texts),
            ValueKind::Array => push_each(source, api, span, &mut texts),
            ValueKind::Object | ValueKind::Number | ValueKind::Literal(_) => api == Api::Pooling,
        };
        if !is_read {
            return None;
        }
    }
    Some(texts)
}

fn push_each(source: &BodySource<'_>, api: Api, span: &Span, texts: &mut Vec<PromptText>) -> bool {
    let mut are_read = true;
    source.walk(span, |inner| {
        if let Inner::Value(_, element) = inner {
            match source.kind(&element) {
                ValueKind::Text => are_read &= push_text(source, &element, texts),
                ValueKind::Array => are_read &= push_ids(source, &element, texts),
                // A single prompt of token ids, or an element that is neither text nor ids.
                ValueKind::Number => {
                    are_read &= push_ids(source, span, texts);
                    return Walk::Stop;
                }
                ValueKind::Object | ValueKind::Literal(_) => are_read &= api == Api::Pooling,
            }
        }
        if texts.len() < MAX_PROMPTS { Walk::On } else { Walk::Stop }
    });
    are_read
}

fn push_text(source: &BodySource<'_>, span: &Span, texts: &mut Vec<PromptText>) -> bool {
    let mut writer = Writer::new(source);
    writer.text(span);
    texts.push(writer.finish().text);
    true
}

fn push_ids(source: &BodySource<'_>, span: &Span, texts: &mut Vec<PromptText>) -> bool {
    let mut writer = Writer::new(source);
    let are_ids = writer.token_ids(span);
    texts.push(writer.finish().text);
    are_ids
}
