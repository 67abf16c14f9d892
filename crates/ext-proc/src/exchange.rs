//! One ext_proc stream as a state machine: messages in, messages out. No I/O, no clock, no knowledge of pools.
//!
//! ```text
//! Headers ─┬─(body is read)──► Collecting ─┬─► Deciding ─┬─► Picked
//!          └─(opaque, no body)─────────────┘             └─► Closed   (ImmediateResponse; the rest is ignored)
//! ```
//! The order of messages and answers depends on the body mode that the proxy announces in `protocol_config`.

mod collecting;
mod mode;
mod responding;
mod room;

use bytes::Bytes;
use envoy_proto::config::core::v3::Metadata;
use envoy_proto::service::ext_proc::v3::processing_request::Request;
use envoy_proto::service::ext_proc::v3::processing_response::Response;
use envoy_proto::service::ext_proc::v3::{HttpBody, HttpHeaders, ProcessingRequest, ProcessingResponse};
use inference_api::object::ObjectKey;

pub use self::collecting::{BodyEnd, CollectedBody};
use self::collecting::{Collected, Collecting, NextPart, Progress};
pub use self::mode::{BodyMode, Modes};
pub use self::responding::ResponseReport;
use self::responding::{RequestFacts, Responding};
use self::room::Room;
use crate::budget::Reservation;
use crate::compat::{Compat, ReplyStyle};
use crate::pick_request::{Content, PickRequest, RequestHead, RequestId, Route};
use crate::refusal::{Refusal, RequestFault};
use crate::reply;
use crate::rewrite::Pieces;

/// The endpoints for a request.
#[derive(Debug)]
pub struct Pick<L> {
    /// `ip:port`, or several separated by commas, in the order in which the proxy must try them.
    pub destination: String,
    /// `None` if the client's name of the model is also the target's.
    pub rewrite: Option<Rewrite>,
    /// The decision as JSON for a header, if the client asked for it.
    pub reason: Option<String>,
    /// Held while the stream lives.
    pub lease: L,
}

/// Names of a model that has another name in the engine than for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// The client's name, which the response gets again.
    pub model: String,
    /// The name in the request that goes to the endpoint.
    pub target_model: String,
}

/// Options of a stream, known before its first message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// Most bytes of a request's body that are kept until it is complete.
    pub max_body_bytes: usize,
    /// Id of the request if it has none.
    pub fresh_request_id: String,
    /// The pool that the proxy names for the stream.
    pub pool: Option<ObjectKey>,
    pub compat: Compat,
    /// True if a client that asks is told which endpoint was picked, and why.
    pub explains: bool,
}

/// A message that the protocol does not allow at this point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("the first message must carry the request headers")]
    NoHeaders,
    #[error("request headers came twice")]
    HeadersTwice,
    #[error("the message is empty")]
    Empty,
}

/// Result of a message.
#[derive(Debug)]
#[must_use]
pub enum Received {
    Answers(Vec<ProcessingResponse>),
    /// The endpoint must be decided before the answer.
    NeedsPick(Box<NeedsPick>),
}

/// A request that needs an endpoint.
#[derive(Debug)]
pub struct NeedsPick {
    pub request: PickRequest,
    pub pending: Pending,
}

/// The part of a request that waits for the decision.
#[derive(Debug)]
pub enum Pending {
    Headers {
        end_of_stream: bool,
    },
    /// A body that was collected.
    Body {
        body: CollectedBody,
        end: BodyEnd,
    },
    /// The request cannot be routed.
    Fault(RequestFault),
}

/// One request and its response.
#[derive(Debug)]
pub struct Exchange<L> {
    options: StreamOptions,
    style: ReplyStyle,
    modes: Modes,
    phase: Phase<L>,
    /// The value of the header, after it came.
    request_id: RequestId,
    responding: Responding,
    /// Memory of the request's body, until the proxy has it again.
    held: Reservation,
    /// True if the proxy takes no answer to its last message.
    is_observed: bool,
}

