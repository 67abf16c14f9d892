//! The messages that the picker sends to the proxy.

use bytes::Bytes;
use envoy_proto::config::core::v3::HeaderValueOption;
use envoy_proto::google::protobuf::value::Kind;
use envoy_proto::google::protobuf::{Struct, Value};
use envoy_proto::service::ext_proc::v3::body_mutation::Mutation;
use envoy_proto::service::ext_proc::v3::processing_response::Response;
use envoy_proto::service::ext_proc::v3::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, ImmediateResponse,
    ProcessingResponse, StreamedBodyResponse, TrailersResponse,
};
use inference_api::keys;

use crate::pick_request::RequestId;
use crate::refusal::{Refusal, header};

/// Most bytes of body in a message: below Envoy's 64 KiB, the same as upstream's `BodyByteLimit`.
pub const MAX_CHUNK: usize = 62_000;
const CONTENT_LENGTH: &str = "content-length";

/// The destination header, and a new content-length if the body's length changes.
fn destination_headers(destination: &str, content_length: Option<usize>) -> HeaderMutation {
    let mut set_headers =
        vec![header(keys::DESTINATION_ENDPOINT, Bytes::copy_from_slice(destination.as_bytes()))];
    set_headers.extend(content_length.map(|length| header(CONTENT_LENGTH, length.to_string().into())));
    HeaderMutation { set_headers, remove_headers: Vec::new() }
}

fn request_id_header(request_id: &str) -> HeaderValueOption {
    header(keys::REQUEST_ID, Bytes::copy_from_slice(request_id.as_bytes()))
}

/// `envoy.lb: {x-gateway-destination-endpoint: destination}`.
fn destination_metadata(destination: &str) -> Struct {
    let text = Value { kind: Some(Kind::StringValue(destination.to_owned())) };
    let inner = Struct { fields: [(keys::DESTINATION_ENDPOINT.to_owned(), text)].into() };
    let inner = Value { kind: Some(Kind::StructValue(inner)) };
    Struct { fields: [(keys::LB_METADATA.to_owned(), inner)].into() }
}

/// The answer to request headers, with the destination.
#[must_use]
pub(crate) fn picked_headers(
    destination: &str,
    request_id: &RequestId,
    content_length: Option<usize>,
) -> ProcessingResponse {
    let mut headers = destination_headers(destination, content_length);
    headers.set_headers.extend(request_id.is_fresh.then(|| request_id_header(&request_id.text)));
    let common = CommonResponse { header_mutation: Some(headers), ..CommonResponse::default() };
    ProcessingResponse {
        dynamic_metadata: Some(destination_metadata(destination)),
        ..message(Response::RequestHeaders(HeadersResponse { response: Some(common) }))
    }
}

/// The answer to request headers before the pick, while the body is still to come.
#[must_use]
pub(crate) fn request_headers(request_id: &RequestId) -> ProcessingResponse {
    let header_mutation = request_id.is_fresh.then(|| HeaderMutation {
        set_headers: vec![request_id_header(&request_id.text)],
        remove_headers: Vec::new(),
    });
    let common = CommonResponse { header_mutation, ..CommonResponse::default() };
    message(Response::RequestHeaders(HeadersResponse { response: Some(common) }))
}

/// Additional response headers for the client: the request's id, and the decision if it asked for it.
#[must_use]
pub(crate) fn response_additions(request_id: &str, reason: Option<String>) -> Vec<HeaderValueOption> {
    let reason = reason.map(|reason| header(keys::DECISION, reason.into()));
    std::iter::once(request_id_header(request_id)).chain(reason).collect()
}

/// The answer to response headers. If the body's length will change, the announced content-length is removed.
#[must_use]
pub(crate) fn response_headers(
    set_headers: Vec<HeaderValueOption>,
    length_changes: bool,
) -> ProcessingResponse {
    let remove_headers = length_changes.then(|| CONTENT_LENGTH.to_owned()).into_iter().collect();
    let header_mutation = Some(HeaderMutation { set_headers, remove_headers });
    let common = CommonResponse { header_mutation, ..CommonResponse::default() };
    message(Response::ResponseHeaders(HeadersResponse { response: Some(common) }))
}

/// The answer to a buffered body: the destination, and the body if it changed.
#[must_use]
pub fn picked_body(destination: &str, changed: Option<Bytes>) -> ProcessingResponse {
    let content_length = changed.as_ref().map(Bytes::len);
    let common = CommonResponse {
        header_mutation: Some(destination_headers(destination, content_length)),
        body_mutation: changed.map(|body| BodyMutation { mutation: Some(Mutation::Body(body)) }),
        ..CommonResponse::default()
    };
    ProcessingResponse {
        dynamic_metadata: Some(destination_metadata(destination)),
        ..message(Response::RequestBody(BodyResponse { response: Some(common) }))
    }
}

/// A message of a body in full-duplex mode.
#[must_use]
pub fn streamed(body: StreamedBodyResponse) -> BodyResponse {
    let mutation = Some(BodyMutation { mutation: Some(Mutation::StreamedResponse(body)) });
    BodyResponse { response: Some(CommonResponse { body_mutation: mutation, ..CommonResponse::default() }) }
}

/// An unchanged body chunk, in a mode where each chunk is answered.
#[must_use]
pub fn unchanged_body() -> BodyResponse {
    BodyResponse { response: Some(CommonResponse::default()) }
}

/// A replaced body chunk, in a mode where each chunk is answered.
#[must_use]
pub fn changed_body(body: Bytes) -> BodyResponse {
    let mutation = if body.is_empty() { Mutation::ClearBody(true) } else { Mutation::Body(body) };
    let body_mutation = Some(BodyMutation { mutation: Some(mutation) });
    BodyResponse { response: Some(CommonResponse { body_mutation, ..CommonResponse::default() }) }
}

/// A replaced body, in a mode where it is one message.
#[must_use]
pub fn changed_whole_body(body: Bytes) -> BodyResponse {
    let length = header(CONTENT_LENGTH, body.len().to_string().into());
    let header_mutation = Some(HeaderMutation { set_headers: vec![length], remove_headers: Vec::new() });
    let body_mutation = Some(BodyMutation { mutation: Some(Mutation::Body(body)) });
    let common = CommonResponse { header_mutation, body_mutation, ..CommonResponse::default() };
    BodyResponse { response: Some(common) }
}

#[must_use]
pub fn unchanged_trailers() -> TrailersResponse {
    TrailersResponse { header_mutation: None }
}

#[must_use]
pub fn refused(refusal: &Refusal, request_id: &str) -> ProcessingResponse {
    let mut refused = ImmediateResponse::from(refusal);
    let headers = refused.headers.get_or_insert_default();
    headers.set_headers.push(request_id_header(request_id));
    message(Response::ImmediateResponse(refused))
}

#[must_use]
pub fn message(response: Response) -> ProcessingResponse {
    ProcessingResponse { response: Some(response), ..ProcessingResponse::default() }
}
