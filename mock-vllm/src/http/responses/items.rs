//! Converts the items of `input` to the messages of a chat. Several items may form one message: an assistant's
//! reasoning, text and calls go into one message unless a part comes twice.

use crate::http::body::Fields;
use crate::http::error::ApiError;
use serde_json::{Map, Value, json};

const ROLES: [&str; 4] = ["user", "assistant", "system", "developer"];

/// Messages of an input.
#[derive(Debug)]
pub(super) struct Conversation {
    pub(super) messages: Vec<Map<String, Value>>,
    /// True if the last message is cut off, so that the reply continues it.
    pub(super) continues: bool,
}

/// One checked item.
enum Item {
    Message(Map<String, Value>),
    AssistantText(String),
    Reasoning(String),
    /// A call, as a chat has it in `tool_calls`.
    Call(Value),
}

/// Place of an item in the body, with the errors found so far.
struct Place<'a> {
    fields: &'a mut Fields,
    loc: String,
}

// === impl Conversation ===

impl Conversation {
    /// Converts `input`; `None` if `fields` have errors.
    ///
    /// # Errors
    /// Fails for items of a right shape that vLLM cannot use.
    pub(super) fn of_input(fields: &mut Fields) -> Result<Option<Self>, ApiError> {
        let input = fields.raw("input").cloned();
        let mut conversation = Self { messages: Vec::new(), continues: false };
        match fields.required("input", input) {
            Some(Value::String(text)) => conversation.messages.push(message("user", text.into())),
            Some(Value::Array(items)) => {
                conversation.continues = items.last().is_some_and(is_cut_off);
                for (item_idx, item) in items.into_iter().enumerate() {
                    let item = Place { fields, loc: format!("input.{item_idx}") }.item(item)?;
                    item.into_iter().for_each(|item| conversation.push(item));
                }
            }
            Some(other) => {
                fields.error("string_type", "input", "Input should be a valid string", other.clone());
                fields.error("list_type", "input", "Input should be a valid list", other);
            }
            None => {}
        }
        Ok((!fields.has_errors()).then_some(conversation))
    }

    fn push(&mut self, item: Item) {
        match item {
            Item::Message(message) => self.messages.push(message),
            Item::AssistantText(text) => self.tell("content", text.into()),
            Item::Reasoning(text) => self.tell("reasoning", text.into()),
            Item::Call(call) => match self.assistant().and_then(|last| last.get_mut("tool_calls")) {
                Some(Value::Array(calls)) => calls.push(call),
                Some(_) | None => self.tell("tool_calls", json!([call])),
            },
        }
    }

    /// Puts `value` into the assistant's last message, or into a new one if that already has the field.
    fn tell(&mut self, field: &str, value: Value) {
        let has_it = |last: &mut Map<String, Value>| last.get(field).is_some_and(|told| !told.is_null());
        if self.assistant().is_none_or(has_it) {
            self.messages.push(Map::from_iter([("role".to_owned(), Value::from("assistant"))]));
        }
        let last = self.assistant().expect("the last message is the assistant's");
        last.insert(field.to_owned(), value);
    }

    /// Returns the last message if it is the assistant's.
    fn assistant(&mut self) -> Option<&mut Map<String, Value>> {
        self.messages.last_mut().filter(|last| last.get("role").is_some_and(|role| role == "assistant"))
    }
}

// === impl Place ===

