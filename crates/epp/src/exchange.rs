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
mod responding;

use bytes::Bytes;
use envoy_proto::config::core::v3::{HeaderValueOption, Metadata};
use envoy_proto::service::ext_proc::v3::processing_request::Request;
use envoy_proto::service::ext_proc::v3::processing_response::Response;
use envoy_proto::service::ext_proc::v3::{HttpBody, HttpHeaders, ProcessingRequest, ProcessingResponse};
use inference_api::object::ObjectKey;

use self::collecting::{Collected, Collecting};
pub use self::mode::{BodyMode, Modes};
use self::responding::Responding;
pub use self::responding::ResponseReport;
use crate::body::PromptField;
use crate::compat::{self, Compat};
use crate::inquiry::{Content, Inquiry, RequestHead, RequestId, Route};
use crate::refusal::{BodyFault, Refusal};
use crate::reply::{self, Pieces};

/// Where a request goes.
#[derive(Debug)]
pub struct Pick<L> {
    /// `ip:port`, or several in the order in which the proxy shall try them, with commas.
    pub destination: String,
    /// `None` when the client's name of the model is the target's.
    pub rewrite: Option<Rewrite>,
    /// Why, as JSON for a header, where the sender wants it.
    pub reason: Option<String>,
    /// Held as long as the stream lives.
    pub lease: L,
}

/// The model has another name behind the picker than in front of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// The client's name, which the response gets back.
    pub model: String,
    /// The name in the request that goes on.
    pub target_model: String,
}

