//! A JSON body, field by field, with the errors that pydantic would collect.

use super::error::ApiError;
use serde_json::{Map, Value};
use std::fmt::Write;

/// Takes typed fields out of an object. Fields that nobody asks for are ignored, as vLLM does.
#[derive(Debug)]
pub(crate) struct Fields {
    object: Map<String, Value>,
    errors: Vec<FieldError>,
}

#[derive(Debug)]
struct FieldError {
    kind: &'static str,
    field: String,
    message: String,
    input: Value,
}

// === impl Fields ===

impl Fields {
    /// # Errors
    /// When `body` is no JSON object.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        match serde_json::from_slice(body) {
            Ok(Value::Object(object)) => Ok(Self { object, errors: Vec::new() }),
            Ok(other) => {
                let input = python_repr(&other);
                Err(validation_error(
                    &[format!(
                        "{{'type': 'model_attributes_type', 'loc': 'body', 'msg': 'Input should be a valid \
                         dictionary or object to extract fields from', 'input': {input}}}"
                    )],
                    "body".to_owned(),
                ))
            }
            Err(error) => Err(broken_json(body, &error)),
        }
    }

    /// With a value that is not null.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.object.get(field).is_some_and(|value| !value.is_null())
    }

    pub(crate) fn string(&mut self, field: &str) -> Option<String> {
        self.typed(field, "string_type", "Input should be a valid string", |value| {
            value.as_str().map(str::to_owned)
        })
    }

    pub(crate) fn integer(&mut self, field: &str) -> Option<i64> {
        self.typed(field, "int_type", "Input should be a valid integer", |value| match value {
            Value::String(text) => text.trim().parse().ok(),
            #[expect(clippy::cast_possible_truncation, reason = "only whole numbers of that range come here")]
            Value::Number(number) => number.as_i64().or_else(|| {
                number
                    .as_f64()
                    .filter(|float| float.fract() == 0.0 && float.abs() < 9e15)
                    .map(|float| float as i64)
            }),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
        })
    }

    pub(crate) fn number(&mut self, field: &str) -> Option<f64> {
        self.typed(field, "float_type", "Input should be a valid number", Value::as_f64)
    }

    pub(crate) fn boolean(&mut self, field: &str) -> Option<bool> {
        self.typed(field, "bool_type", "Input should be a valid boolean", Value::as_bool)
    }

    pub(crate) fn integers(&mut self, field: &str) -> Option<Vec<u32>> {
        self.typed(field, "list_type", "Input should be a valid list of token ids", token_ids)
    }

    pub(crate) fn strings(&mut self, field: &str) -> Option<Vec<String>> {
        self.typed(field, "list_type", "Input should be a valid string or list of strings", |value| {
            match value {
                Value::String(text) => Some(vec![text.clone()]),
                Value::Array(texts) => texts.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
            }
        })
    }

    /// A nested object, whose fields are checked apart.
    pub(crate) fn object(&mut self, field: &str) -> Option<Map<String, Value>> {
        self.typed(field, "dict_type", "Input should be a valid dictionary", |value| {
            value.as_object().cloned()
        })
    }

    pub(crate) fn required<T>(&mut self, field: &str, value: Option<T>) -> Option<T> {
        let has_error = self.errors.iter().any(|error| error.field == field);
        if value.is_none() && !has_error {
            let input = Value::Object(self.object.clone());
            self.error("missing", field, "Field required", input);
        }
        value
    }

    pub(crate) fn typed<T>(
        &mut self,
        field: &str,
        kind: &'static str,
        message: &str,
        convert: impl Fn(&Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.object.get(field).filter(|value| !value.is_null())?;
        let converted = convert(value);
        if converted.is_none() {
            let input = value.clone();
            self.error(kind, field, message, input);
        }
        converted
    }

    pub(crate) fn error(&mut self, kind: &'static str, field: &str, message: &str, input: Value) {
        self.errors.push(FieldError { kind, field: field.to_owned(), message: message.to_owned(), input });
    }

    /// # Errors
    /// All that was wrong, in the order of the questions.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        let Some(first) = self.errors.first() else { return Ok(()) };
        let param = format!("body.{}", first.field);
        let describe = |FieldError { kind, field, message, input }: &FieldError| {
            let input = python_repr(input);
            format!("{{'type': '{kind}', 'loc': 'body.{field}', 'msg': '{message}', 'input': {input}}}")
        };
        Err(validation_error(&self.errors.iter().map(describe).collect::<Vec<_>>(), param))
    }
}

/// `None` unless `value` is a list of numbers that fit a token id.
pub(crate) fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let ids = value.as_array()?.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
    ids.collect()
}

pub(crate) fn unsupported_media_type() -> ApiError {
    validation_error(
        &["Unsupported Media Type: Only 'application/json' is allowed".to_owned()],
        "body".to_owned(),
    )
}

fn validation_error(errors: &[String], param: String) -> ApiError {
    let noun = if errors.len() == 1 { "error" } else { "errors" };
    let mut message = format!("{} validation {noun}:", errors.len());
    for error in errors {
        let _infallible = write!(message, "\n  {error}");
    }
    ApiError::validation(message, Some(param))
}

