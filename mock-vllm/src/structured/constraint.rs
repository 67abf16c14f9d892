//! Reads `response_format` and vLLM's own fields (`structured_outputs`; before 0.12 `guided_json`, `guided_regex`,
//! `guided_choice`, `guided_grammar`), and checks them with vLLM's error texts.

use super::json_text;
use super::pattern::{Anchoring, Pattern};
use super::schema::{Schema, SchemaError};
use rand::{Rng, RngExt};
use serde_json::{Map, Value};

/// Form that a reply's text must have.
#[derive(Clone, Debug)]
pub enum Constraint {
    Json(Box<Schema>),
    Choice(Vec<String>),
    Regex(Box<Pattern>),
}

/// Errors, each of which is a 400 of type `BadRequestError` with the `Display` text as message.
#[derive(Debug, thiserror::Error)]
pub enum ConstraintError {
    #[error("When response_format type is 'json_schema', the 'json_schema' field must be provided.")]
    MissingJsonSchema,
    #[error("Invalid response_format: {0}")]
    InvalidResponseFormat(&'static str),
    #[error("response_format type {0:?} is not supported by this server")]
    UnsupportedResponseFormat(String),
    #[error("You can only use one kind of constraints for structured outputs ('json', 'regex' or 'choice').")]
    SeveralStructuredOutputs,
    #[error(
        "You can only use one kind of guided decoding ('guided_json', 'guided_regex' or 'guided_choice')."
    )]
    SeveralGuided,
    #[error("You must use one kind of structured outputs constraint but none are specified: {0}")]
    NoStructuredOutput(String),
    #[error("You can only either use constraints for structured outputs or tools, not both.")]
    WithNamedTool,
    #[error("{field} must be {expected}")]
    WrongType { field: &'static str, expected: &'static str },
    #[error("Choice '[]' cannot be an empty list")]
    EmptyChoice,
    #[error("{0} is not supported by this server")]
    Unsupported(&'static str),
    #[error("Invalid JSON grammar specification.")]
    InvalidJson,
    #[error("Failed to transform json schema into a grammar: {0}")]
    Schema(#[from] SchemaError),
    #[error("Failed to transform regex into a grammar: {reason}")]
    Regex { reason: String },
}

/// Fields that set a constraint, by kind.
struct Kinds<'a> {
    json: Option<&'a Value>,
    regex: Option<&'a Value>,
    choice: Option<&'a Value>,
}

// === impl Constraint ===

impl Constraint {
    /// Reads the constraint of a request's body; `None` is free text. vLLM's fields have priority over
    /// `response_format`.
    ///
    /// # Errors
    /// Fails for several constraints at once, for malformed ones, and for schemas or expressions that are not
    /// supported.
    pub fn parse(body: &Map<String, Value>) -> Result<Option<Self>, ConstraintError> {
        let from_format = match given(body, "response_format") {
            Some(format) => response_format(format)?,
            None => None,
        };
        let from_fields = match given(body, "structured_outputs") {
            Some(fields) => Some(structured_outputs(fields, body)?),
            None => guided(body)?,
        };
        Ok(from_fields.or(from_format))
    }

    /// Makes a text that satisfies it. JSON is on one line, with a space after `:` and `,`.
    ///
    /// # Errors
    /// Fails if nothing satisfies it, or nothing was found within bounds.
    pub fn generate(&self, rng: &mut dyn Rng) -> Result<String, ConstraintError> {
        match self {
            Self::Json(schema) => Ok(json_text::to_text(&schema.generate(rng)?)),
            Self::Choice(choices) => Ok(choices[rng.random_range(0..choices.len())].clone()),
            Self::Regex(pattern) => pattern
                .generate(rng)
                .ok_or_else(|| ConstraintError::Regex { reason: "found nothing that matches".to_owned() }),
        }
    }

    /// Returns whether a text satisfies it.
    pub fn accepts(&self, text: &str) -> bool {
        match self {
            Self::Json(schema) => serde_json::from_str(text).is_ok_and(|value| schema.accepts(&value)),
            Self::Choice(choices) => choices.iter().any(|choice| choice == text),
            Self::Regex(pattern) => pattern.matches(text),
        }
    }

    /// Allows any JSON object.
    fn json_object() -> Self {
        Self::Json(Box::new(Schema::any_object()))
    }

    fn json(schema: &Value) -> Result<Self, ConstraintError> {
        let parsed: Value;
        let schema = match schema {
            Value::String(text) => {
                parsed = serde_json::from_str(text).map_err(|_broken| ConstraintError::InvalidJson)?;
                &parsed
            }
            other => other,
        };
        Ok(Self::Json(Box::new(Schema::parse(schema)?)))
    }

