//! A JSON body, field by field, with the errors that pydantic would collect.

use super::error::ApiError;
use super::python_json::{self, JsonError, SyntaxError, float, float_repr};
use http::StatusCode;
use serde_json::{Map, Number, Value};
use std::fmt::Write;
use vllm_text::python_text;

/// vLLM 0.33 `handlers/validation.py`.
const MAX_REPORTED_ERRORS: usize = 10;
/// vLLM 0.33 `handlers/validation.py`.
const MAX_ERROR_INPUT_CHARS: usize = 200;
const NOT_A_TRUTH: Misfit = Misfit { kind: "bool_type", message: "Input should be a valid boolean" };

/// Takes typed fields out of an object. Fields that no code asks for are ignored, as in vLLM.
#[derive(Clone, Debug)]
pub(crate) struct Fields {
    object: Map<String, Value>,
    errors: Vec<FieldError>,
}

#[derive(Clone, Debug)]
struct FieldError {
    kind: &'static str,
    loc: Loc,
    message: String,
    input: Value,
    cause: Option<Cause>,
}

/// Reason why a value is not of a type, in pydantic's words.
#[derive(Clone, Copy, Debug)]
struct Misfit {
    kind: &'static str,
    message: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Loc {
    Body,
    Field(String),
    /// Number of characters before the place in the body.
    Offset(usize),
}

/// `ctx` of an error.
#[derive(Clone, Debug)]
enum Cause {
    /// Values that a literal may have, in Python's spelling.
    Expected(String),
    ClassName(&'static str),
    /// Smallest value that a number may have.
    AtLeast(i64),
    Text(&'static str),
    /// Text of Python's exception.
    ValueError(String),
}

// === impl Fields ===

impl Fields {
    /// Reads a body.
    ///
    /// # Errors
    /// Fails if `body` is not a JSON object.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        if body.is_empty() {
            return Err(no_body());
        }
        match python_json::loads(body) {
            Ok(Value::Null) => Err(no_body()),
            Ok(Value::Object(object)) => Ok(Self { object, errors: Vec::new() }),
            Ok(other) => {
                let message = "Input should be a valid dictionary or object to extract fields from";
                Err(validation_error(&[FieldError {
                    kind: "model_attributes_type",
                    loc: Loc::Body,
                    message: message.to_owned(),
                    input: other,
                    cause: None,
                }]))
            }
            Err(error) => Err(unread(&error)),
        }
    }

    /// Wraps fields that are not a body of their own but come from one.
    pub(crate) fn of(object: Map<String, Value>) -> Self {
        Self { object, errors: Vec::new() }
    }

    /// Returns whether the field has a value that is not null.
    pub(crate) fn has(&self, field: &str) -> bool {
        self.object.get(field).is_some_and(|value| !value.is_null())
    }

    pub(crate) fn string(&mut self, field: &str) -> Option<String> {
        self.typed(field, "string_type", "Input should be a valid string", |value| {
            value.as_str().map(str::to_owned)
        })
    }

    pub(crate) fn integer(&mut self, field: &str) -> Option<i64> {
        self.converted(field, integer)
    }

    pub(crate) fn number(&mut self, field: &str) -> Option<f64> {
        self.converted(field, number)
    }