/// Python's message and position for JSON that `json.loads` would refuse.
fn broken_json(body: &[u8], error: &serde_json::Error) -> ApiError {
    let reason = error.to_string();
    let python_reason = if reason.starts_with("control character") {
        "Invalid control character at"
    } else if reason.starts_with("EOF while parsing a string") {
        "Unterminated string starting at"
    } else if reason.starts_with("invalid escape") {
        r"Invalid \escape"
    } else if reason.starts_with("expected `:`") {
        "Expecting ':' delimiter"
    } else if reason.starts_with("expected `,`") {
        "Expecting ',' delimiter"
    } else if reason.starts_with("key must be a string") || body.trim_ascii_end().ends_with(b"{") {
        "Expecting property name enclosed in double quotes"
    } else if reason.starts_with("trailing characters") {
        "Extra data"
    } else {
        "Expecting value"
    };
    let offset = character_offset(body, error);
    let python_reason = python_repr(&Value::from(python_reason));
    validation_error(
        &[format!(
            "{{'type': 'json_invalid', 'loc': 'body.{offset}', 'msg': 'JSON decode error', 'input': {{}}, \
             'ctx': {{'error': {python_reason}}}}}"
        )],
        format!("body.{offset}"),
    )
}

/// serde_json counts lines and bytes from 1 and names the byte after the culprit; Python counts characters from 0.
fn character_offset(body: &[u8], error: &serde_json::Error) -> usize {
    let (line, column, is_eof) = (error.line(), error.column(), error.is_eof());
    let mut lines = body.split_inclusive(|byte| *byte == b'\n');
    let before: usize = lines.by_ref().take(line.saturating_sub(1)).map(<[u8]>::len).sum();
    let end = (before + column).saturating_sub(1).min(body.len());
    let end = if is_eof { body.len() } else { end };
    String::from_utf8_lossy(&body[..end]).chars().count()
}

/// A JSON value as Python would print it.
fn python_repr(value: &Value) -> String {
    let mut text = String::new();
    write_repr(&mut text, value);
    text
}

fn write_repr(text: &mut String, value: &Value) {
    match value {
        Value::Null => text.push_str("None"),
        Value::Bool(true) => text.push_str("True"),
        Value::Bool(false) => text.push_str("False"),
        Value::Number(number) => text.push_str(&number.to_string()),
        Value::String(string) => write_string_repr(text, string),
        Value::Array(items) => {
            text.push('[');
            for (item_idx, item) in items.iter().enumerate() {
                text.push_str(if item_idx == 0 { "" } else { ", " });
                write_repr(text, item);
            }
            text.push(']');
        }
        Value::Object(fields) => {
            text.push('{');
            for (field_idx, (name, field)) in fields.iter().enumerate() {
                text.push_str(if field_idx == 0 { "" } else { ", " });
                write_string_repr(text, name);
                text.push_str(": ");
                write_repr(text, field);
            }
            text.push('}');
        }
    }
}

fn write_string_repr(text: &mut String, string: &str) {
    let quote = if string.contains('\'') && !string.contains('"') { '"' } else { '\'' };
    text.push(quote);
    for character in string.chars() {
        match character {
            '\\' => text.push_str(r"\\"),
            '\n' => text.push_str(r"\n"),
            '\r' => text.push_str(r"\r"),
            '\t' => text.push_str(r"\t"),
            _ if character == quote => text.extend(['\\', character]),
            _ if character.is_control() => {
                let _infallible = write!(text, "\\x{:02x}", u32::from(character));
            }
            _ => text.push(character),
        }
    }
    text.push(quote);
}

#[cfg(test)]
mod tests {
    use super::Fields;

    #[track_caller]
    fn check_broken(body: &str, expected: &str) {
        let error = Fields::parse(body.as_bytes()).unwrap_err();
        assert!(error.message.contains(expected), "{}", error.message);
    }

    #[test]
    fn broken_json_is_told_as_python_tells_it() {
        check_broken("{\"a\":\"x\ny\"}", "'loc': 'body.7'");
        check_broken("{\"a\":\"x\ny\"}", "Invalid control character at");
        check_broken("{\"é\":}", "Expecting value");
        check_broken("", "Expecting value");
        check_broken("[1]", "valid dictionary");
    }

    #[test]
    fn all_bad_fields_are_told() {
        let mut fields = Fields::parse(br#"{"stream":"x","n":1.5}"#).unwrap();
        fields.boolean("stream");
        fields.integer("n");
        let messages = fields.string("messages");
        fields.required("messages", messages);
        let message = fields.finish().unwrap_err().message;
        assert_eq!(
            message,
            "3 validation errors:\n  {'type': 'bool_type', 'loc': 'body.stream', 'msg': 'Input should be a valid boolean', \
             'input': 'x'}\n  {'type': 'int_type', 'loc': 'body.n', 'msg': 'Input should be a valid integer', 'input': 1.5}\n  \
             {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required', 'input': {'stream': 'x', 'n': 1.5}}"
        );
    }
}