    fn of(kinds: &Kinds<'_>) -> Result<Option<Self>, ConstraintError> {
        match kinds {
            Kinds { json: Some(schema), regex: _, choice: _ } => Self::json(schema).map(Some),
            Kinds { json: None, regex: Some(regex), choice: _ } => {
                let wrong = ConstraintError::WrongType { field: "regex", expected: "a string" };
                let source = regex.as_str().ok_or(wrong)?;
                let pattern = Pattern::parse(source, Anchoring::Whole);
                let pattern =
                    pattern.map_err(|error| ConstraintError::Regex { reason: error.to_string() })?;
                Ok(Some(Self::Regex(Box::new(pattern))))
            }
            Kinds { json: None, regex: None, choice: Some(choice) } => {
                let texts = choice.as_array().and_then(|texts| {
                    texts.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()
                });
                let wrong = ConstraintError::WrongType { field: "choice", expected: "a list of strings" };
                let texts = texts.ok_or(wrong)?;
                if texts.is_empty() {
                    Err(ConstraintError::EmptyChoice)
                } else {
                    Ok(Some(Self::Choice(texts)))
                }
            }
            Kinds { json: None, regex: None, choice: None } => Ok(None),
        }
    }
}

// === impl ConstraintError ===

impl ConstraintError {
    /// Returns the `param` of the error on the wire.
    pub fn param(&self) -> Option<&'static str> {
        match self {
            Self::MissingJsonSchema | Self::InvalidResponseFormat(_) | Self::UnsupportedResponseFormat(_) => {
                Some("response_format")
            }
            Self::SeveralStructuredOutputs
            | Self::SeveralGuided
            | Self::NoStructuredOutput(_)
            | Self::WithNamedTool
            | Self::WrongType { .. }
            | Self::EmptyChoice
            | Self::Unsupported(_)
            | Self::InvalidJson
            | Self::Schema(_)
            | Self::Regex { .. } => None,
        }
    }
}

// === impl Kinds ===

impl Kinds<'_> {
    fn count(&self) -> usize {
        let Self { json, regex, choice } = self;
        [json, regex, choice].into_iter().flatten().count()
    }
}

fn response_format(format: &Value) -> Result<Option<Constraint>, ConstraintError> {
    let kind = format.get("type").and_then(Value::as_str);
    match kind.ok_or(ConstraintError::InvalidResponseFormat("`type` is required"))? {
        "text" => Ok(None),
        "json_object" => Ok(Some(Constraint::json_object())),
        "json_schema" => {
            let wrapper = format.get("json_schema").filter(|wrapper| !wrapper.is_null());
            let wrapper = wrapper.ok_or(ConstraintError::MissingJsonSchema)?;
            if !wrapper.get("name").is_some_and(Value::is_string) {
                return Err(ConstraintError::InvalidResponseFormat("`json_schema.name` must be a string"));
            }
            match wrapper.get("schema").filter(|schema| !schema.is_null()) {
                Some(schema) => Constraint::json(schema).map(Some),
                // In vLLM the text is free without a schema.
                None => Ok(None),
            }
        }
        other => Err(ConstraintError::UnsupportedResponseFormat(other.to_owned())),
    }
}

fn structured_outputs(fields: &Value, body: &Map<String, Value>) -> Result<Constraint, ConstraintError> {
    let wrong = ConstraintError::WrongType { field: "structured_outputs", expected: "an object" };
    let fields = fields.as_object().ok_or(wrong)?;
    let kinds =
        Kinds { json: given(fields, "json"), regex: given(fields, "regex"), choice: given(fields, "choice") };
    if kinds.count() > 1 {
        return Err(ConstraintError::SeveralStructuredOutputs);
    }
    if kinds.count() > 0 && body.get("tool_choice").is_some_and(Value::is_object) {
        return Err(ConstraintError::WithNamedTool);
    }
    for (field, name) in
        [("grammar", "structured_outputs.grammar"), ("structural_tag", "structured_outputs.structural_tag")]
    {
        if given(fields, field).is_some() {
            return Err(ConstraintError::Unsupported(name));
        }
    }
    if let Some(constraint) = Constraint::of(&kinds)? {
        return Ok(constraint);
    }
    if fields.get("json_object") == Some(&Value::Bool(true)) {
        return Ok(Constraint::json_object());
    }
    Err(ConstraintError::NoStructuredOutput(Value::Object(fields.clone()).to_string()))
}

fn guided(body: &Map<String, Value>) -> Result<Option<Constraint>, ConstraintError> {
    let kinds = Kinds {
        json: given(body, "guided_json"),
        regex: given(body, "guided_regex"),
        choice: given(body, "guided_choice"),
    };
    if kinds.count() > 1 {
        return Err(ConstraintError::SeveralGuided);
    }
    if given(body, "guided_grammar").is_some() {
        return Err(ConstraintError::Unsupported("guided_grammar"));
    }
    Constraint::of(&kinds)
}

fn given<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).filter(|value| !value.is_null())
}
