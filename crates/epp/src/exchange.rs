//! One ext_proc stream as a state machine: messages in, messages out. No I/O, no clock, no knowledge of pools.
//!
//! ```text
//! Headers ─┬─(body is read)──► Collecting ─┬─► Passing ─► Ended
//!          └─(opaque, no body)─────────────┤
//!                                          └─► Refused          (ImmediateResponse; the rest is ignored)
//! ```
//! What is answered when depends on the body mode that the proxy announces in `protocol_config`.

mod collecting;
mod mode;

use envoy_proto::config::core::v3::Metadata;
use envoy_proto::google::protobuf::value::Kind;
use envoy_proto::service::ext_proc::v3::processing_request::Request;
use envoy_proto::service::ext_proc::v3::processing_response::Response;
use envoy_proto::service::ext_proc::v3::{HttpBody, HttpHeaders, ProcessingRequest, ProcessingResponse};
use inference_api::keys;

use self::collecting::Collecting;
pub use self::mode::{BodyMode, Modes};
use crate::inquiry::{Content, Inquiry, RequestHead, Route};
use crate::refusal::{BodyFault, Refusal};
use crate::reply::{self, Pieces};

/// Where a request goes.
#[derive(Debug)]
pub struct Pick<L> {
    /// `ip:port`, or several in the order in which the proxy shall try them, with commas.
    pub destination: String,
    /// The name that replaces `model` in the body; `None` when the client's name is the target's.
    pub rewrite: Option<String>,
    /// Held as long as the stream lives.
    pub lease: L,
}

/// A message that the protocol does not allow where it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("the first message must carry the request headers")]
    NoHeaders,
    #[error("request headers came twice")]
    HeadersTwice,
    #[error("the message is empty")]
    Empty,
}

/// One request and its response.
#[derive(Debug)]
pub struct Exchange<L> {
    max_body_bytes: usize,
    modes: Modes,
    phase: Phase,
    lease: Option<L>,
    /// What the proxy was told.
    destination: Option<String>,
    /// The endpoint that served, as the proxy reports it in the response phase.
    served: Option<String>,
}

#[derive(Debug)]
enum Phase {
    Headers,
    Collecting(Box<Collecting>),
    /// The request's headers are answered; what is left of the body passes.
    Passing,
    /// The request is answered whole. The response may follow.
    Ended,
    Refused,
}

impl<L> Exchange<L> {
    /// `max_body_bytes` bounds what is kept of a request's body until it is complete.
    #[must_use]
    pub fn new(max_body_bytes: usize) -> Self {
        Self {
            max_body_bytes,
            modes: Modes::default(),
            phase: Phase::Headers,
            lease: None,
            destination: None,
            served: None,
        }
    }

    /// Whether the stream may end now without harm: nothing of the request waits for an answer.
    #[must_use]
    pub fn may_end(&self) -> bool {
        match self.phase {
            Phase::Headers | Phase::Ended | Phase::Refused => true,
            Phase::Passing => self.modes.request != BodyMode::FullDuplex,
            Phase::Collecting(_) => false,
        }
    }

    /// The endpoint that served, when it is not the first of those that were picked.
    #[must_use]
    pub fn served_elsewhere(&self) -> Option<&str> {
        let picked = self.destination.as_deref()?.split(',').next();
        self.served.as_deref().filter(|&served| Some(served) != picked)
    }