    pub(crate) fn boolean(&mut self, field: &str) -> Option<bool> {
        self.converted(field, boolean)
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

    /// Returns a nested object, whose fields are checked apart.
    pub(crate) fn object(&mut self, field: &str) -> Option<Map<String, Value>> {
        self.typed(field, "dict_type", "Input should be a valid dictionary", |value| {
            value.as_object().cloned()
        })
    }

    pub(crate) fn required<T>(&mut self, field: &str, value: Option<T>) -> Option<T> {
        let has_error = self.errors.iter().any(|error| error.loc == Loc::Field(field.to_owned()));
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

    /// Works like [`Self::typed`] for a type that a value can fail in several ways.
    fn converted<T>(&mut self, field: &str, convert: impl Fn(&Value) -> Result<T, Misfit>) -> Option<T> {
        let value = self.raw(field)?;
        match convert(value) {
            Ok(converted) => Some(converted),
            Err(Misfit { kind, message }) => {
                let input = value.clone();
                self.error(kind, field, message, input);
                None
            }
        }
    }

    pub(crate) fn error(&mut self, kind: &'static str, field: &str, message: &str, input: Value) {
        let loc = Loc::Field(field.to_owned());
        self.errors.push(FieldError { kind, loc, message: message.to_owned(), input, cause: None });
    }

    /// Reports a value that is none of the `expected` ones, which are in Python's spelling: `'a' or 'b'`.
    pub(crate) fn literal_error(&mut self, field: &str, expected: &str, input: Value) {
        let message = format!("Input should be {expected}");
        self.caused("literal_error", field, message, (input, Cause::Expected(expected.to_owned())));
    }

    /// Reports a value that is not an object although vLLM takes one of `class`.
    pub(crate) fn model_error(&mut self, field: &str, class: &'static str, input: Value) {
        let message = format!("Input should be a valid dictionary or instance of {class}");
        self.caused("model_type", field, message, (input, Cause::ClassName(class)));
    }

    pub(crate) fn bound_error(&mut self, field: &str, at_least: i64, input: Value) {
        let message = format!("Input should be greater than or equal to {at_least}");
        self.caused("greater_than_equal", field, message, (input, Cause::AtLeast(at_least)));
    }

    pub(crate) fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    /// Ends the checks.
    ///
    /// # Errors
    /// Returns all errors, in the order of the checks.
    pub(crate) fn finish(self) -> Result<(), ApiError> {
        if self.errors.is_empty() { Ok(()) } else { Err(validation_error(&self.errors)) }
    }

    /// Makes the error of a validator that sees the whole body before its fields: 0.33 has a bad request for it, older
    /// versions one more error about the body's shape.
    pub(crate) fn refused(&self, message: &str, parameter: Option<&str>) -> ApiError {
        let named = match parameter {
            Some(parameter) => format!("{message} (parameter={parameter})"),
            None => message.to_owned(),
        };
        let shape = validation_error(&[FieldError {
            kind: "value_error",
            loc: Loc::Body,
            message: format!("Value error, {message}"),
            input: Value::Object(self.object.clone()),
            cause: Some(Cause::ValueError(message.to_owned())),
        }]);
        ApiError { older: shape.older, ..ApiError::bad_request(named, parameter) }
    }

    /// Works like [`Self::refused`] for the value of a field, which the error names.
    pub(crate) fn refused_value(&self, message: &str, parameter: &str) -> ApiError {
        let error = self.refused(message, Some(parameter));
        let value = self.raw(parameter).map(python_repr).unwrap_or_default();
        let message = format!("{message} (parameter={parameter}, value={value})");
        ApiError { message, ..error }
    }

    pub(crate) fn as_map(&self) -> &Map<String, Value> {
        &self.object
    }

    fn caused(&mut self, kind: &'static str, field: &str, message: String, (input, cause): (Value, Cause)) {
        let loc = Loc::Field(field.to_owned());
        self.errors.push(FieldError { kind, loc, message, input, cause: Some(cause) });
    }

    /// Returns the field as it came; null counts as absent.
    pub(crate) fn raw(&self, field: &str) -> Option<&Value> {
        self.object.get(field).filter(|value| !value.is_null())
    }
}

// === impl FieldError ===

impl FieldError {
    /// Describes the error like 0.33, which shortens the input that it repeats.
    fn bounded(&self) -> String {
        let Self { kind, loc, message, input, cause } = self;
        let input = Value::from(summary(input));
        let (loc, message) = (Value::from(loc.dotted()), Value::from(message.as_str()));
        describe(kind, &python_repr(&loc), &message, &input, cause.as_ref())
    }

    fn whole(&self) -> String {
        let Self { kind, loc, message, input, cause } = self;
        describe(kind, &loc.tuple(), &Value::from(message.as_str()), input, cause.as_ref())
    }
}

// === impl Loc ===

impl Loc {
    fn dotted(&self) -> String {
        match self {
            Self::Body => "body".to_owned(),
            Self::Field(field) => format!("body.{field}"),
            Self::Offset(offset) => format!("body.{offset}"),
        }
    }

    fn tuple(&self) -> String {
        match self {
            Self::Body => "('body',)".to_owned(),
            Self::Field(field) => format!("('body', {})", python_repr(&Value::from(field.as_str()))),
            Self::Offset(offset) => format!("('body', {offset})"),
        }
    }
}

/// Reads a whole number like pydantic, which also takes it as a float, a text or a boolean.
fn integer(value: &Value) -> Result<i64, Misfit> {
    let not_whole = Misfit { kind: "int_type", message: "Input should be a valid integer" };
    match value {
        Value::Bool(truth) => Ok(i64::from(*truth)),
        Value::Number(number) => match (number.as_i64(), float(number)) {
            (Some(whole), _) => Ok(whole),
            (None, Some(float)) if !float.is_finite() => {
                Err(Misfit { kind: "finite_number", message: "Input should be a finite number" })
            }
            (None, Some(float)) if float.fract() != 0.0 => Err(Misfit {
                kind: "int_from_float",
                message: "Input should be a valid integer, got a number with a fractional part",
            }),
            #[expect(clippy::cast_possible_truncation, reason = "only whole numbers of that range come here")]
            (None, Some(float)) if float.abs() < 9e15 => Ok(float as i64),
            (None, Some(_) | None) => Err(not_whole),
        },
        Value::String(text) => {
            let text = text.trim();
            let digits = text.split_once('.').filter(|(_, rest)| rest.bytes().all(|digit| digit == b'0'));
            digits.map_or(text, |(digits, _)| digits).parse().map_err(|_| Misfit {
                kind: "int_parsing",
                message: "Input should be a valid integer, unable to parse string as an integer",
            })
        }
        Value::Null | Value::Array(_) | Value::Object(_) => Err(not_whole),
    }
}

/// Reads a number like pydantic, which also takes it as a text or a boolean.
fn number(value: &Value) -> Result<f64, Misfit> {
    let not_a_number = Misfit { kind: "float_type", message: "Input should be a valid number" };
    match value {
        Value::Bool(truth) => Ok(f64::from(*truth)),
        Value::Number(number) => float(number).ok_or(not_a_number),
        Value::String(text) => text.trim().parse().map_err(|_| Misfit {
            kind: "float_parsing",
            message: "Input should be a valid number, unable to parse string as a number",
        }),
        Value::Null | Value::Array(_) | Value::Object(_) => Err(not_a_number),
    }
}

/// Reads a boolean like pydantic, which also takes it as 0 or 1, or as a word.
fn boolean(value: &Value) -> Result<bool, Misfit> {
    let unclear = Misfit {
        kind: "bool_parsing",
        message: "Input should be a valid boolean, unable to interpret input",
    };
    match value {
        Value::Bool(truth) => Ok(*truth),
        Value::Number(number) => match float(number) {
            Some(0.0) => Ok(false),
            Some(1.0) => Ok(true),
            Some(float) if float.fract() == 0.0 => Err(unclear),
            Some(_) | None => Err(NOT_A_TRUTH),
        },
        Value::String(word) => match word.to_ascii_lowercase().as_str() {
            "0" | "off" | "f" | "false" | "n" | "no" => Ok(false),
            "1" | "on" | "t" | "true" | "y" | "yes" => Ok(true),
            _ => Err(unclear),
        },
        Value::Null | Value::Array(_) | Value::Object(_) => Err(NOT_A_TRUTH),
    }
}

/// Reads a list of token ids; `None` unless all of them are numbers of that range.
pub(crate) fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let ids = value.as_array()?.iter().map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()));
    ids.collect()
}

