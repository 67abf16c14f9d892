//! Errors on the wire, in vLLM's shape: `{"error":{"message","type","param","code"}}`.

use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde::Serialize;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) kind: &'static str,
    pub(crate) message: String,
    pub(crate) param: Option<String>,
}

#[derive(Serialize)]
struct Body<'a> {
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
    /// A request that is well formed and cannot be served.
    pub(crate) fn bad_request(message: impl Into<String>, param: Option<&str>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            kind: "BadRequestError",
            message: message.into(),
            param: param.map(str::to_owned),
        }
    }

    /// `message` and what vLLM puts behind it when a parameter has a bad value.
    pub(crate) fn bad_parameter(message: &str, parameter: &str, value: impl std::fmt::Display) -> Self {
        Self::bad_request(format!("{message} (parameter={parameter}, value={value})"), Some(parameter))
    }

    /// A body that does not have the shape of a request.
    pub(crate) fn validation(message: String, param: Option<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, kind: "Bad Request", message, param }
    }

    pub(crate) fn model_not_found(model: &str, valid: &[String]) -> Self {
        Self {
            status: StatusCode::NOT_FOUND,
            kind: "NotFoundError",
            message: format!("The model `{model}` does not exist. Valid aliases: {}.", valid.join(", ")),
            param: Some("model".to_owned()),
        }
    }

    /// Not of an endpoint but of HTTP itself: the reason phrase is all there is to say.
    pub(crate) fn plain(status: StatusCode) -> Self {
        let reason = status.canonical_reason().unwrap_or("Error");
        Self { status, kind: reason, message: reason.to_owned(), param: None }
    }

    pub(crate) fn engine_dead() -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            kind: "InternalServerError",
            message: "EngineCore encountered an issue. See stack trace (above) for the root cause."
                .to_owned(),
            param: None,
        }
    }

    pub(crate) fn to_json(&self) -> String {
        let Self { status, kind, message, param } = self;
        let error = Inner { message, r#type: kind, param: param.as_deref(), code: status.as_u16() };
        serde_json::to_string(&Body { error }).expect("an error is plain data")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, [(header::CONTENT_TYPE, "application/json")], self.to_json()).into_response()
    }
}