    /// The proxy's next message, and the answers to it, in order. `decide` is called at most once in a stream.
    ///
    /// # Errors
    /// When the message cannot stand here; the stream must then end with an error.
    pub fn step(
        &mut self,
        message: ProcessingRequest,
        decide: impl FnOnce(Inquiry) -> Result<Pick<L>, Refusal>,
    ) -> Result<Vec<ProcessingResponse>, ProtocolError> {
        let ProcessingRequest {
            metadata_context,
            attributes: _,
            observability_mode,
            protocol_config,
            flow_control_init: _,
            client_window_update: _,
            request,
        } = message;
        if let Some(config) = protocol_config {
            self.modes = Modes::new(&config);
        }
        let answers = match request.ok_or(ProtocolError::Empty)? {
            Request::RequestHeaders(headers) => {
                self.request_headers(&headers, metadata_context.as_ref(), decide)?
            }
            Request::RequestBody(body) => self.request_body(body, decide)?,
            Request::RequestTrailers(_) => self.request_trailers(decide)?,
            Request::ResponseHeaders(_) => {
                self.note_served(metadata_context.as_ref());
                vec![reply::message(Response::ResponseHeaders(reply::unchanged_headers()))]
            }
            Request::ResponseBody(body) => echo(self.modes.response, body, Response::ResponseBody),
            Request::ResponseTrailers(_) => {
                vec![reply::message(Response::ResponseTrailers(reply::unchanged_trailers()))]
            }
        };
        Ok(if observability_mode { Vec::new() } else { answers })
    }

    fn request_headers(
        &mut self,
        headers: &HttpHeaders,
        metadata: Option<&Metadata>,
        decide: impl FnOnce(Inquiry) -> Result<Pick<L>, Refusal>,
    ) -> Result<Vec<ProcessingResponse>, ProtocolError> {
        if !matches!(self.phase, Phase::Headers) {
            return Err(ProtocolError::HeadersTwice);
        }
        let head = RequestHead::new(headers, metadata);
        let mode = self.modes.request;
        let collects = !headers.end_of_stream && mode.shows_body_before_pick();
        let Route::Prompt(prompt_key) = head.route else {
            return Ok(self.pick_at_headers(head, headers.end_of_stream, decide));
        };
        if !collects {
            return Ok(self.pick_at_headers(head, headers.end_of_stream, decide));
        }
        self.phase =
            Phase::Collecting(Box::new(Collecting::new(head, mode, prompt_key, self.max_body_bytes)));
        // A proxy that buffers wants the headers answered before it sends the body; the others wait for the pick.
        Ok(match mode {
            BodyMode::Buffered | BodyMode::BufferedPartial => {
                vec![reply::message(Response::RequestHeaders(reply::unchanged_headers()))]
            }
            BodyMode::FullDuplex | BodyMode::StreamedAhead | BodyMode::Streamed | BodyMode::None => {
                Vec::new()
            }
        })
    }

    fn pick_at_headers(
        &mut self,
        head: RequestHead,
        end_of_stream: bool,
        decide: impl FnOnce(Inquiry) -> Result<Pick<L>, Refusal>,
    ) -> Vec<ProcessingResponse> {
        let RequestHead { route: _, x_request_id, subset, has_content_length: _ } = head;
        match decide(Inquiry { x_request_id, subset, content: Content::Opaque }) {
            Err(refusal) => self.refuse(&refusal),
            Ok(pick) => {
                self.phase = if end_of_stream { Phase::Ended } else { Phase::Passing };
                let answers = vec![reply::picked_headers(&pick.destination, None)];
                self.note_pick(pick);
                answers
            }
        }
    }

    fn request_body(
        &mut self,
        body: HttpBody,
        decide: impl FnOnce(Inquiry) -> Result<Pick<L>, Refusal>,
    ) -> Result<Vec<ProcessingResponse>, ProtocolError> {
        match &mut self.phase {
            Phase::Headers => Err(ProtocolError::NoHeaders),
            // Envoy may send one more empty chunk behind the end of a large body.
            Phase::Ended | Phase::Refused => Ok(Vec::new()),
            Phase::Passing => {
                if body.end_of_stream {
                    self.phase = Phase::Ended;
                }
                Ok(echo(self.modes.request, body, Response::RequestBody))
            }
            Phase::Collecting(collecting) => {
                let end_of_stream = body.end_of_stream;
                // A buffering proxy sends the body in one message, and says so only if no trailers follow.
                let complete = end_of_stream || self.modes.request.is_buffered();
                match collecting.push(body.body) {
                    Err(fault) => Ok(self.fault(fault, decide)),
                    Ok(()) if complete => Ok(self.complete(BodyEnd::new(end_of_stream), decide)),
                    Ok(()) => Ok(Vec::new()),
                }
            }
        }
    }

