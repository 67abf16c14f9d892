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

use crate::body::{Api, BodyError, ModelName, RequestBody};
use crate::pick_request::{RequestHead, Route, header_value};
use crate::refusal::{Refusal, RequestFault};
use crate::reply;
use crate::response::Layout;

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

/// The picker whose behaviour clients and gateways see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compat {
    /// The picker's own.
    #[default]
    None,
    /// The style of Gateway API Inference Extension v0.4.
    GieV04,
}

/// The style of the replies on one stream.
#[derive(Debug)]
pub(crate) enum ReplyStyle {
    Own,
    GieV04 {
        /// Headers of the request in upstream's form, which the answer to them repeats.
        echoed: Vec<HeaderValueOption>,
    },
}

// === impl Compat ===

impl Compat {
    /// Checks a body that engines accept, for a pool that knows models if `has_models`.
    ///
    /// # Errors
    /// If the pool, or the clients of another picker, do not accept it.
    pub fn check(self, body: &RequestBody, has_models: bool) -> Result<(), Refusal> {
        let refused = |fault: &BodyError| Refusal::Request(RequestFault::Malformed(fault.clone()));
        match (self, &body.model) {
            (Self::GieV04, Err(fault)) => Err(refused(fault)),
            (Self::GieV04, Ok(ModelName { name, span: _ })) => match &body.prompts {
                Err(fault) => Err(refused(fault)),
                Ok(_) if has_models => Ok(()),
                Ok(_) => Err(Refusal::ModelNotFound { model: name.clone() }),
            },
            (Self::None, Err(fault)) if has_models && body.api.names_its_model() => Err(refused(fault)),
            (Self::None, _) => Ok(()),
        }
    }

    /// Returns true if a pool without pods counts as saturated, so that requests that are not critical are shed.
    #[must_use]
    pub fn sheds_without_pods(self) -> bool {
        match self {
            Self::None => false,
            Self::GieV04 => true,
        }
    }

    /// The error's name in metrics, its `error_code`.
    #[must_use]
    pub fn error_code(self, refusal: &Refusal) -> String {
        match self {
            Self::None => refusal.code().to_string(),
            Self::GieV04 => error_code(refusal).to_owned(),
        }
    }
}

// === impl ReplyStyle ===

impl ReplyStyle {
    pub(crate) fn new(compat: Compat) -> Self {
        match compat {
            Compat::None => Self::Own,
            Compat::GieV04 => Self::GieV04 { echoed: Vec::new() },
        }
    }

    /// Takes the request's headers. Upstream reads every body as OpenAI's JSON.
    pub(crate) fn note_request(&mut self, headers: &HttpHeaders, head: &mut RequestHead) {
        match self {
            Self::Own => {}
            Self::GieV04 { echoed } => {
                head.route = Route::Json(Api::Any);
                if !headers.end_of_stream {
                    *echoed = in_upstreams_form(headers);
                }
            }
        }
    }

    /// Returns true if a fault in a body of `api` is told before the body is complete. Upstream reads only complete
    /// bodies, and repeats them.
    pub(crate) fn refuses_before_the_end(&self, api: Api) -> bool {
        match self {
            Self::Own => api.names_its_model(),
            Self::GieV04 { .. } => false,
        }
    }

    /// Changes the answers to a request into this style. `n_bytes` is the length of a body that was read.
    pub(crate) fn apply_to_pick(&self, answers: &mut [ProcessingResponse], n_bytes: usize) {
        match self {
            Self::Own => {}
            Self::GieV04 { echoed } => answers.iter_mut().for_each(|answer| picked(answer, echoed, n_bytes)),
        }
    }

    /// The refusal of a request. `body` is the part of its body that was kept; `None` if none was read.
    pub(crate) fn refused(
        &self,
        refusal: &Refusal,
        request_id: &str,
        body: Option<&[Bytes]>,
    ) -> ProcessingResponse {
        match self {
            Self::Own => reply::refused(refusal, request_id),
            Self::GieV04 { .. } => reply::message(Response::ImmediateResponse(refused(refusal, body))),
        }
    }

    /// Returns true if the response gets the client's name of the model back.
    pub(crate) fn restores_names(&self) -> bool {
        match self {
            Self::Own => true,
            Self::GieV04 { .. } => false,
        }
    }

    /// Changes the answer to response headers into this style.
    pub(crate) fn apply_to_response(&self, answer: &mut ProcessingResponse, headers: &HttpHeaders) {
        match self {
            Self::Own => {}
            Self::GieV04 { .. } => responded(answer, headers),
        }
    }

    /// Returns true if a response of `layout` is sent on only when it is complete.
    pub(crate) fn holds_response(&self, layout: Layout) -> bool {
        match self {
            Self::Own => false,
            Self::GieV04 { .. } => layout != Layout::EventStream,
        }
    }
}

/// The message's headers in upstream's form, without those that it never echoes.
fn in_upstreams_form(headers: &HttpHeaders) -> Vec<HeaderValueOption> {
    let headers = headers.headers.iter().flat_map(|map| &map.headers);
    let headers = headers.filter(|header| !SYSTEM_OWNED.contains(&header.key.to_ascii_lowercase().as_str()));
    headers.map(|header| set(&header.key, header_value(header))).collect()
}

/// Changes the picker's answer to request headers into upstream's; any other answer stays as it is.
fn picked(answer: &mut ProcessingResponse, echoed: &[HeaderValueOption], n_bytes: usize) {
    let Some(Response::RequestHeaders(headers)) = &mut answer.response else { return };
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
    mutation.set_headers.extend_from_slice(echoed);
}

/// Changes the picker's answer to response headers into upstream's.
fn responded(answer: &mut ProcessingResponse, headers: &HttpHeaders) {
    let Some(Response::ResponseHeaders(response)) = &mut answer.response else { return };
    let mut set_headers = vec![set(WENT_INTO_RESPONSE_HEADERS, "true")];
    set_headers.extend(in_upstreams_form(headers));
    let mutation = HeaderMutation { set_headers, remove_headers: Vec::new() };
    response.response.get_or_insert_default().header_mutation = Some(mutation);
}

/// Upstream's name of an error.
fn error_code(refusal: &Refusal) -> &'static str {
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
fn refused(refusal: &Refusal, body: Option<&[Bytes]>) -> ImmediateResponse {
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