impl Place<'_> {
    fn item(&mut self, item: Value) -> Result<Option<Item>, ApiError> {
        let Value::Object(item) = item else {
            self.error("dict_type", "Input should be a valid dictionary", item);
            return Ok(None);
        };
        let kind = match item.get("type") {
            None | Some(Value::Null) => "message",
            Some(kind) => kind.as_str().unwrap_or_default(),
        };
        match kind {
            "message" => Ok(self.message(&item)),
            "function_call" => Ok(self.call(&item, "arguments")),
            "custom_tool_call" => Ok(self.call(&item, "input")),
            "function_call_output" | "custom_tool_call_output" => Ok(self.output(&item)),
            "reasoning" => self.reasoning(&item),
            _ => {
                let kind = item.get("type").and_then(Value::as_str).unwrap_or("None");
                Err(invalid(&format!("Unsupported input item type: {kind}")))
            }
        }
    }

    fn message(&mut self, item: &Map<String, Value>) -> Option<Item> {
        let role = self.text(item, "role")?;
        if !ROLES.contains(&role.as_str()) {
            let expected = format!("'{}'", ROLES.join("', '")).replace(", 'developer'", " or 'developer'");
            self.fields.literal_error(&format!("{}.role", self.loc), &expected, role.into());
            return None;
        }
        let content = self.content(item, "content")?;
        if role != "assistant" {
            return Some(Item::Message(message(&role, content)));
        }
        let text = match &content {
            Value::Array(parts) => parts.first().and_then(|part| part.get("text")?.as_str()),
            text => text.as_str(),
        };
        match text {
            Some(text) => Some(Item::AssistantText(text.to_owned())),
            None => Some(Item::Message(message(&role, content))),
        }
    }

    /// Reads a call. The field `payload` has its arguments.
    fn call(&mut self, item: &Map<String, Value>, payload: &str) -> Option<Item> {
        let [call_id, name, arguments] = ["call_id", "name", payload].map(|field| self.text(item, field));
        let (call_id, name, arguments) = (call_id?, name?, arguments?);
        let name = match item.get("namespace").and_then(Value::as_str) {
            Some(namespace) if !namespace.is_empty() => super::tools::flat_name(namespace, &name),
            Some(_) | None => name,
        };
        let arguments = if payload == "input" { json!({"input": arguments}).to_string() } else { arguments };
        let function = json!({"name": name, "arguments": arguments});
        Some(Item::Call(json!({"id": call_id, "type": "function", "function": function})))
    }

    fn output(&mut self, item: &Map<String, Value>) -> Option<Item> {
        let (call_id, output) = (self.text(item, "call_id"), self.content(item, "output"));
        let mut message = message("tool", output?);
        message.insert("tool_call_id".to_owned(), call_id?.into());
        Some(Item::Message(message))
    }

    fn reasoning(&mut self, item: &Map<String, Value>) -> Result<Option<Item>, ApiError> {
        let texts = |parts: Option<&Value>| -> Option<Vec<String>> {
            let parts = parts?.as_array()?.iter();
            parts.map(|part| part.get("text")?.as_str().map(str::to_owned)).collect()
        };
        let summary = texts(item.get("summary"));
        let content = match item.get("content").filter(|content| !content.is_null()) {
            Some(content) => texts(Some(content)),
            None => Some(Vec::new()),
        };
        if summary.is_none() {
            self.wrong_list(item, "summary");
        }
        if content.is_none() {
            self.wrong_list(item, "content");
        }
        if item.get("encrypted_content").and_then(Value::as_str).is_some_and(|text| !text.is_empty()) {
            return Err(invalid("Encrypted content is not supported."));
        }
        let texts = content.into_iter().flatten().chain(summary.into_iter().flatten());
        Ok(Some(Item::Reasoning({ texts }.next().unwrap_or_default())))
    }

    /// Reads a required field that is a string.
    fn text(&mut self, item: &Map<String, Value>, field: &str) -> Option<String> {
        match item.get(field) {
            Some(Value::String(text)) => return Some(text.clone()),
            Some(other) => self.wrong(field, ("string_type", "Input should be a valid string"), other),
            None => self.missing(item, field),
        }
        None
    }

    /// Reads a required field that is a string or a list of parts.
    fn content(&mut self, item: &Map<String, Value>, field: &str) -> Option<Value> {
        match item.get(field) {
            Some(content @ Value::String(_)) => return Some(content.clone()),
            Some(content @ Value::Array(parts)) => {
                match parts.iter().find(|part| !part.get("type").is_some_and(Value::is_string)) {
                    Some(part) => {
                        self.wrong(field, ("dict_type", "Input should be a valid dictionary"), part)
                    }
                    None => return Some(content.clone()),
                }
            }
            Some(other) => {
                self.wrong(field, ("string_type", "Input should be a valid string"), other);
                self.wrong(field, ("list_type", "Input should be a valid list"), other);
            }
            None => self.missing(item, field),
        }
        None
    }

    fn wrong_list(&mut self, item: &Map<String, Value>, field: &str) {
        match item.get(field) {
            Some(other) => self.wrong(field, ("list_type", "Input should be a valid list"), other),
            None => self.missing(item, field),
        }
    }

    fn missing(&mut self, item: &Map<String, Value>, field: &str) {
        self.wrong(field, ("missing", "Field required"), &Value::Object(item.clone()));
    }

    fn wrong(&mut self, field: &str, (kind, message): (&'static str, &str), input: &Value) {
        self.fields.error(kind, &format!("{}.{field}", self.loc), message, input.clone());
    }

    fn error(&mut self, kind: &'static str, message: &str, input: Value) {
        self.fields.error(kind, &self.loc, message, input);
    }
}

fn message(role: &str, content: Value) -> Map<String, Value> {
    Map::from_iter([("role".to_owned(), role.into()), ("content".to_owned(), content)])
}

/// Decides like vLLM's `should_continue_final_message`.
fn is_cut_off(item: &Value) -> bool {
    let is = |field: &str, values: [&str; 2]| {
        item.get(field).and_then(Value::as_str).is_some_and(|value| values.contains(&value))
    };
    let speaks = item.get("type").is_none() || is("type", ["message", "reasoning"]);
    speaks && is("status", ["in_progress", "incomplete"])
}

fn invalid(message: &str) -> ApiError {
    ApiError::bad_request(format!("{message} (parameter=input)"), Some("input"))
}