    fn request_trailers(
        &mut self,
        decide: impl FnOnce(Inquiry) -> Result<Pick<L>, Refusal>,
    ) -> Result<Vec<ProcessingResponse>, ProtocolError> {
        let mut answers = match &self.phase {
            Phase::Headers => return Err(ProtocolError::NoHeaders),
            Phase::Collecting(_) => self.complete(BodyEnd::Trailers, decide),
            Phase::Passing | Phase::Ended | Phase::Refused => Vec::new(),
        };
        if !matches!(self.phase, Phase::Refused) {
            self.phase = Phase::Ended;
            answers.push(reply::message(Response::RequestTrailers(reply::unchanged_trailers())));
        }
        Ok(answers)
    }

    /// The body cannot be routed: whoever decides records it and says what the client is told.
    fn fault(
        &mut self,
        fault: BodyFault,
        decide: impl FnOnce(Inquiry) -> Result<Pick<L>, Refusal>,
    ) -> Vec<ProcessingResponse> {
        let Phase::Collecting(collecting) = std::mem::replace(&mut self.phase, Phase::Refused) else {
            return Vec::new();
        };
        let (head, _) = collecting.into_head();
        let RequestHead { route: _, x_request_id, subset, has_content_length: _ } = head;
        let content = Content::Fault(fault.clone());
        match decide(Inquiry { x_request_id, subset, content }) {
            Err(refusal) => self.refuse(&refusal),
            Ok(_) => self.refuse(&Refusal::Body(fault)),
        }
    }

    fn complete(
        &mut self,
        end: BodyEnd,
        decide: impl FnOnce(Inquiry) -> Result<Pick<L>, Refusal>,
    ) -> Vec<ProcessingResponse> {
        let Phase::Collecting(collecting) = std::mem::replace(&mut self.phase, Phase::Ended) else {
            return Vec::new();
        };
        let collected = collecting.finish(end);
        match decide(collected.inquiry) {
            Err(refusal) => self.refuse(&refusal),
            Ok(pick) => {
                let answers = collected.body.answers(&pick.destination, pick.rewrite.as_deref(), end);
                self.note_pick(pick);
                answers
            }
        }
    }

    fn refuse(&mut self, refusal: &Refusal) -> Vec<ProcessingResponse> {
        self.phase = Phase::Refused;
        vec![reply::refused(refusal)]
    }

    fn note_pick(&mut self, pick: Pick<L>) {
        let Pick { destination, rewrite: _, lease } = pick;
        self.destination = Some(destination);
        self.lease = Some(lease);
    }

    fn note_served(&mut self, metadata: Option<&Metadata>) {
        let served = metadata
            .and_then(|metadata| metadata.filter_metadata.get(keys::LB_METADATA))
            .and_then(|lb| lb.fields.get(keys::DESTINATION_ENDPOINT_SERVED));
        if let Some(Kind::StringValue(endpoint)) = served.and_then(|value| value.kind.as_ref()) {
            self.served = Some(endpoint.clone());
        }
    }
}

/// What follows a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BodyEnd {
    EndOfStream,
    Trailers,
}

impl BodyEnd {
    fn new(end_of_stream: bool) -> Self {
        if end_of_stream { Self::EndOfStream } else { Self::Trailers }
    }
}

/// Sends a chunk back as it came.
fn echo(
    mode: BodyMode,
    body: HttpBody,
    wrap: impl Fn(envoy_proto::service::ext_proc::v3::BodyResponse) -> Response,
) -> Vec<ProcessingResponse> {
    match mode {
        BodyMode::FullDuplex => {
            let messages = Pieces::new(vec![body.body]).into_messages(body.end_of_stream);
            messages.into_iter().map(|body| reply::message(wrap(reply::streamed(body)))).collect()
        }
        BodyMode::Buffered
        | BodyMode::BufferedPartial
        | BodyMode::Streamed
        | BodyMode::StreamedAhead
        | BodyMode::None => vec![reply::message(wrap(reply::unchanged_body()))],
    }
}
