//! Writes the conversations of the three APIs as one text, in the order of the engine's chat template: the leading
//! system message, the tools, the other messages, and then what else decides about the prompt.

use super::source::{BodySource, Inner, Span, ValueKind, Walk, Word};
use super::text::BillingLine;
use super::writer::{ContentPart, Writer, Written};
use super::{Api, Field, Fields};

/// A message or an item, as the positions of its fields. The Responses API spreads an assistant's message over several
/// items.
#[derive(Debug, Default)]
struct Message {
    kind: Option<Span>,
    role: Option<Span>,
    content: Option<Span>,
    reasoning: Option<Span>,
    tool_calls: Option<Span>,
    /// Name in an item that is a call, or the output of one.
    name: Option<Span>,
    arguments: Option<Span>,
    output: Option<Span>,
    summary: Option<Span>,
}

/// Facts about all messages that must be known before the first is written.
#[derive(Debug, Default)]
struct Survey {
    leads_with_system: bool,
    /// True if there are developer messages. Chat templates do not know the role, so the engine merges these and the
    /// system's into one system message.
    has_developer: bool,
    /// True if a conversation of the Messages API contains system messages.
    has_system: bool,
    /// Position of the last question: reasoning is shown only after it.
    last_user: Option<usize>,
}

/// The part of an assistant's message that is open, in the Responses API.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Open {
    None,
    Reasoning,
    Content,
}

struct Conversation<'a> {
    writer: Writer<'a>,
    api: Api,
    fields: &'a Fields,
    messages: &'a Span,
    survey: Survey,
}

/// The text of the conversation in the array at `messages`.
pub(super) fn write(source: &BodySource<'_>, api: Api, fields: &Fields, messages: &Span) -> Written {
    let survey = Survey::new(source, api, messages);
    let mut conversation = Conversation { writer: Writer::new(source), api, fields, messages, survey };
    conversation.write();
    conversation.writer.finish()
}

// === impl Message ===

impl Message {
    fn note(&mut self, key: &[u8], span: Span) {
        let field = match key {
            b"type" => &mut self.kind,
            b"role" => &mut self.role,
            b"content" => &mut self.content,
            b"reasoning" | b"reasoning_content" | b"thinking" => &mut self.reasoning,
            b"tool_calls" => &mut self.tool_calls,
            b"name" => &mut self.name,
            b"arguments" => &mut self.arguments,
            b"output" => &mut self.output,
            b"summary" => &mut self.summary,
            _ => return,
        };
        *field = Some(span);
    }

    fn role(&self, source: &BodySource<'_>) -> Word {
        self.role.as_ref().map(|role| source.word(role)).unwrap_or_default()
    }
}

/// Calls `each` with every message in the array at `span`: its number, its fields, its role and its position.
fn each_message(
    source: &BodySource<'_>,
    span: &Span,
    mut each: impl FnMut(usize, &Message, Word, &Span) -> Walk,
) {
    let (mut message, mut message_idx) = (Message::default(), 0);
    source.walk(span, |inner| match inner {
        Inner::Field(key, span) => {
            message.note(key, span);
            Walk::On
        }
        Inner::Value(_, span) => {
            let message = std::mem::take(&mut message);
            message_idx += 1;
            each(message_idx - 1, &message, message.role(source), &span)
        }
    });
}

// === impl Survey ===

impl Survey {
    fn new(source: &BodySource<'_>, api: Api, messages: &Span) -> Self {
        let mut survey = Self::default();
        if source.kind(messages) != ValueKind::Array {
            return survey;
        }
        each_message(source, messages, |message_idx, message, role, _| {
            match role.as_bytes() {
                b"system" => {
                    survey.has_system = true;
                    survey.leads_with_system |= message_idx == 0;
                }
                b"developer" => survey.has_developer = true,
                b"user" if api != Api::Messages || asks(source, message) => {
                    survey.last_user = Some(message_idx);
                }
                _ => {}
            }
            Walk::On
        });
        survey
    }
}

/// Returns true if a user's message of the Messages API contains more than results of tools.
fn asks(source: &BodySource<'_>, message: &Message) -> bool {
    let Some(content) = &message.content else { return false };
    let mut asks = source.kind(content) == ValueKind::Text;
    let mut kind = Word::default();
    if source.kind(content) == ValueKind::Array {
        source.walk(content, |inner| {
            match inner {
                Inner::Field(b"type", span) => kind = source.word(&span),
                Inner::Field(..) => {}
                Inner::Value(..) => asks |= kind.as_bytes() != b"tool_result",
            }
            if asks { Walk::Stop } else { Walk::On }
        });
    }
    asks
}

// === impl Conversation ===

