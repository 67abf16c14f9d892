//! Parses YAML manifests into objects; every error names the file, the document, the object and the field.

use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use crate::field::FieldError;
use crate::kinds::{self, Fields, Object, ObjectError, ReadError};

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

/// Parses a file of one or more YAML documents; empty documents are skipped.
///
/// # Errors
/// The first document that is not YAML, has a kind that Warmpath does not support, or has an unknown field. `file` only
/// appears in the message.
pub fn parse(yaml: &str, file: &str) -> Result<Vec<Object>, ManifestError> {
    let options = serde_saphyr::options! { strict_booleans: true };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(yaml, options)
        .map_err(|error| ManifestError::Yaml { file: file.to_owned(), message: error.to_string() })?;
    documents
        .into_iter()
        .enumerate()
        .filter(|(_, value)| !value.is_null())
        .map(|(idx, value)| parse_document(value, &Position { file, document: idx + 1 }))
        .collect()
}

struct Position<'a> {
    file: &'a str,
    document: usize,
}

fn parse_document(value: Value, position: &Position<'_>) -> Result<Object, ManifestError> {
    let Position { file, document } = position;
    let (file, document) = ((*file).to_owned(), *document);
    kinds::read(value, &mut Strict).map_err(|error| match error {
        ReadError::NoKind => ManifestError::Document { file, document, message: error.to_string() },
        ReadError::Kind { api_version, kind } => ManifestError::Kind { file, document, api_version, kind },
        ReadError::Object(error) => ManifestError::Object { file, document, error: Box::new(error) },
    })
}

/// Refuses fields that Warmpath does not know: nothing would honour them.
struct Strict;

impl Fields for Strict {
    fn read<W: DeserializeOwned>(&mut self, value: Value) -> Result<W, FieldError> {
        serde_path_to_error::deserialize(value).map_err(|error| {
            let FieldError { field, what } = FieldError::from(error);
            // The field may well exist in the API and only be unsupported here.
            let what = match what.strip_prefix("unknown field ") {
                Some(rest) => format!("field is not supported: {rest}"),
                None => what,
            };
            FieldError { field, what }
        })
    }
}
