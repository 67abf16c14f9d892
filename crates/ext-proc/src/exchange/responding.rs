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
use crate::pick_request::header_value;
use crate::reply;
use crate::response::{Layout, ResponseReader, Usage};
use crate::rewrite::Pieces;

/// The response so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResponseReport {
    /// HTTP status; `None` if no response came.
    pub status: Option<u16>,
    pub usage: Option<Usage>,
    /// Length in bytes of the body so far.
    pub n_bytes: u64,
    /// True if the end was seen, and false if the client, the proxy or the engine broke off; `None` if the proxy shows
    /// headers only, so that the end of the stream is the end of either.
    pub complete: Option<bool>,
}

#[derive(Debug)]
pub(crate) struct Responding {
    phase: Phase,
    /// True if the end was seen.
    complete: bool,
    /// Most bytes that are held back until the response is complete.
    max_held: usize,
    /// Memory of the parts that are held back.
    room: Reservation,
}

#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of a stream")]
enum Phase {
    /// The headers have not come.
    Awaited,
    Begun {
        /// HTTP status; `None` if it is not a number.
        status: Option<u16>,
        reader: ResponseReader,
        /// Parts that are held back; `None` if they go on at once.
        held: Option<Held>,
        /// True if the proxy sends the body.
        shows_body: bool,
        layout: Layout,
    },
}

#[derive(Debug, Default)]
struct Held {
    parts: Vec<Bytes>,
    n_bytes: usize,
}

/// The facts about a request that the answer to its response's headers needs.
#[derive(Debug)]
pub(crate) struct RequestFacts<'a> {
    pub(crate) request_id: &'a str,
    /// The client's name of the model, as a JSON string, if the request was renamed.
    pub(crate) restore: Option<Bytes>,
    /// The decision, for a client that asked for it.
    pub(crate) reason: Option<String>,
}

impl Responding {
    pub(crate) fn new(max_held: usize, room: Reservation) -> Self {
        Self { phase: Phase::Awaited, complete: false, max_held, room }
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    pub(crate) fn headers(
        &mut self,
        headers: &HttpHeaders,
        mode: BodyMode,
        request: RequestFacts<'_>,
        style: &ReplyStyle,
    ) -> ProcessingResponse {
        let RequestFacts { request_id, restore, reason } = request;
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
        self.complete = headers.end_of_stream;
        let layout = Layout::new(content_type, content_encoding);
        let length_changes = restore.is_some() && !mode.is_buffered();
        let is_held = style.holds_response(layout) && mode == BodyMode::FullDuplex;
        self.phase = Phase::Begun {
            status,
            reader: ResponseReader::new(layout, restore),
            held: is_held.then(Held::default),
            shows_body: mode != BodyMode::None,
            layout,
        };
        let mut added = reply::response_additions(request_id, reason);
        Room::new(headers).fit(&mut added);
        let mut answer = reply::response_headers(added, length_changes);
        style.apply_to_response(&mut answer, headers);
        answer
    }

    /// Returns true if the prompt is known to be computed: a part of the body has come, or the headers of a response that
    /// engines send whole. Engines send those of a stream before its first token.
    pub(crate) fn shows_first_token(&self) -> bool {
        match &self.phase {
            Phase::Awaited => false,
            Phase::Begun { reader, shows_body, layout, .. } => {
                reader.n_bytes() > 0 || (!shows_body && *layout != Layout::EventStream)
            }
        }
    }

    pub(crate) fn body(&mut self, mode: BodyMode, body: HttpBody) -> Vec<ProcessingResponse> {
        let HttpBody { body, end_of_stream, .. } = body;
        self.complete |= end_of_stream;
        let parts = match &mut self.phase {
            Phase::Begun { reader, .. } => reader.push(&body),
            Phase::Awaited => vec![body.clone()],
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
        let held = match &mut self.phase {
            Phase::Begun { held, .. } => held.take(),
            Phase::Awaited => None,
        };
        let held = held.filter(|held| !held.parts.is_empty()).map(|held| Pieces::new(held.parts));
        let held = held.into_iter().flat_map(|held| held.into_messages(false)).map(reply::streamed);
        let mut answers: Vec<_> = held.map(|body| reply::message(Response::ResponseBody(body))).collect();
        answers.push(reply::message(Response::ResponseTrailers(reply::unchanged_trailers())));
        answers
    }

    /// The parts that go on now: `parts`, everything that was held back, or nothing yet.
    fn hold(&mut self, parts: Vec<Bytes>, end_of_stream: bool) -> Option<Vec<Bytes>> {
        let Phase::Begun { held, .. } = &mut self.phase else { return Some(parts) };
        let Some(Held { parts: kept, n_bytes: n_kept }) = held else { return Some(parts) };
        let n_bytes = parts.iter().map(Bytes::len).sum();
        kept.extend(parts);
        *n_kept += n_bytes;
        if !end_of_stream && *n_kept <= self.max_held && self.room.try_grow(n_bytes).is_ok() {
            return None;
        }
        self.room.release();
        held.take().map(|held| held.parts)
    }

    pub(crate) fn report(&self) -> ResponseReport {
        match &self.phase {
            Phase::Begun { status, reader, held: _, shows_body, layout: _ } => ResponseReport {
                status: *status,
                usage: reader.usage(),
                n_bytes: reader.n_bytes(),
                complete: (self.complete || *shows_body).then_some(self.complete),
            },
            Phase::Awaited => ResponseReport { complete: Some(self.complete), ..ResponseReport::default() },
        }
    }
}

/// The endpoint that served, according to the proxy.
pub(crate) fn served(metadata: Option<&Metadata>) -> Option<String> {
    let lb = metadata?.filter_metadata.get(keys::LB_METADATA)?;
    match lb.fields.get(keys::DESTINATION_ENDPOINT_SERVED)?.kind.as_ref()? {
        Kind::StringValue(endpoint) => Some(endpoint.clone()),
        Kind::NullValue(_)
        | Kind::NumberValue(_)
        | Kind::BoolValue(_)
        | Kind::StructValue(_)
        | Kind::ListValue(_) => None,
    }
}
