//! Parses manifests into objects; every error names the file, the document, the object and the field.

use serde_json::Value;
use thiserror::Error;

use crate::field::FieldError;
use crate::fields::UnknownField;
use crate::kinds::{Object, ObjectError, ReadError};
use crate::lenient::{self, Lenient};

/// Why a manifest was refused.
#[derive(Debug, Error)]
pub enum ManifestError {
    #[error("{file}: not valid YAML: {message}")]
    Yaml { file: String, message: String },
    #[error("{file}, document {document}: {message}")]
    Document { file: String, document: usize, message: String },
    #[error("{file}, document {document}: kind {kind} of {api_version} is not supported")]
    Kind { file: String, document: usize, api_version: String, kind: String },
    #[error("{file}, document {document}, {error}")]
    Object { file: String, document: usize, error: Box<ObjectError> },
}

/// Values of a file of YAML or JSON documents, in their order; empty documents are null.
///
/// # Errors
/// If the text is neither YAML nor JSON. `file` only appears in the message.
pub fn documents(text: &str, file: &str) -> Result<Vec<Value>, ManifestError> {
    // JSON may be indented with tabs, YAML may not.
    if let Ok(value) = serde_json::from_str(text) {
        return Ok(vec![value]);
    }
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| ManifestError::Yaml { file: file.to_owned(), message: error.to_string() })
}

/// Parses a file of one or more documents; empty documents are skipped.
///
/// # Errors
/// The first document that is not YAML, has a kind that Warmpath does not support, or has an unknown field. `file` only
/// appears in the message.
pub fn parse(text: &str, file: &str) -> Result<Vec<Object>, ManifestError> {
    documents(text, file)?
        .into_iter()
        .enumerate()
        .filter(|(_, value)| !value.is_null())
        .map(|(idx, value)| parse_document(value, file, idx + 1))
        .collect()
}

fn parse_document(value: Value, file: &str, document: usize) -> Result<Object, ManifestError> {
    let file = file.to_owned();
    let refuse = |error: ObjectError, file: String| {
        Err(ManifestError::Object { file, document, error: Box::new(error) })
    };
    match lenient::read(value) {
        Ok(Lenient { object, unknown }) => match unknown.into_iter().next() {
            None => Ok(object),
            Some(field) => refuse(not_supported(&object, field), file),
        },
        Err(error @ ReadError::NoKind) => {
            Err(ManifestError::Document { file, document, message: error.to_string() })
        }
        Err(ReadError::Kind { api_version, kind }) => {
            Err(ManifestError::Kind { file, document, api_version, kind })
        }
        Err(ReadError::Object(error)) => refuse(error, file),
    }
}

/// The error of a field that nothing would honour. It may well exist in the API and only be unsupported here.
fn not_supported(object: &Object, UnknownField { path, known }: UnknownField) -> ObjectError {
    let name = path.rsplit('.').next().unwrap_or(&path);
    let known: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
    let what = format!("field is not supported: `{name}`, expected one of {}", known.join(", "));
    ObjectError { kind: object.kind().to_owned(), key: object.key(), error: FieldError { field: path, what } }
}