#[derive(Debug)]
enum Phase<L> {
    Headers,
    Collecting(Box<Collecting>),
    /// The endpoint is being decided; [`Exchange::answer`] follows.
    Deciding,
    /// The request's headers are answered. The response may follow.
    Picked(Box<Picked<L>>),
    /// The request is refused, or the stream is over.
    Closed,
}

/// A request that has an endpoint.
#[derive(Debug)]
struct Picked<L> {
    /// Destination that the proxy was told.
    destination: String,
    lease: L,
    /// The client's name of the model, as a JSON string, if the response gets it back.
    restore: Option<Bytes>,
    /// The decision, until the client that asked for it has it.
    reason: Option<String>,
    /// The endpoint that served, until it is taken.
    served: Option<String>,
    rest: Rest,
}

/// The part of the request's body that follows the pick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// It passes unchanged.
    Passes,
    /// The body is answered; trailers may follow.
    Trailers,
    /// The request is answered completely.
    None,
}

impl<L> Exchange<L> {
    #[must_use]
    pub fn new(mut options: StreamOptions, held: Reservation) -> Self {
        let request_id = RequestId { text: std::mem::take(&mut options.fresh_request_id), is_fresh: true };
        let responding = Responding::new(options.max_body_bytes, held.another());
        Self {
            style: ReplyStyle::new(options.compat),
            options,
            modes: Modes::default(),
            phase: Phase::Headers,
            request_id,
            responding,
            held,
            is_observed: false,
        }
    }

    /// Returns true if the stream may end now without harm: no part of the request waits for an answer.
    #[must_use]
    pub fn may_end(&self) -> bool {
        match &self.phase {
            Phase::Headers | Phase::Closed => true,
            Phase::Picked(picked) => {
                picked.rest != Rest::Passes || self.modes.request != BodyMode::FullDuplex
            }
            Phase::Collecting(_) | Phase::Deciding => false,
        }
    }

    /// Returns true if all of the request is answered, with its pick. A report answers nothing.
    #[must_use]
    pub fn has_answered_request(&self) -> bool {
        !self.is_observed && matches!(&self.phase, Phase::Picked(picked) if picked.rest == Rest::None)
    }

    /// Returns true if the proxy waits for no answer, and the response's end has come: nothing that follows matters.
    #[must_use]
    pub fn has_heard_all(&self) -> bool {
        self.is_observed && self.responding.is_complete()
    }

    /// The request's id, which the picker has made if the proxy has none.
    #[must_use]
    pub fn request_id(&self) -> &str {
        &self.request_id.text
    }

    /// The pool that the proxy names, if it names one.
    #[must_use]
    pub fn pool(&self) -> Option<&ObjectKey> {
        self.options.pool.as_ref()
    }

    /// Returns true if the stream reports the response of a request of another stream.
    #[must_use]
    pub fn is_report(&self) -> bool {
        self.is_observed
    }

    /// Returns true if the stream is such a report, or may still become one because it has had no message.
    #[must_use]
    pub fn may_be_report(&self) -> bool {
        self.is_observed || matches!(self.phase, Phase::Headers)
    }

    /// Returns true if the request's headers or more of its body must come before the next answer.
    #[must_use]
    pub fn expects_request(&self) -> bool {
        matches!(self.phase, Phase::Headers | Phase::Collecting(_))
    }

    /// Gives up on a request that did not come in time, for the reason `fault`. If the result is [`Received::NeedsPick`],
    /// [`Self::answer`] must follow.
    ///
    /// # Errors
    /// If not even the headers came; the stream must then end with an error.
    pub fn give_up(&mut self, fault: RequestFault) -> Result<Received, ProtocolError> {
        match self.phase {
            Phase::Headers => Err(ProtocolError::NoHeaders),
            Phase::Collecting(_) | Phase::Deciding | Phase::Picked(_) | Phase::Closed => {
                Ok(self.collect(NextPart::Missing(fault)))
            }
        }
    }

