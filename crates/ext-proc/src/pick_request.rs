//! The director's input, read from a request's headers, metadata and body.

use envoy_proto::config::core::v3::{HeaderValue, Metadata};
use envoy_proto::service::ext_proc::v3::HttpHeaders;
use inference_api::keys;
use inference_api::object::ObjectKey;
use prefix_index::blocks::TokenPrompt;

use crate::body::{Api, RequestBody};
use crate::refusal::RequestFault;
use crate::response::is_of_kind;
use crate::subset::Subset;

/// A request that needs an endpoint.
#[derive(Debug)]
pub struct PickRequest {
    /// `x-request-id` that the client, the proxy or the picker has set.
    pub x_request_id: String,
    /// The pool that the proxy names.
    pub pool: Option<ObjectKey>,
    pub subset: Option<Subset>,
    /// Name of the InferenceObjective that the client names.
    pub objective: Option<String>,
    /// True if the client asks for the decision.
    pub wants_reason: bool,
    pub content: Content,
}

/// The token ids of a request's prompts.
#[derive(Debug, Default)]
pub enum PromptTokens {
    /// Not asked for, because the pool does not use them.
    #[default]
    Unasked,
    /// The ids, without adapter and salt.
    Known(Vec<TokenPrompt>),
    /// The reason why they are missing: the request is placed by the estimate.
    Unknown(String),
}

/// The content of the request's body.
#[derive(Debug)]
pub enum Content {
    /// Unknown: there is no body, or the picker does not read bodies on this path. Placed by load.
    Opaque,
    Body(RequestBody),
    Fault(RequestFault),
}

/// `x-request-id` of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestId {
    pub(crate) text: String,
    /// True if the picker created it, so that the request must get it.
    pub(crate) is_fresh: bool,
}

/// The way to read the body of a request, according to its path and headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// JSON of this API.
    Json(Api),
    /// Compressed JSON, which cannot be read.
    Encoded { encoding: String },
    /// Not read; placed by load.
    Opaque,
}

/// The request line and the headers that the picker needs.
#[derive(Debug)]
pub struct RequestHead {
    pub route: Route,
    pub x_request_id: Option<String>,
    pub subset: Option<Subset>,
    pub has_content_length: bool,
    pub objective: Option<String>,
    pub wants_reason: bool,
}

impl RequestHead {
    #[must_use]
    pub fn new(headers: &HttpHeaders, metadata: Option<&Metadata>) -> Self {
        let mut line = RequestLine::default();
        let mut x_request_id = None;
        let mut has_content_length = false;
        let mut objective = None;
        let mut wants_reason = false;
        for header in headers.headers.iter().flat_map(|map| &map.headers) {
            let value = || header_value(header);
            match header.key.as_str() {
                ":method" => line.method = value(),
                ":path" => line.path = value(),
                "content-type" => line.content_type = Some(value()),
                "content-encoding" => line.content_encoding = Some(value()),
                "x-request-id" if !value().is_empty() => x_request_id = Some(value().to_owned()),
                "content-length" => has_content_length = true,
                keys::EXPLAIN => wants_reason = matches!(value(), "1" | "true"),
                name if keys::OBJECTIVE.contains(&name) => objective = Some(value().to_owned()),
                _ => {}
            }
        }
        Self {
            route: Route::new(line),
            x_request_id,
            subset: Subset::from_metadata(metadata),
            has_content_length,
            objective,
            wants_reason,
        }
    }
}

/// The header's text, in whichever of its two fields the proxy put it; empty if it is not UTF-8.
#[must_use]
pub fn header_value(header: &HeaderValue) -> &str {
    if header.raw_value.is_empty() {
        return &header.value;
    }
    std::str::from_utf8(&header.raw_value).unwrap_or_default()
}

/// The inputs of the route.
#[derive(Clone, Copy, Debug, Default)]
struct RequestLine<'a> {
    method: &'a str,
    path: &'a str,
    content_type: Option<&'a str>,
    content_encoding: Option<&'a str>,
}

/// Suffixes of paths with prompts. Longer suffixes come first: two end in `/completions`.
const PROMPT_PATHS: [(&str, Api); 11] = [
    ("/chat/completions", Api::Chat),
    ("/completions", Api::Completions),
    ("/responses", Api::Responses),
    ("/messages", Api::Messages),
    ("/embeddings", Api::Pooling),
    ("/pooling", Api::Pooling),
    ("/score", Api::Pooling),
    ("/rerank", Api::Pooling),
    ("/classify", Api::Pooling),
    ("/inference/v1/generate", Api::Generate),
    ("/invocations", Api::Invocations),
];

impl Route {
    /// The route of a request. Without a path it does not come from HTTP: the sender means OpenAI's JSON. On an unknown
    /// path, a body that may be JSON is read for the model's name.
    fn new(line: RequestLine<'_>) -> Self {
        let RequestLine { method, path, content_type, content_encoding } = line;
        if path.is_empty() {
            return Self::Json(Api::Any);
        }
        if method != "POST" {
            return Self::Opaque;
        }
        let path = path.split(['?', '#']).next().unwrap_or_default().trim_end_matches('/');
        let known = PROMPT_PATHS.into_iter().find(|(suffix, _)| path.ends_with(suffix));
        let is_json = content_type.map(|kind| is_of_kind(kind, "json"));
        let api = match (known, is_json) {
            (Some((_, api)), _) => api,
            (None, Some(true) | None) => Api::ModelOnly,
            (None, Some(false)) => return Self::Opaque,
        };
        let encoding = content_encoding.map(str::trim).unwrap_or_default();
        if encoding.is_empty() || encoding.eq_ignore_ascii_case("identity") {
            return Self::Json(api);
        }
        match (known, is_json) {
            (None, None | Some(false)) => Self::Opaque,
            (Some(_), _) | (None, Some(true)) => Self::Encoded { encoding: encoding.to_owned() },
        }
    }
}