pub(crate) fn unsupported_media_type() -> ApiError {
    let text = "Unsupported Media Type: Only 'application/json' is allowed";
    let mut error =
        ApiError::validation(format!("1 validation error:\n  {text}"), format!("[\"{text}\"]"), None);
    if let Some(older) = &mut error.older {
        older.oldest = Some((StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
    }
    error
}

/// Makes the error of a body with at least one field error.
fn validation_error(errors: &[FieldError]) -> ApiError {
    let noun = if errors.len() == 1 { "error" } else { "errors" };
    let mut message = format!("{} validation {noun}:", errors.len());
    for error in errors.iter().take(MAX_REPORTED_ERRORS) {
        let _infallible = write!(message, "\n  {}", error.bounded());
    }
    let n_more = errors.len().saturating_sub(MAX_REPORTED_ERRORS);
    if n_more > 0 {
        let _infallible = write!(message, "\n  ...and {n_more} more {noun}");
    }
    let whole: Vec<String> = errors.iter().map(FieldError::whole).collect();
    let param = errors.first().map(|error| error.loc.dotted());
    ApiError::validation(message, format!("[{}]", whole.join(", ")), param)
}

fn describe(kind: &str, loc: &str, message: &Value, input: &Value, cause: Option<&Cause>) -> String {
    let (message, input) = (python_repr(message), python_repr(input));
    let cause = match cause {
        None => String::new(),
        Some(Cause::Expected(text)) => {
            format!(", 'ctx': {{'expected': {}}}", python_repr(&Value::from(text.as_str())))
        }
        Some(Cause::ClassName(class)) => format!(", 'ctx': {{'class_name': '{class}'}}"),
        Some(Cause::AtLeast(bound)) => format!(", 'ctx': {{'ge': {bound}}}"),
        Some(Cause::Text(text)) => format!(", 'ctx': {{'error': {}}}", python_repr(&Value::from(*text))),
        Some(Cause::ValueError(text)) => {
            format!(", 'ctx': {{'error': ValueError({})}}", python_repr(&Value::from(text.as_str())))
        }
    };
    format!("{{'type': '{kind}', 'loc': {loc}, 'msg': {message}, 'input': {input}{cause}}}")
}

/// Shortens a wrong value of a request like vLLM 0.33.
fn summary(input: &Value) -> String {
    match input {
        Value::Array(items) => format!("<list of {} items>", items.len()),
        Value::Object(fields) => format!("<dict of {} items>", fields.len()),
        Value::String(text) => match text.char_indices().nth(MAX_ERROR_INPUT_CHARS) {
            Some((end, _)) => format!("{}...[truncated]", &text[..end]),
            None => text.clone(),
        },
        Value::Null | Value::Bool(_) | Value::Number(_) => python_repr(input),
    }
}

/// Makes FastAPI's error for JSON that `json.loads` rejects.
fn unread(error: &JsonError) -> ApiError {
    match error {
        JsonError::Unreadable => {
            ApiError::detail(StatusCode::BAD_REQUEST, "There was an error parsing the body")
        }
        JsonError::Syntax(SyntaxError { message, offset }) => validation_error(&[FieldError {
            kind: "json_invalid",
            loc: Loc::Offset(*offset),
            message: "JSON decode error".to_owned(),
            input: Value::Object(Map::new()),
            cause: Some(Cause::Text(message)),
        }]),
    }
}

/// Makes the error for a request without a body, or with an empty one.
fn no_body() -> ApiError {
    validation_error(&[FieldError {
        kind: "missing",
        loc: Loc::Body,
        message: "Field required".to_owned(),
        input: Value::Null,
        cause: None,
    }])
}

/// Writes a JSON value like Python's `repr`.
fn python_repr(value: &Value) -> String {
    python_text::repr_with(value, &number_repr)
}

fn number_repr(number: &Number) -> String {
    match float(number) {
        Some(value) if !value.is_finite() => float_repr(value),
        Some(_) | None => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::Fields;

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
            "3 validation errors:\n  {'type': 'bool_parsing', 'loc': 'body.stream', 'msg': 'Input should be a valid boolean, \
             unable to interpret input', 'input': 'x'}\n  {'type': 'int_from_float', 'loc': 'body.n', 'msg': 'Input should be a \
             valid integer, got a number with a fractional part', 'input': '1.5'}\n  \
             {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required', 'input': '<dict of 2 items>'}"
        );
    }
}
