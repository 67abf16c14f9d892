//! The response's half of a stream: reads it as it passes, restores the model's name, notes the endpoint that served.

use bytes::Bytes;
use envoy_proto::config::core::v3::Metadata;
use envoy_proto::google::protobuf::value::Kind;
use envoy_proto::service::ext_proc::v3::processing_response::Response;
use envoy_proto::service::ext_proc::v3::{HttpBody, HttpHeaders, ProcessingResponse};
use inference_api::keys;

use super::BodyMode;
use super::room::Room;
use crate::budget::Reservation;
use crate::compat::ReplyStyle;
use crate::inquiry::header_value;
use crate::reply::{self, Pieces};
use crate::response::{Layout, ResponseReader, Usage};

/// The response so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseReport {
    /// HTTP status; `None` if no response came.
    pub status: Option<u16>,
    pub usage: Option<Usage>,
    /// Length in bytes of the body so far.
    pub n_bytes: u64,
    /// True if the end was seen; otherwise the client, the proxy or the engine broke off.
    pub complete: bool,
}

#[derive(Debug)]
pub(crate) struct Responding {
    /// The client's name of the model, as a JSON string, if the request was renamed.
    pub(crate) restore: Option<Bytes>,
    /// The decision, for a client that asked for it.
    pub(crate) reason: Option<String>,
    /// The endpoint that served, according to the proxy.
    pub(crate) served: Option<String>,
    reader: Option<ResponseReader>,
    status: Option<u16>,
    complete: bool,
    /// Most bytes that are held back until the response is complete.
    max_held: usize,
    /// Parts that are held back, if responses are sent on as a whole.
    held: Option<Vec<Bytes>>,
    n_held: usize,
    /// Memory of the parts that are held back.
    room: Reservation,
}

impl Responding {
    pub(crate) fn new(max_held: usize, room: Reservation) -> Self {
        Self {
            restore: None,
            reason: None,
            served: None,
            reader: None,
            status: None,
            complete: false,
            max_held,
            held: None,
            n_held: 0,
            room,
        }
    }

    pub(crate) fn headers(
        &mut self,
        headers: &HttpHeaders,
        mode: BodyMode,
        request_id: &str,
        style: &ReplyStyle,
    ) -> ProcessingResponse {
        let mut status = None;
        let (mut content_type, mut content_encoding) = (None, None);
        for header in headers.headers.iter().flat_map(|map| &map.headers) {
            match header.key.as_str() {
                ":status" => status = header_value(header).parse().ok(),
                "content-type" => content_type = Some(header_value(header)),
                "content-encoding" => content_encoding = Some(header_value(header)),
                _ => {}
            }
        }
        self.status = status;
        self.complete = headers.end_of_stream;
        let layout = Layout::new(content_type, content_encoding);
        self.reader = Some(ResponseReader::new(layout, self.restore.clone()));
        let length_changes = self.restore.is_some() && !mode.is_buffered();
        let mut added = reply::response_additions(request_id, self.reason.take());
        Room::new(headers).fit(&mut added);
        let mut answer = reply::response_headers(added, length_changes);
        let is_held = style.holds_response(layout) && mode == BodyMode::FullDuplex;
        self.held = is_held.then(Vec::new);
        style.apply_to_response(&mut answer, headers);
        answer
    }

    pub(crate) fn body(&mut self, mode: BodyMode, body: HttpBody) -> Vec<ProcessingResponse> {
        let HttpBody { body, end_of_stream, .. } = body;
        self.complete |= end_of_stream;
        let parts = match &mut self.reader {
            Some(reader) => reader.push(&body),
            None => vec![body.clone()],
        };
        let Some(parts) = self.hold(parts, end_of_stream) else { return Vec::new() };
        // A chunk inside a replaced name leaves nothing to send on.
        let is_swallowed = parts.is_empty() && !body.is_empty() && !end_of_stream;
        let parts = Pieces::new(parts);
        let answer = match mode {
            BodyMode::FullDuplex if is_swallowed => return Vec::new(),
            BodyMode::FullDuplex => {
                let messages = parts.into_messages(end_of_stream).into_iter().map(reply::streamed);
                return messages.map(|body| reply::message(Response::ResponseBody(body))).collect();
            }
            _ if parts.is_whole(&body) => reply::unchanged_body(),
            BodyMode::Buffered | BodyMode::BufferedPartial => reply::changed_whole_body(parts.concat()),
            BodyMode::Streamed | BodyMode::StreamedAhead | BodyMode::None => {
                reply::changed_body(parts.concat())
            }
        };
        vec![reply::message(Response::ResponseBody(answer))]
    }

    pub(crate) fn trailers(&mut self) -> Vec<ProcessingResponse> {
        self.complete = true;
        let held = self.held.take().filter(|held| !held.is_empty()).map(Pieces::new);
        let held = held.into_iter().flat_map(|held| held.into_messages(false)).map(reply::streamed);
        let mut answers: Vec<_> = held.map(|body| reply::message(Response::ResponseBody(body))).collect();
        answers.push(reply::message(Response::ResponseTrailers(reply::unchanged_trailers())));
        answers
    }

    /// The parts that go on now: `parts`, everything that was held back, or nothing yet.
    fn hold(&mut self, parts: Vec<Bytes>, end_of_stream: bool) -> Option<Vec<Bytes>> {
        let Some(held) = &mut self.held else { return Some(parts) };
        let n_bytes = parts.iter().map(Bytes::len).sum();
        held.extend(parts);
        self.n_held += n_bytes;
        if !end_of_stream && self.n_held <= self.max_held && self.room.try_grow(n_bytes).is_ok() {
            return None;
        }
        self.room.release();
        self.held.take()
    }

    pub(crate) fn report(&self) -> ResponseReport {
        ResponseReport {
            status: self.status,
            usage: self.reader.as_ref().and_then(ResponseReader::usage),
            n_bytes: self.reader.as_ref().map_or(0, ResponseReader::n_bytes),
            complete: self.complete,
        }
    }

    pub(crate) fn note_served(&mut self, metadata: Option<&Metadata>) {
        let served = metadata
            .and_then(|metadata| metadata.filter_metadata.get(keys::LB_METADATA))
            .and_then(|lb| lb.fields.get(keys::DESTINATION_ENDPOINT_SERVED));
        if let Some(Kind::StringValue(endpoint)) = served.and_then(|value| value.kind.as_ref()) {
            self.served = Some(endpoint.clone());
        }
    }
}
