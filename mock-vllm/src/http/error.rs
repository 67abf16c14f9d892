//! Errors on the wire, in the shapes of vLLM's generations: `{"error":{"message","type","param","code"}}`, which was
//! flat in 0.8.

use super::wire::{Api, Envelope};
use crate::metrics::AdmissionLimit;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde::Serialize;
use vllm_engine::vllm_version::VllmVersion;

/// Type of an error that comes from the web framework.
const NO_TYPE: &str = "";

/// Type of an error about the shape of a body.
const OF_BODY: &str = "Bad Request";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) kind: &'static str,
    pub(crate) message: String,
    /// Text of 0.8 and 0.11, if they say something else.
    pub(crate) older: Option<Box<OlderText>>,
    /// Parameter that is wrong, since 0.33.
    pub(crate) param: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OlderText {
    /// Type in 0.11; 0.8 has one type for all bad requests.
    pub(crate) kind: &'static str,
    pub(crate) message: String,
    /// Status and detail in 0.8, if the framework answers there.
    pub(crate) oldest: Option<(StatusCode, &'static str)>,
}

#[derive(Serialize)]
struct Detail<'a> {
    detail: &'a str,
}

/// Body of an error in 0.8.
#[derive(Serialize)]
struct FlatBody<'a> {
    object: &'static str,
    message: &'a str,
    r#type: &'a str,
    param: (),
    code: u16,
}

#[derive(Serialize)]
struct Nested<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: u16,
}

// === impl ApiError ===

impl ApiError {
    /// Error about a request that is well formed and cannot be served.
    pub(crate) fn bad_request(message: impl Into<String>, param: Option<&str>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            kind: "BadRequestError",
            message: message.into(),
            older: None,
            param: param.map(str::to_owned),
        }
    }

    /// Error about a parameter with a bad value, which vLLM appends to `message`.
    pub(crate) fn bad_parameter(message: &str, parameter: &str, value: impl std::fmt::Display) -> Self {
        let error =
            Self::bad_request(format!("{message} (parameter={parameter}, value={value})"), Some(parameter));
        let older = OlderText { kind: error.kind, message: message.to_owned(), oldest: None };
        Self { older: Some(Box::new(older)), ..error }
    }

    /// Error about a body that does not have the shape of a request.
    pub(crate) fn validation(message: String, older_message: String, param: Option<String>) -> Self {
        let kind = OF_BODY;
        Self {
            status: StatusCode::BAD_REQUEST,
            kind,
            message,
            older: Some(Box::new(OlderText { kind, message: older_message, oldest: None })),
            param,
        }
    }

    /// Returns whether the web framework refused the body before an endpoint saw it.
    pub(crate) fn is_of_body(&self) -> bool {
        self.kind == OF_BODY
    }

    pub(crate) fn model_not_found(model: &str, valid: &[String]) -> Self {
        let kind = "NotFoundError";
        Self {
            status: StatusCode::NOT_FOUND,
            kind,
            message: format!("The model `{model}` does not exist. Valid aliases: {}.", valid.join(", ")),
            older: Some(Box::new(OlderText {
                kind,
                message: format!("The model `{model}` does not exist."),
                oldest: None,
            })),
            param: Some("model".to_owned()),
        }
    }

    /// Error of the web framework, before any of vLLM's code runs: it has no type, in any version.
    pub(crate) fn detail(status: StatusCode, detail: &str) -> Self {
        Self { status, kind: NO_TYPE, message: detail.to_owned(), older: None, param: None }
    }

    /// Error of HTTP itself, with the reason phrase as its message.
    pub(crate) fn plain(status: StatusCode) -> Self {
        let reason = status.canonical_reason().unwrap_or("Error");
        Self { status, kind: reason, message: reason.to_owned(), older: None, param: None }
    }

    pub(crate) fn engine_dead() -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            kind: "InternalServerError",
            message: "EngineCore encountered an issue. See stack trace (above) for the root cause."
                .to_owned(),
            older: None,
            param: None,
        }
    }

    /// Error with vLLM 0.33's texts for `--max-num-queued-reqs` and `--max-num-queued-tokens`.
    pub(crate) fn queue_full(limit: AdmissionLimit) -> Self {
        let message = match limit {
            AdmissionLimit::MaxNumQueuedReqs => {
                "The engine is currently busy and cannot accept new requests. Please try again later or on a different \
                 instance."
            }
            AdmissionLimit::MaxNumQueuedTokens => {
                "The engine has reached its prefill token backlog limit. Please try again later or on a different instance."
            }
        };
        Self { message: message.to_owned(), ..Self::plain(StatusCode::SERVICE_UNAVAILABLE) }
    }

    pub(crate) fn to_json(&self, version: VllmVersion) -> String {
        let Self { status, kind, message, older, param } = self;
        let (older_kind, older_message) =
            older.as_ref().map_or((*kind, message), |older| (older.kind, &older.message));
        let code = status.as_u16();
        let json = match version {
            _ if *kind == NO_TYPE => serde_json::to_string(&Detail { detail: message }),
            // In 0.8, errors of HTTP itself are the web framework's.
            VllmVersion::V0_8 if message == kind => serde_json::to_string(&Detail { detail: message }),
            VllmVersion::V0_8 => {
                let kind = if *status == StatusCode::BAD_REQUEST { "BadRequestError" } else { older_kind };
                let message = older_message;
                serde_json::to_string(&FlatBody { object: "error", message, r#type: kind, param: (), code })
            }
            VllmVersion::V0_11 => {
                let error = Inner { message: older_message, r#type: older_kind, param: None, code };
                serde_json::to_string(&Nested { error })
            }
            VllmVersion::V0_33 => {
                let error = Inner { message, r#type: kind, param: param.as_deref(), code };
                serde_json::to_string(&Nested { error })
            }
        };
        json.expect("an error is plain data")
    }

    /// Writes the error as a frame of a stream that has begun.
    pub(crate) fn to_frame(&self, envelope: &Envelope) -> String {
        let json = self.to_json(envelope.version);
        match (envelope.api, envelope.version) {
            (Api::Chat, VllmVersion::V0_33) => format!("data: {json}\n\n"),
            // These have Python's spacing.
            (Api::Completion, VllmVersion::V0_33) | (_, VllmVersion::V0_11) => {
                format!("data: {}\n\n", python_json(&json))
            }
            (_, VllmVersion::V0_8) => format!("data: {{\"error\": {}}}\n\n", python_json(&json)),
        }
    }
}

impl IntoResponse for ApiError {
    /// Writes the error in the newest shape; [`dated`] converts it to the pod's version.
    fn into_response(self) -> Response {
        let json = self.to_json(VllmVersion::default());
        let mut response = (self.status, [(header::CONTENT_TYPE, "application/json")], json).into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// Rewrites an error as `version` writes it. All responses pass here.
pub(crate) fn dated(response: Response, version: VllmVersion) -> Response {
    if version == VllmVersion::default() {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Some(error) = parts.extensions.get::<ApiError>() else {
        return Response::from_parts(parts, body);
    };
    let oldest = error.older.as_ref().and_then(|older| older.oldest);
    let json = match oldest.filter(|_| version == VllmVersion::V0_8) {
        Some((status, detail)) => {
            parts.status = status;
            ApiError::detail(status, detail).to_json(version)
        }
        None => error.to_json(version),
    };
    Response::from_parts(parts, Body::from(json))
}

/// Writes JSON like Python's `json.dumps`: with spaces after `:` and `,`.
fn python_json(json: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(json).expect("it was just written");
    crate::structured::json_text::to_text(&value)
}