    /// Releases the body's memory after all answers were sent. A body in one message stays in memory until the stream
    /// ends, because its reader keeps it.
    pub fn note_sent(&mut self) {
        if !self.expects_request() && !self.modes.request.is_buffered() {
            self.held.release();
        }
    }

    /// The endpoint that served, if it is not the first of the picked ones, and the request's lease. Returned only
    /// once.
    pub fn take_served_elsewhere(&mut self) -> Option<(String, &mut L)> {
        let Phase::Picked(picked) = &mut self.phase else { return None };
        let Picked { destination, lease, served, .. } = &mut **picked;
        let served = served.take()?;
        let picked = destination.split(',').next();
        (Some(served.as_str()) != picked).then_some((served, lease))
    }

    /// Returns true if the response shows that the prompt is computed.
    #[must_use]
    pub fn shows_first_token(&self) -> bool {
        self.responding.shows_first_token()
    }

    /// The lease of the request, after the pick.
    pub fn lease_mut(&mut self) -> Option<&mut L> {
        match &mut self.phase {
            Phase::Picked(picked) => Some(&mut picked.lease),
            Phase::Headers | Phase::Collecting(_) | Phase::Deciding | Phase::Closed => None,
        }
    }

    /// Ends the stream. Returns its lease and the report of the response; `None` without a pick, and when called again.
    pub fn end(&mut self) -> Option<(L, ResponseReport)> {
        match std::mem::replace(&mut self.phase, Phase::Closed) {
            Phase::Picked(picked) => Some((picked.lease, self.responding.report())),
            Phase::Headers | Phase::Collecting(_) | Phase::Deciding | Phase::Closed => None,
        }
    }

    /// Makes the stream the report of the response of a request that another stream has picked `destination` for; `body`
    /// is the mode in which the response's body follows. The messages that follow are not answered.
    pub fn observe(&mut self, destination: String, body: BodyMode, lease: L) {
        self.modes.response = body;
        let rest = Rest::None;
        let picked = Picked { destination, lease, restore: None, reason: None, served: None, rest };
        self.phase = Phase::Picked(Box::new(picked));
        self.is_observed = true;
    }

    /// Takes the proxy's next message and returns the answers in order. Calls `decide` at most once in a stream.
    ///
    /// # Errors
    /// If the protocol does not allow the message here; the stream must then end with an error.
    pub fn step(
        &mut self,
        message: ProcessingRequest,
        decide: impl FnOnce(PickRequest) -> Result<Pick<L>, Refusal>,
    ) -> Result<Vec<ProcessingResponse>, ProtocolError> {
        Ok(match self.receive(message)? {
            Received::Answers(answers) => answers,
            Received::NeedsPick(needs_pick) => {
                let NeedsPick { request, pending } = *needs_pick;
                self.answer(pending, decide(request))
            }
        })
    }

    /// Takes the proxy's next message. [`Received::NeedsPick`] comes at most once in a stream; [`Self::answer`] must
    /// follow before the next message.
    ///
    /// # Errors
    /// The errors of [`Self::step`].
    pub fn receive(&mut self, message: ProcessingRequest) -> Result<Received, ProtocolError> {
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
        self.is_observed = observability_mode;
        let received = match request.ok_or(ProtocolError::Empty)? {
            Request::RequestHeaders(headers) => self.request_headers(&headers, metadata_context.as_ref())?,
            Request::RequestBody(body) => self.request_body(body)?,
            Request::RequestTrailers(_) => self.request_trailers()?,
            Request::ResponseHeaders(headers) => {
                Received::Answers(vec![self.response_headers(&headers, metadata_context.as_ref())])
            }
            Request::ResponseBody(body) => Received::Answers(self.responding.body(self.modes.response, body)),
            Request::ResponseTrailers(_) => Received::Answers(self.responding.trailers()),
        };
        Ok(match received {
            Received::Answers(_) if observability_mode => Received::Answers(Vec::new()),
            received => received,
        })
    }

