//! Replies like those of Gateway API Inference Extension v0.4, where they differ from ours: `--compat gie-v0.4`.
//!
//! The answer to the headers of a request with a body contains all of them and the body's length, the answer to
//! response headers every header of the response. JSON responses are answered when they are complete, and refusals are
//! plain text. It knows no paths.

use bytes::Bytes;
use envoy_proto::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_proto::service::ext_proc::v3::processing_response::Response;
use envoy_proto::service::ext_proc::v3::{
    HeaderMutation, HttpHeaders, ImmediateResponse, ProcessingResponse,
};
use envoy_proto::r#type::v3::HttpStatus;
use inference_api::keys;

use crate::body::BodyError;
use crate::inquiry::header_value;
use crate::refusal::{Refusal, RequestFault};

/// Set on every response, "for debugging purpose only".
const WENT_INTO_RESPONSE_HEADERS: &str = "x-went-into-resp-headers";
/// Start of upstream's message for a body that is not a JSON object.
const UNPARSABLE: &str = "Error unmarshaling request body: ";
/// Headers that upstream never echoes.
const SYSTEM_OWNED: [&str; 7] = [
    "x-gateway-inference-fairness-id",
    "x-gateway-inference-objective",
    "x-gateway-model-name-rewrite",
    keys::DESTINATION_ENDPOINT,
    keys::DESTINATION_ENDPOINT_SUBSET,
    keys::DESTINATION_ENDPOINT_SERVED,
    "content-length",
];

/// The style of the picker's replies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compat {
    /// The picker's own.
    #[default]
    None,
    /// The style of Gateway API Inference Extension v0.4.
    GieV04,
}

/// Headers of the request that are echoed, in upstream's form.
#[must_use]
pub(crate) fn echoed(headers: &HttpHeaders) -> Vec<HeaderValueOption> {
    let headers = headers.headers.iter().flat_map(|map| &map.headers);
    let headers = headers.filter(|header| !SYSTEM_OWNED.contains(&header.key.to_ascii_lowercase().as_str()));
    headers.map(|header| set(&header.key, header_value(header))).collect()
}

/// Changes the picker's answer to request headers into upstream's; other answers stay as they are. `n_bytes` is the
/// length of a body that was read.
pub(crate) fn picked(answers: &mut [ProcessingResponse], echo: &[HeaderValueOption], n_bytes: usize) {
    for answer in answers {
        let Some(Response::RequestHeaders(headers)) = &mut answer.response else { continue };
        let common = headers.response.get_or_insert_default();
        common.clear_route_cache = true;
        let mutation = common.header_mutation.get_or_insert_default();
        mutation.set_headers.retain(|option| {
            option.header.as_ref().is_some_and(|header| header.key == keys::DESTINATION_ENDPOINT)
        });
        for option in &mut mutation.set_headers {
            option.append_action = 0;
        }
        if n_bytes > 0 {
            mutation.set_headers.push(set("Content-Length", &n_bytes.to_string()));
        }
        mutation.set_headers.extend_from_slice(echo);
    }
}

/// Changes the picker's answer to response headers into upstream's.
pub(crate) fn responded(answer: &mut ProcessingResponse, headers: &HttpHeaders) {
    let Some(Response::ResponseHeaders(response)) = &mut answer.response else { return };
    let mut set_headers = vec![set(WENT_INTO_RESPONSE_HEADERS, "true")];
    set_headers.extend(echoed(headers));
    let mutation = HeaderMutation { set_headers, remove_headers: Vec::new() };
    response.response.get_or_insert_default().header_mutation = Some(mutation);
}

/// Upstream's name of an error, its `error_code` in metrics.
#[must_use]
pub fn error_code(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Request(RequestFault::NoRoom) => "InferencePoolResourceExhausted",
        Refusal::Request(_) => "BadRequest",
        Refusal::ModelNotFound { .. } => "BadConfiguration",
        Refusal::Saturated { .. } | Refusal::NoEndpoints { .. } => "InferencePoolResourceExhausted",
        Refusal::NoPool | Refusal::UnknownPool { .. } => "Internal",
        Refusal::SubsetEmpty { .. } => "ServiceUnavailable",
    }
}

/// Upstream's ImmediateResponse. `body` is the request's body if it was read. Upstream repeats a body that it does not
/// understand, takes a request without a body for a GET, and a pool without pods for an error of its own.
#[must_use]
pub(crate) fn refused(refusal: &Refusal, body: Option<&[Bytes]>) -> ImmediateResponse {
    let message = message(refusal);
    let (status, code, message) = match refusal {
        Refusal::NoEndpoints { .. } if body.is_none() => {
            (500, "Internal", "no pods available in datastore".to_owned())
        }
        Refusal::Saturated { .. } | Refusal::NoEndpoints { .. } => (429, error_code(refusal), message),
        Refusal::NoPool | Refusal::UnknownPool { .. } => (500, error_code(refusal), message),
        Refusal::Request(_) | Refusal::ModelNotFound { .. } | Refusal::SubsetEmpty { .. } => {
            (refusal.code(), error_code(refusal), message)
        }
    };
    let mut text = format!("inference gateway: {code} - {message}").into_bytes();
    if let Refusal::Request(RequestFault::Malformed(error)) = refusal
        && malformed(error) == UNPARSABLE
    {
        body.unwrap_or_default().iter().for_each(|chunk| text.extend_from_slice(chunk));
    }
    ImmediateResponse {
        status: Some(HttpStatus { code: i32::from(status) }),
        headers: None,
        body: text.into(),
        grpc_status: None,
        details: String::new(),
    }
}

fn message(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Request(RequestFault::Malformed(error)) => malformed(error).to_owned(),
        Refusal::ModelNotFound { model } => {
            format!("error finding a model object in InferenceModel for input {model}")
        }
        Refusal::Saturated { .. } => "system saturated, non-critical request dropped".to_owned(),
        Refusal::NoEndpoints { .. } => "failed to find target pod: no pods available".to_owned(),
        Refusal::SubsetEmpty { .. } => "failed to find candidate pods for serving the request".to_owned(),
        // Upstream has no limits, knows no encodings, and serves one pool.
        Refusal::Request(
            RequestFault::TooLarge { .. }
            | RequestFault::Encoded { .. }
            | RequestFault::Headers(_)
            | RequestFault::NoRoom
            | RequestFault::Stalled { .. }
            | RequestFault::TooSlow { .. },
        )
        | Refusal::NoPool
        | Refusal::UnknownPool { .. } => refusal.to_string(),
    }
}

fn malformed(error: &BodyError) -> &'static str {
    match error {
        BodyError::ModelMissing | BodyError::ModelType => "model not found in request body",
        BodyError::PromptMissing { .. } | BodyError::PromptEmpty { key: "prompt" } => {
            "prompt not found in request"
        }
        BodyError::PromptType { key: "messages" } => "messages is not a list",
        BodyError::PromptType { .. } => "prompt is not a string",
        BodyError::PromptEmpty { .. } => "messages is empty",
        BodyError::Syntax { .. }
        | BodyError::Utf8 { .. }
        | BodyError::Depth { .. }
        | BodyError::NotAnObject
        | BodyError::ModelTooLong { .. } => UNPARSABLE,
    }
}

/// A header in upstream's form: without an action, which Envoy treats as "append".
fn set(key: &str, value: &str) -> HeaderValueOption {
    let raw_value = value.to_owned().into();
    let header = HeaderValue { key: key.to_owned(), value: String::new(), raw_value };
    HeaderValueOption { header: Some(header), ..HeaderValueOption::default() }
}