impl Conversation<'_> {
    fn write(&mut self) {
        if let Some(template) = self.fields.get(Field::ChatTemplate) {
            self.writer.option("chat_template", template);
        }
        self.leading_system();
        if let Some(tools) = self.fields.get(Field::Tools) {
            self.writer.tools(tools);
        }
        match self.api {
            Api::Responses => self.items(),
            Api::Messages => self.each_other(Self::blocks),
            Api::Chat
            | Api::Completions
            | Api::Pooling
            | Api::Generate
            | Api::Any
            | Api::Invocations
            | Api::ModelOnly => self.each_other(Self::message),
        }
        for (field, key) in [
            (Field::Documents, "documents"),
            (Field::ChatTemplateKwargs, "chat_template_kwargs"),
            (Field::ReasoningEffort, "reasoning_effort"),
            (Field::Reasoning, "reasoning"),
            (Field::AddGenerationPrompt, "add_generation_prompt"),
            (Field::ContinueFinalMessage, "continue_final_message"),
        ] {
            if let Some(value) = self.fields.get(field) {
                self.writer.option(key, value);
            }
        }
    }

    /// Writes the instructions, and the system messages that the engine puts before the tools.
    fn leading_system(&mut self) {
        let field = match self.api {
            Api::Responses => self.fields.get(Field::Instructions),
            Api::Messages => self.fields.get(Field::System),
            _ => None,
        };
        let Survey { leads_with_system, has_developer, has_system, last_user: _ } = self.survey;
        let is_inline = self.api == Api::Messages && has_system;
        if field.is_none() && !(leads_with_system || has_developer || is_inline) {
            return;
        }
        let (line, joint): (_, &[u8]) = match self.api {
            Api::Messages => (BillingLine::CutBlock, b""),
            _ => (BillingLine::Cut, b"\n\n"),
        };
        self.writer.begin_message(b"system");
        if let Some(span) = field {
            self.writer.system_content(span, line);
        }
        let source = self.writer.source;
        let messages = self.messages;
        if source.kind(messages) == ValueKind::Array {
            let only_first = !(has_developer || is_inline);
            each_message(source, messages, |message_idx, message, role, _| {
                if self.leads(message_idx, role.as_bytes())
                    && let Some(content) = &message.content
                {
                    self.writer.separator(joint);
                    self.writer.system_content(content, line);
                }
                if only_first { Walk::Stop } else { Walk::On }
            });
        }
        self.writer.end_message();
    }

    /// Returns true if the engine puts the message with this number and role before the tools.
    fn leads(&self, message_idx: usize, role: &[u8]) -> bool {
        let Survey { leads_with_system, has_developer, .. } = self.survey;
        match (self.api, role) {
            (Api::Messages, b"system") => true,
            (_, b"system") if has_developer => true,
            (Api::Responses, b"system") if self.fields.get(Field::Instructions).is_some() => false,
            (_, b"system") => message_idx == 0 && leads_with_system,
            (_, b"developer") => true,
            _ => false,
        }
    }

    fn each_other(&mut self, mut write: impl FnMut(&mut Self, &Message, &[u8], bool)) {
        let (source, messages) = (self.writer.source, self.messages);
        if source.kind(messages) != ValueKind::Array {
            return;
        }
        each_message(source, messages, |message_idx, message, role, _| {
            if !self.leads(message_idx, role.as_bytes()) {
                let shows_reasoning = self.survey.last_user.is_none_or(|last| message_idx > last);
                write(self, message, role.as_bytes(), shows_reasoning);
            }
            Walk::On
        });
    }

    /// Writes a chat's message.
    fn message(&mut self, message: &Message, role: &[u8], shows_reasoning: bool) {
        self.writer.begin_message(role);
        if let Some(reasoning) = message.reasoning.as_ref().filter(|_| shows_reasoning) {
            self.writer.content(reasoning);
            self.writer.separator(b"\n");
        }
        match &message.content {
            Some(content) if role == b"system" => self.writer.system_content(content, BillingLine::Cut),
            Some(content) => self.writer.content(content),
            None => {}
        }
        if let Some(calls) = &message.tool_calls {
            self.calls(calls);
        }
        self.writer.end_message();
    }

    fn calls(&mut self, calls: &Span) {
        let source = self.writer.source;
        if source.kind(calls) != ValueKind::Array {
            return;
        }
        let mut function = None;
        source.walk(calls, |inner| {
            match inner {
                Inner::Field(b"function", span) => function = Some(span),
                Inner::Field(..) => {}
                Inner::Value(..) => {
                    let (mut name, mut arguments) = (None, None);
                    if let Some(function) = function.take() {
                        source.fields(&function, |key, span| match key {
                            b"name" => name = Some(span),
                            b"arguments" => arguments = Some(span),
                            _ => {}
                        });
                    }
                    self.writer.call(name.as_ref(), arguments.as_ref());
                }
            }
            Walk::On
        });
    }

    /// Writes a message of the Messages API. Results of tools become messages of their own, before the user's text.
    fn blocks(&mut self, message: &Message, role: &[u8], shows_reasoning: bool) {
        let source = self.writer.source;
        let Some(content) =
            message.content.as_ref().filter(|content| source.kind(content) == ValueKind::Array)
        else {
            return self.message(message, role, shows_reasoning);
        };
        let of = |part: &ContentPart| part.kind.as_ref().map(|kind| source.word(kind)).unwrap_or_default();
        let (mut has_content, mut has_calls, mut has_reasoning) = (false, false, false);
        self.writer.each_part(content, |writer, part, _| match of(part).as_bytes() {
            b"tool_result" => {
                writer.begin_message(b"tool");
                if let Some(content) = &part.content {
                    writer.content(content);
                }
                writer.end_message();
            }
            b"tool_use" => has_calls = true,
            b"thinking" => has_reasoning = true,
            b"redacted_thinking" => {}
            _ => has_content = true,
        });
        if !(has_content || has_calls || has_reasoning) {
            return;
        }
        self.writer.begin_message(role);
        if has_reasoning && shows_reasoning {
            self.writer.each_part(content, |writer, part, _| {
                if let Some(thinking) = part.thinking.as_ref().filter(|_| of(part).as_bytes() == b"thinking")
                {
                    writer.text(thinking);
                }
            });
            self.writer.end_message();
        }
        if has_content {
            self.writer.each_part(content, |writer, part, span| match of(part).as_bytes() {
                b"tool_result" | b"tool_use" | b"thinking" | b"redacted_thinking" => {}
                _ => writer.part(part, span),
            });
        }
        if has_calls {
            self.writer.each_part(content, |writer, part, _| {
                if of(part).as_bytes() == b"tool_use" {
                    writer.call(part.name.as_ref(), part.input.as_ref());
                }
            });
        }
        self.writer.end_message();
    }

    /// Writes items of the Responses API, or a text, which is the user's message.
    fn items(&mut self) {
        let (source, messages) = (self.writer.source, self.messages);
        if source.kind(messages) == ValueKind::Text {
            self.writer.begin_message(b"user");
            self.writer.content(messages);
            self.writer.end_message();
            return;
        }
        let mut open = Open::None;
        if source.kind(messages) == ValueKind::Array {
            each_message(source, messages, |item_idx, item, role, span| {
                if !self.leads(item_idx, role.as_bytes()) {
                    let shows_reasoning = self.survey.last_user.is_none_or(|last| item_idx > last);
                    open = self.item(item, (role, span), open, shows_reasoning);
                }
                Walk::On
            });
        }
        if open != Open::None {
            self.writer.end_message();
        }
    }

    /// Writes an item. Returns which part of an assistant's message is open after it.
    fn item(
        &mut self,
        item: &Message,
        (role, span): (Word, &Span),
        open: Open,
        shows_reasoning: bool,
    ) -> Open {
        let source = self.writer.source;
        let kind = item.kind.as_ref().map(|kind| source.word(kind)).unwrap_or_default();
        match (kind.as_bytes(), role.as_bytes()) {
            (b"function_call", _) => {
                self.continue_assistant(open, |_| true);
                self.writer.call(item.name.as_ref(), item.arguments.as_ref());
                match open {
                    Open::None => Open::Reasoning,
                    open => open,
                }
            }
            (b"reasoning", _) => {
                let reasoning = item.content.as_ref().or(item.summary.as_ref());
                self.continue_assistant(open, |open| open == Open::None);
                if let Some(reasoning) = reasoning.filter(|_| shows_reasoning) {
                    self.writer.content(reasoning);
                    self.writer.separator(b"\n");
                }
                Open::Reasoning
            }
            (b"" | b"message", b"assistant") => {
                self.continue_assistant(open, |open| open != Open::Content);
                if let Some(content) = &item.content {
                    self.writer.content(content);
                }
                Open::Content
            }
            (kind, role) => {
                if open != Open::None {
                    self.writer.end_message();
                }
                let (role, content): (_, Option<&Span>) = match kind {
                    b"" | b"message" => (role, item.content.as_ref()),
                    b"function_call_output" => (b"tool".as_slice(), item.output.as_ref()),
                    // Unknown items are distinguished by their whole value.
                    _ => {
                        self.writer.option("item", span);
                        return Open::None;
                    }
                };
                let message = Message { content: content.cloned(), ..Message::default() };
                self.message(&message, role, false);
                Open::None
            }
        }
    }

    /// Begins an assistant's message, unless one is open that `takes` more.
    fn continue_assistant(&mut self, open: Open, takes: impl FnOnce(Open) -> bool) {
        match open {
            Open::None => self.writer.begin_message(b"assistant"),
            open if takes(open) => {}
            Open::Reasoning | Open::Content => {
                self.writer.end_message();
                self.writer.begin_message(b"assistant");
            }
        }
    }
}