    /// The answers for the request that was `pending`, after its destination was `decided`.
    pub fn answer(&mut self, pending: Pending, decided: Result<Pick<L>, Refusal>) -> Vec<ProcessingResponse> {
        let answers = match (pending, decided) {
            (Pending::Headers { .. }, Err(refusal)) => self.refuse(&refusal, None),
            (Pending::Body { body, .. }, Err(refusal)) => self.refuse(&refusal, Some(body.pieces())),
            (Pending::Fault(_), Err(refusal)) => self.refuse(&refusal, Some(&[])),
            (Pending::Fault(fault), Ok(_)) => self.refuse(&Refusal::Request(fault), Some(&[])),
            (Pending::Headers { end_of_stream }, Ok(pick)) => {
                let mut answers = vec![reply::picked_headers(&pick.destination, &self.request_id, None)];
                self.style.apply_to_pick(&mut answers, 0);
                self.note_pick(pick, if end_of_stream { Rest::None } else { Rest::Passes });
                answers
            }
            (Pending::Body { body, end }, Ok(pick)) => {
                let rewrite = pick.rewrite.as_ref().map(|rewrite| rewrite.target_model.as_str());
                let n_bytes = body.n_bytes(rewrite);
                let mut answers = body.answers(&pick.destination, &self.request_id, rewrite, end);
                self.style.apply_to_pick(&mut answers, n_bytes);
                self.note_pick(pick, end.into());
                answers.extend((end == BodyEnd::Trailers).then(trailers));
                answers
            }
        };
        if self.is_observed { Vec::new() } else { answers }
    }

    fn request_headers(
        &mut self,
        headers: &HttpHeaders,
        metadata: Option<&Metadata>,
    ) -> Result<Received, ProtocolError> {
        if !matches!(self.phase, Phase::Headers) {
            return Err(ProtocolError::HeadersTwice);
        }
        let mut head = RequestHead::new(headers, metadata);
        head.wants_reason &= self.options.explains;
        self.style.note_request(headers, &mut head);
        if let Some(text) = head.x_request_id.take() {
            self.request_id = RequestId { text, is_fresh: false };
        }
        if let Err(fault) = Room::new(headers).for_pick() {
            let fault = RequestFault::Headers(fault);
            return Ok(self.ask(head, Content::Fault(fault.clone()), Pending::Fault(fault)));
        }
        let mode = self.modes.request;
        let end_of_stream = headers.end_of_stream;
        let collects = !end_of_stream && mode.shows_body_before_pick();
        let api = match &head.route {
            Route::Json(api) if collects => *api,
            Route::Encoded { encoding } if collects => {
                let fault = RequestFault::Encoded { encoding: encoding.clone() };
                return Ok(self.ask(head, Content::Fault(fault.clone()), Pending::Fault(fault)));
            }
            Route::Json(_) | Route::Encoded { .. } | Route::Opaque => {
                return Ok(self.ask(head, Content::Opaque, Pending::Headers { end_of_stream }));
            }
        };
        self.phase =
            Phase::Collecting(Box::new(Collecting::new(head, mode, api, (&self.options, &self.style))));
        // A buffering proxy needs the answer to the headers before it sends the body; in other modes the answer waits
        // for the pick.
        Ok(Received::Answers(match mode {
            BodyMode::Buffered | BodyMode::BufferedPartial => {
                vec![reply::request_headers(&self.request_id)]
            }
            BodyMode::FullDuplex | BodyMode::StreamedAhead | BodyMode::Streamed | BodyMode::None => {
                Vec::new()
            }
        }))
    }

    fn request_body(&mut self, body: HttpBody) -> Result<Received, ProtocolError> {
        match &mut self.phase {
            Phase::Headers => Err(ProtocolError::NoHeaders),
            Phase::Collecting(_) => Ok(self.collect(NextPart::Chunk(body))),
            Phase::Picked(picked) if picked.rest == Rest::Passes => {
                if body.end_of_stream {
                    picked.rest = Rest::None;
                }
                Ok(Received::Answers(echo(self.modes.request, body)))
            }
            // Envoy may send one more empty chunk after the end of a large body.
            Phase::Picked(_) | Phase::Deciding | Phase::Closed => Ok(Received::Answers(Vec::new())),
        }
    }