/// What is known of a stream before its first message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Bounds what is kept of a request's body until it is complete.
    pub max_body_bytes: usize,
    /// The request's id if it comes without one.
    pub fresh_request_id: String,
    /// The pool that the proxy names for the stream.
    pub pool: Option<ObjectKey>,
    pub compat: Compat,
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
    opening: Opening,
    modes: Modes,
    phase: Phase,
    /// The header's, once it came.
    request_id: RequestId,
    lease: Option<L>,
    /// What the proxy was told.
    destination: Option<String>,
    responding: Responding,
    /// Headers of the request, where the answer repeats them.
    echo: Vec<HeaderValueOption>,
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
    #[must_use]
    pub fn new(opening: Opening) -> Self {
        let request_id = RequestId { text: opening.fresh_request_id.clone(), is_fresh: true };
        let responding = Responding::new(opening.compat, opening.max_body_bytes);
        Self {
            opening,
            modes: Modes::default(),
            phase: Phase::Headers,
            request_id,
            lease: None,
            destination: None,
            responding,
            echo: Vec::new(),
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

    /// The endpoint that served, when it is not the first of those that were picked. Taken once.
    pub fn take_served_elsewhere(&mut self) -> Option<String> {
        let served = self.responding.served.take()?;
        let picked = self.destination.as_deref()?.split(',').next();
        (Some(served.as_str()) != picked).then_some(served)
    }

    /// The whole body of a request that is to be placed by its prompt, when `message` completes it.
    #[must_use]
    pub fn completed_body(&self, message: &ProcessingRequest) -> Option<Vec<Bytes>> {
        let Phase::Collecting(collecting) = &self.phase else { return None };
        match message.request.as_ref()? {
            Request::RequestBody(body) if body.end_of_stream || self.modes.request.is_buffered() => {
                Some(collecting.chunks_with(Some(&body.body)))
            }
            Request::RequestTrailers(_) => Some(collecting.chunks_with(None)),
            Request::RequestBody(_)
            | Request::RequestHeaders(_)
            | Request::ResponseHeaders(_)
            | Request::ResponseBody(_)
            | Request::ResponseTrailers(_) => None,
        }
    }

    /// The pool that the proxy names.
    #[must_use]
    pub fn pool(&self) -> Option<&ObjectKey> {
        self.opening.pool.as_ref()
    }

    /// What is held for the request, once it was picked for.
    pub fn lease_mut(&mut self) -> Option<&mut L> {
        self.lease.as_mut()
    }

    /// The stream is over: what was held for it, and what became of the response. `None` if nothing was picked, or
    /// the second time.
    pub fn end(&mut self) -> Option<(L, ResponseReport)> {
        Some((self.lease.take()?, self.responding.report()))
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
            Request::ResponseHeaders(headers) => {
                let (metadata, mode) = (metadata_context.as_ref(), self.modes.response);
                vec![self.responding.headers(&headers, metadata, mode, &self.request_id.text)]
            }
            Request::ResponseBody(body) => self.responding.body(self.modes.response, body),
            Request::ResponseTrailers(_) => self.responding.trailers(),
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
        let mut head = RequestHead::new(headers, metadata);
        if self.opening.compat == Compat::GieV04 {
            head.route = Route::Prompt(PromptField::Any);
            self.echo = compat::echoed(headers);
        }
        if let Some(text) = head.x_request_id.take() {
            self.request_id = RequestId { text, is_fresh: false };
        }
        let mode = self.modes.request;
        let collects = !headers.end_of_stream && mode.shows_body_before_pick();
        let Route::Prompt(prompt_field) = head.route else {
            return Ok(self.pick_at_headers(head, headers.end_of_stream, decide));
        };
        if !collects {
            return Ok(self.pick_at_headers(head, headers.end_of_stream, decide));
        }
        self.phase = Phase::Collecting(Box::new(Collecting::new(
            head,
            mode,
            prompt_field,
            self.opening.max_body_bytes,
        )));
        // A proxy that buffers wants the headers answered before it sends the body; the others wait for the pick.
        Ok(match mode {
            BodyMode::Buffered | BodyMode::BufferedPartial => {
                vec![reply::request_headers(&self.request_id)]
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
        match decide(self.inquiry(head, Content::Opaque)) {
            Err(refusal) => self.refuse(&refusal, false),
            Ok(pick) => {
                self.phase = if end_of_stream { Phase::Ended } else { Phase::Passing };
                let mut answers = vec![reply::picked_headers(&pick.destination, &self.request_id, None)];
                self.style(&mut answers, 0);
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
                Ok(echo(self.modes.request, body))
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
        let inquiry = self.inquiry(collecting.into_head(), Content::Fault(fault.clone()));
        match decide(inquiry) {
            Err(refusal) => self.refuse(&refusal, true),
            Ok(_) => self.refuse(&Refusal::Body(fault), true),
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
        let Collected { head, content, body } = collecting.finish(end);
        match decide(self.inquiry(head, content)) {
            Err(refusal) => self.refuse(&refusal, true),
            Ok(pick) => {
                let rewrite = pick.rewrite.as_ref().map(|rewrite| rewrite.target_model.as_str());
                let n_bytes = body.n_bytes(rewrite);
                let mut answers = body.answers(&pick.destination, &self.request_id, rewrite, end);
                self.style(&mut answers, n_bytes);
                self.note_pick(pick);
                answers
            }
        }
    }

    /// `has_body`: the refusal answers a body that was read.
    fn refuse(&mut self, refusal: &Refusal, has_body: bool) -> Vec<ProcessingResponse> {
        self.phase = Phase::Refused;
        vec![match self.opening.compat {
            Compat::None => reply::refused(refusal, &self.request_id.text),
            Compat::GieV04 => reply::message(Response::ImmediateResponse(compat::refused(refusal, has_body))),
        }]
    }

    fn style(&self, answers: &mut [ProcessingResponse], n_bytes: usize) {
        match self.opening.compat {
            Compat::None => {}
            Compat::GieV04 => compat::picked(answers, &self.echo, n_bytes),
        }
    }

    fn inquiry(&self, head: RequestHead, content: Content) -> Inquiry {
        let RequestHead { route: _, x_request_id: _, subset, has_content_length: _, wants_reason } = head;
        let pool = self.opening.pool.clone();
        let x_request_id = self.request_id.text.clone();
        Inquiry { x_request_id, pool, subset, wants_reason, content, tokens: None }
    }

    fn note_pick(&mut self, pick: Pick<L>) {
        let Pick { destination, rewrite, reason, lease } = pick;
        self.responding.reason = reason;
        self.destination = Some(destination);
        self.lease = Some(lease);
        self.responding.restore = match self.opening.compat {
            Compat::None => rewrite.map(|rewrite| json_string(&rewrite.model)),
            Compat::GieV04 => None,
        };
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

/// Sends a chunk of the request back as it came.
fn echo(mode: BodyMode, body: HttpBody) -> Vec<ProcessingResponse> {
    let answer = |body| reply::message(Response::RequestBody(body));
    match mode {
        BodyMode::FullDuplex => {
            let messages = Pieces::new(vec![body.body]).into_messages(body.end_of_stream);
            messages.into_iter().map(|body| answer(reply::streamed(body))).collect()
        }
        BodyMode::Buffered
        | BodyMode::BufferedPartial
        | BodyMode::Streamed
        | BodyMode::StreamedAhead
        | BodyMode::None => vec![answer(reply::unchanged_body())],
    }
}

fn json_string(text: &str) -> Bytes {
    serde_json::to_vec(text).expect("a string is valid JSON").into()
}
