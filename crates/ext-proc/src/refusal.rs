//! Requests that get no endpoint: the reasons, and the only conversion to the client's answer.
//!
//! Every refusal is an ImmediateResponse with an OpenAI-shaped body, like vLLM's errors:
//! `{"error":{"message":"…","type":"NotFoundError","param":"model","code":404}}`.

use std::time::Duration;

use bytes::Bytes;
use envoy_proto::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_proto::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_proto::service::ext_proc::v3::{HeaderMutation, ImmediateResponse};
use envoy_proto::r#type::v3::HttpStatus;
use inference_api::object::ObjectKey;
use inference_api::pool::Criticality;
use serde::Serialize;

use crate::body::BodyError;

/// Reason why a request cannot be read far enough to be routed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestFault {
    #[error(transparent)]
    Malformed(#[from] BodyError),
    #[error("the body is longer than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the content-encoding `{encoding}` of the body is not supported: send it as it is")]
    Encoded { encoding: String },
    #[error("the bodies of other requests take all memory that the picker has for bodies: try again later")]
    NoRoom,
    #[error("nothing of the body came for {idle:?}")]
    Stalled { idle: Duration },
    #[error("the body was not complete after {limit:?}")]
    TooSlow { limit: Duration },
    #[error(transparent)]
    Headers(#[from] HeadersFault),
}

/// Limit because of which a request's headers have no room for the picker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadersFault {
    #[error(
        "the request has {n_headers} headers: with the gateway's own they are more than {limit}, send fewer"
    )]
    TooMany { n_headers: usize, limit: usize },
    #[error(
        "the request's headers are {n_bytes} bytes: with the gateway's own they are more than {limit}, send less"
    )]
    TooLong { n_bytes: usize, limit: usize },
}

/// Reason why a request gets no endpoint, as the client sees it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Request(#[from] RequestFault),
    #[error("The model `{model}` does not exist.")]
    ModelNotFound { model: String },
    #[error("the pool {pool} is saturated, and {} requests wait for capacity: try again later", criticality.as_str())]
    Saturated { pool: ObjectKey, criticality: Criticality },
    #[error("no InferencePool is configured")]
    NoPool,
    #[error("the InferencePool {pool} is not configured")]
    UnknownPool { pool: ObjectKey },
    #[error("no endpoint of pool {pool} is ready")]
    NoEndpoints { pool: ObjectKey },
    #[error("no ready endpoint of pool {pool} is in the requested subset")]
    SubsetEmpty { pool: ObjectKey },
}

impl Refusal {
    /// HTTP status.
    #[must_use]
    pub fn code(&self) -> u16 {
        match self {
            Self::Request(RequestFault::Malformed(_)) => 400,
            Self::Request(RequestFault::Stalled { .. } | RequestFault::TooSlow { .. }) => 408,
            Self::Request(RequestFault::TooLarge { .. }) => 413,
            Self::Request(RequestFault::Encoded { .. }) => 415,
            Self::Request(RequestFault::Headers(_)) => 431,
            Self::ModelNotFound { .. } => 404,
            Self::Saturated { .. } => 429,
            Self::Request(RequestFault::NoRoom)
            | Self::NoPool
            | Self::UnknownPool { .. }
            | Self::NoEndpoints { .. }
            | Self::SubsetEmpty { .. } => 503,
        }
    }

    /// The outcome in decision records, metrics and, after `epp_`, in the proxy's response-code details.
    #[must_use]
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Request(RequestFault::Malformed(_)) => "bad_request",
            Self::Request(RequestFault::TooLarge { .. }) => "body_too_large",
            Self::Request(RequestFault::Encoded { .. }) => "body_encoded",
            Self::Request(RequestFault::Headers(_)) => "headers_too_large",
            Self::Request(RequestFault::NoRoom) => "buffers_full",
            Self::Request(RequestFault::Stalled { .. } | RequestFault::TooSlow { .. }) => "body_timeout",
            Self::ModelNotFound { .. } => "model_not_found",
            Self::Saturated { .. } => "saturated",
            Self::NoPool | Self::UnknownPool { .. } => "no_pool",
            Self::NoEndpoints { .. } => "no_endpoints",
            Self::SubsetEmpty { .. } => "subset_empty",
        }
    }

    /// Seconds after which a client whose request was shed may try again. One second is twenty scrapes: long enough for
    /// a queue to have moved, short enough to be worth waiting for.
    fn retry_after_s(&self) -> Option<u32> {
        matches!(self, Self::Saturated { .. } | Self::Request(RequestFault::NoRoom)).then_some(1)
    }

    /// vLLM's name of the error.
    fn error_type(&self) -> &'static str {
        match self {
            Self::Request(RequestFault::Encoded { .. }) => "UnsupportedMediaTypeError",
            Self::Request(
                RequestFault::Malformed(_) | RequestFault::TooLarge { .. } | RequestFault::Headers(_),
            ) => "BadRequestError",
            Self::Request(RequestFault::Stalled { .. } | RequestFault::TooSlow { .. }) => {
                "RequestTimeoutError"
            }
            Self::ModelNotFound { .. } => "NotFoundError",
            Self::Saturated { .. } => "TooManyRequestsError",
            Self::Request(RequestFault::NoRoom)
            | Self::NoPool
            | Self::UnknownPool { .. }
            | Self::NoEndpoints { .. }
            | Self::SubsetEmpty { .. } => "ServiceUnavailableError",
        }
    }

    fn param(&self) -> Option<&'static str> {
        match self {
            Self::Request(RequestFault::Malformed(error)) => error.param(),
            Self::ModelNotFound { .. } => Some("model"),
            Self::Request(
                RequestFault::TooLarge { .. }
                | RequestFault::Encoded { .. }
                | RequestFault::Headers(_)
                | RequestFault::NoRoom
                | RequestFault::Stalled { .. }
                | RequestFault::TooSlow { .. },
            )
            | Self::Saturated { .. }
            | Self::NoPool
            | Self::UnknownPool { .. }
            | Self::NoEndpoints { .. }
            | Self::SubsetEmpty { .. } => None,
        }
    }
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    error: ErrorObject<'a>,
}

#[derive(Serialize)]
struct ErrorObject<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: u16,
}

impl From<&Refusal> for ImmediateResponse {
    fn from(refusal: &Refusal) -> Self {
        let message = refusal.to_string();
        let code = refusal.code();
        let error =
            ErrorObject { message: &message, r#type: refusal.error_type(), param: refusal.param(), code };
        let body = serde_json::to_vec(&ErrorBody { error }).expect("strings and numbers are valid JSON");
        let content_type = header("content-type", Bytes::from_static(b"application/json"));
        let retry_after =
            refusal.retry_after_s().map(|seconds| header("retry-after", seconds.to_string().into()));
        let set_headers = std::iter::once(content_type).chain(retry_after).collect();
        Self {
            status: Some(HttpStatus { code: i32::from(code) }),
            headers: Some(HeaderMutation { set_headers, remove_headers: Vec::new() }),
            body: body.into(),
            grpc_status: None,
            details: format!("epp_{}", refusal.outcome()),
        }
    }
}

/// A header that replaces the one of that name in the request or response.
#[must_use]
pub fn header(key: &str, raw_value: Bytes) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue { key: key.to_owned(), value: String::new(), raw_value }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        keep_empty_value: false,
    }
}