    fn request_trailers(&mut self) -> Result<Received, ProtocolError> {
        match &mut self.phase {
            Phase::Headers => Err(ProtocolError::NoHeaders),
            Phase::Collecting(_) => Ok(self.collect(NextPart::Trailers)),
            Phase::Picked(picked) => {
                picked.rest = Rest::None;
                Ok(Received::Answers(vec![trailers()]))
            }
            Phase::Deciding | Phase::Closed => Ok(Received::Answers(Vec::new())),
        }
    }

    /// Takes the next part of a body that is collected. After the last one the director is asked, also about a request
    /// that cannot be routed, because it records the fault and decides the refusal.
    fn collect(&mut self, part: NextPart) -> Received {
        match std::mem::replace(&mut self.phase, Phase::Deciding) {
            Phase::Collecting(collecting) => match collecting.take(part, &mut self.held) {
                Progress::More(collecting) => {
                    self.phase = Phase::Collecting(collecting);
                    Received::Answers(Vec::new())
                }
                Progress::Done(collected) => {
                    let Collected { head, content, pending } = *collected;
                    self.ask(head, content, pending)
                }
            },
            phase @ (Phase::Headers | Phase::Deciding | Phase::Picked(_) | Phase::Closed) => {
                self.phase = phase;
                Received::Answers(Vec::new())
            }
        }
    }

    fn response_headers(&mut self, headers: &HttpHeaders, metadata: Option<&Metadata>) -> ProcessingResponse {
        let (restore, reason) = match &mut self.phase {
            Phase::Picked(picked) => {
                picked.served = responding::served(metadata);
                (picked.restore.clone(), picked.reason.take())
            }
            Phase::Headers | Phase::Collecting(_) | Phase::Deciding | Phase::Closed => (None, None),
        };
        let request = RequestFacts { request_id: &self.request_id.text, restore, reason };
        self.responding.headers(headers, self.modes.response, request, &self.style)
    }

    /// `body` is the part of the request's body that was kept; `None` if none was read.
    fn refuse(&mut self, refusal: &Refusal, body: Option<&[Bytes]>) -> Vec<ProcessingResponse> {
        self.phase = Phase::Closed;
        self.held.release();
        vec![self.style.refused(refusal, &self.request_id.text, body)]
    }

    fn ask(&mut self, head: RequestHead, content: Content, pending: Pending) -> Received {
        self.phase = Phase::Deciding;
        let RequestHead { route: _, x_request_id: _, subset, has_content_length: _, objective, wants_reason } =
            head;
        let pool = self.options.pool.clone();
        let x_request_id = self.request_id.text.clone();
        let request = PickRequest { x_request_id, pool, subset, objective, wants_reason, content };
        Received::NeedsPick(Box::new(NeedsPick { request, pending }))
    }

    fn note_pick(&mut self, pick: Pick<L>, rest: Rest) {
        let Pick { destination, rewrite, reason, lease } = pick;
        let rewrite = rewrite.filter(|_| self.style.restores_names());
        let restore = rewrite.map(|rewrite| json_string(&rewrite.model));
        let picked = Picked { destination, lease, restore, reason, served: None, rest };
        self.phase = Phase::Picked(Box::new(picked));
    }
}

impl From<BodyEnd> for Rest {
    fn from(end: BodyEnd) -> Self {
        match end {
            BodyEnd::EndOfStream | BodyEnd::Trailers => Self::None,
            BodyEnd::BeforeTrailers => Self::Trailers,
            BodyEnd::Open => Self::Passes,
        }
    }
}

fn trailers() -> ProcessingResponse {
    reply::message(Response::RequestTrailers(reply::unchanged_trailers()))
}

/// Returns a chunk of the request unchanged.
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
