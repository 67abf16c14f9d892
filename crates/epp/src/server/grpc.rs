//! The ext_proc service: one stream per request, each driven by its own [`Exchange`], and one more for each response that
//! is reported with its body.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use envoy_proto::service::ext_proc::v3::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use envoy_proto::service::ext_proc::v3::{ProcessingRequest, ProcessingResponse, processing_request};
use futures::stream::try_unfold;
use futures::{FutureExt as _, Stream};
use inference_api::keys;
use inference_api::object::ObjectKey;
use prometheus_client::metrics::gauge::Gauge;
use tokio::task::coop::consume_budget;
use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::debug;

use crate::director::{Director, InFlightRequest, Now, TokenSource};
use crate::reports::{Reports, Served};
use crate::server::cut::Cut;
use crate::spans::{RequestSpan, Spans};
use crate::tokens::Tokenizer;
use ext_proc::budget::Budget;
use ext_proc::exchange::{
    BodyMode, Exchange, NeedsPick, Pending, Pick, ProtocolError, Received, StreamOptions,
};
use ext_proc::observation::{Naming, Report};
use ext_proc::pick_request::{PickRequest, PromptTokens};
use ext_proc::refusal::{Refusal, RequestFault};

/// Full name of the service, which health checks use.
pub const SERVICE: &str = "envoy.service.ext_proc.v3.ExternalProcessor";

/// Bytes that a message may have besides its body.
const ENVELOPE_BYTES: usize = 1 << 20;

/// Serves all streams with one director.
#[derive(Clone, Debug)]
pub struct Processor {
    shared: Arc<Shared>,
    /// `ip:port` at which the proxy reached the picker, if it is known.
    address: Option<Arc<str>>,
}

/// Everything that the streams have in common.
#[derive(Debug)]
struct Shared {
    reports: Arc<Reports>,
    spans: Arc<Spans>,
    tokenizer: Tokenizer,
    limits: Limits,
    cut: CancellationToken,
}

/// The way in which a stream ends its request.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of a stream")]
enum Held {
    /// The end of the stream is the end of the request.
    InFlight(InFlightRequest),
    /// Another stream reports the response.
    Elsewhere,
}

/// The way of a request's response.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// Through the picker, on the request's stream.
    Through,
    /// Past the picker, which the proxy reaches at this address.
    Past { picker: Option<Arc<str>> },
}

/// Limits of a stream.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest body that is kept until it is complete.
    pub max_body_bytes: usize,
    /// Memory for the bodies of all streams.
    pub budget: Arc<Budget>,
    pub timeouts: Timeouts,
}

/// Times in which a request must arrive if it is kept until it is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Longest time between two chunks.
    pub idle: Duration,
    /// Longest time from the start of the stream to the end of the body.
    pub total: Duration,
}

/// Result of the first message of a report.
enum Reported {
    Begun,
    /// No request waits for the report: it came too late or twice, or another process picked.
    Unknown,
}

/// One open stream.
struct Conversation {
    inbound: Streaming<ProcessingRequest>,
    outbox: VecDeque<ProcessingResponse>,
    exchange: Exchange<Held>,
    way: Way,
    shared: Arc<Shared>,
    opened: Instant,
    /// Time of the last message.
    heard: Instant,
    /// The request's span, after its headers came.
    span: RequestSpan,
    /// Cancelled when the process cannot wait for the stream any longer.
    cut: Cut,
    _open: OpenStream,
}

/// The facts in the metadata of a stream.
struct Opening {
    /// The pool that the proxy names.
    pool: Option<ObjectKey>,
    way: Way,
    /// True if the stream reports a response.
    is_observer: bool,
}

/// Counts a stream as open while it lives.
struct OpenStream(Gauge);

impl Processor {
    /// Creates a processor; streams that are open when `cut` is cancelled end with UNAVAILABLE.
    #[must_use]
    pub fn new(
        reports: Arc<Reports>,
        spans: Arc<Spans>,
        (limits, tokenizer): (Limits, Tokenizer),
        cut: CancellationToken,
    ) -> Self {
        let shared = Arc::new(Shared { reports, spans, tokenizer, limits, cut });
        Self { shared, address: None }
    }

    /// The service for a proxy that reached the picker at `address`.
    pub(super) fn service_at(&self, address: SocketAddr) -> ExternalProcessorServer<Self> {
        let shared = Arc::clone(&self.shared);
        let max_bytes = shared.limits.max_body_bytes.saturating_add(ENVELOPE_BYTES);
        let processor = Self { shared, address: Some(address.to_string().into()) };
        ExternalProcessorServer::new(processor).max_decoding_message_size(max_bytes)
    }
}

impl Shared {
    fn director(&self) -> &Director {
        self.reports.director()
    }
}

#[tonic::async_trait]
impl ExternalProcessor for Processor {
    type ProcessStream = Pin<Box<dyn Stream<Item = Result<ProcessingResponse, Status>> + Send>>;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Self::ProcessStream>, Status> {
        let Shared { limits, cut, .. } = &*self.shared;
        let director = self.shared.director();
        let Opening { pool, way, is_observer } = Opening::of(request.metadata(), self.address.as_ref())?;
        let options = StreamOptions {
            max_body_bytes: limits.max_body_bytes,
            fresh_request_id: director.fresh_request_id(),
            pool,
            compat: director.compat(),
            explains: director.explains(),
        };
        let opened = clock();
        let mut conversation = Box::new(Conversation {
            inbound: request.into_inner(),
            outbox: VecDeque::new(),
            exchange: Exchange::new(options, limits.budget.reserve()),
            way,
            opened,
            heard: opened,
            span: RequestSpan::none(),
            cut: Cut::new(cut.clone()),
            _open: OpenStream::new(director.metrics().streams.clone()),
            shared: Arc::clone(&self.shared),
        });
        if is_observer {
            // A report takes no answer, so nothing is sent before its end, not even headers.
            let answer = Box::pin(conversation.next()).await?.ok_or_else(|| Status::ok(""))?;
            conversation.outbox.push_front(answer);
        }
        // Every answer takes the conversation and gives it back, so it is moved as a pointer.
        let answers = try_unfold(conversation, async |mut conversation| {
            let answer = conversation.next().await?;
            Ok(answer.map(|answer| (answer, conversation)))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

impl Opening {
    /// Reads the metadata of a stream, part of which comes from the proxy's configuration. `address` is the picker's.
    fn of(metadata: &MetadataMap, address: Option<&Arc<str>>) -> Result<Self, Status> {
        let mut opening = Self { pool: None, way: Way::Through, is_observer: false };
        for (name, value) in metadata.as_ref() {
            match name.as_str() {
                keys::INFERENCE_POOL => {
                    let pool = value.to_str().ok().and_then(|text| text.parse().ok());
                    let invalid = || format!("{} must be NAMESPACE/NAME", keys::INFERENCE_POOL);
                    opening.pool = Some(pool.ok_or_else(|| Status::invalid_argument(invalid()))?);
                }
                keys::RESPONSES if value == keys::OBSERVED => {
                    opening.way = Way::Past { picker: address.cloned() };
                }
                keys::PICKER => opening.is_observer = true,
                _ => {}
            }
        }
        Ok(opening)
    }
}

impl Held {
    fn in_flight_mut(&mut self) -> Option<&mut InFlightRequest> {
        match self {
            Self::InFlight(in_flight) => Some(in_flight),
            Self::Elsewhere => None,
        }
    }
}

impl Conversation {
    /// The next answer; `None` if the stream ends normally.
    async fn next(&mut self) -> Result<Option<ProcessingResponse>, Status> {
        loop {
            if let Some(answer) = self.outbox.pop_front() {
                return Ok(Some(answer));
            }
            if self.exchange.has_heard_all() || self.has_answered_all() {
                return Ok(None);
            }
            self.exchange.note_sent();
            // Lets other streams run in between: a frame may hold a thousand small messages.
            consume_budget().await;
            let (deadline, fault) = self.deadline();
            let message = tokio::select! {
                biased;
                message = self.inbound.message() => message,
                () = &mut self.cut => return Err(Status::unavailable("the picker is ending")),
                () = async { sleep_until(deadline.into()).await }, if self.exchange.expects_request() => {
                    let received = self.exchange.give_up(fault);
                    self.answer(received).await?;
                    continue;
                }
            };
            match message {
                Ok(Some(message)) => match Report::begun_by(&message) {
                    None => self.take(message).await?,
                    Some(report) => match self.begin_report(report) {
                        Reported::Begun => {}
                        // The proxy need not report more.
                        Reported::Unknown => return Ok(None),
                    },
                },
                Ok(None) if self.exchange.may_end() => return Ok(None),
                // After an OK the proxy would send the request on without its body.
                Ok(None) => return Err(Status::aborted("the stream ended before the request's body did")),
                Err(status) => match self.refuse_too_large(&status) {
                    Some(refused) => self.answer(Ok(refused)).await?,
                    None => {
                        debug!(code = ?status.code(), "Stream broke off");
                        return Err(status);
                    }
                },
            }
        }
    }

    /// Returns true if the proxy needs no more of the stream, because the response goes past the picker. The stream ends
    /// with its last answer then, without a look at what else the proxy sends.
    fn has_answered_all(&self) -> bool {
        self.way != Way::Through && self.exchange.has_answered_request()
    }

    /// The refusal of a body that came in a message too long to be read; `None` if `status` has another cause.
    fn refuse_too_large(&mut self, status: &Status) -> Option<Received> {
        let is_body = status.code() == Code::OutOfRange && self.exchange.expects_request();
        let limit = self.shared.limits.max_body_bytes;
        is_body.then(|| self.exchange.give_up(RequestFault::TooLarge { limit }).ok()).flatten()
    }

    /// Makes the stream the report of a response.
    fn begin_report(&mut self, report: Report) -> Reported {
        let Report { ticket, destination } = report;
        let Some(Served { in_flight, span }) = self.shared.reports.claim(&ticket) else {
            return Reported::Unknown;
        };
        self.span = span;
        // Envoy announces no modes here: the response is reported with its body.
        self.exchange.observe(destination, BodyMode::Streamed, Held::InFlight(in_flight));
        Reported::Begun
    }

    /// Reads what has come of a report. A proxy resets the stream of a report as soon as it has sent all of it, and the
    /// stream is dropped then, also if none of it was read.
    fn read_rest(&mut self) {
        while self.exchange.may_be_report()
            && let Some(Ok(Some(message))) = self.inbound.message().now_or_never()
        {
            match Report::begun_by(&message) {
                Some(report) => {
                    self.begin_report(report);
                }
                None if self.exchange.is_report() => {
                    let _ = self.take(message).now_or_never();
                }
                None => return,
            }
        }
    }

    async fn take(&mut self, message: ProcessingRequest) -> Result<(), Status> {
        if let Some(processing_request::Request::RequestHeaders(headers)) = &message.request {
            self.span = self.shared.spans.begin(headers);
        }
        if self.exchange.expects_request() {
            self.heard = clock();
        }
        let received = self.exchange.receive(message);
        self.answer(received).await?;
        if self.exchange.shows_first_token()
            && let Some(in_flight) = self.exchange.lease_mut().and_then(Held::in_flight_mut)
        {
            in_flight.note_first_token();
        }
        if let Some((served, held)) = self.exchange.take_served_elsewhere()
            && let Some(in_flight) = held.in_flight_mut()
        {
            self.shared.director().note_served_elsewhere(in_flight, &served, now());
        }
        Ok(())
    }

    async fn answer(&mut self, received: Result<Received, ProtocolError>) -> Result<(), Status> {
        let received = received.map_err(|error| Status::failed_precondition(error.to_string()))?;
        let answers = match received {
            Received::Answers(answers) => answers,
            Received::NeedsPick(needs_pick) => {
                let tokens = self.tokens(&needs_pick).await;
                let NeedsPick { request, pending } = *needs_pick;
                match self.decide(request, tokens) {
                    Err(refusal) => self.exchange.answer(pending, Err(refusal)),
                    Ok(pick) => self.answer_pick(pending, pick),
                }
            }
        };
        self.outbox.extend(answers);
        Ok(())
    }

    /// The answers with the pick. If the response goes past the picker, the request waits for its report from now on.
    fn answer_pick(&mut self, pending: Pending, pick: Pick<InFlightRequest>) -> Vec<ProcessingResponse> {
        let Pick { destination, rewrite, reason, lease: in_flight } = pick;
        match self.way.clone() {
            Way::Through => {
                let pick = Pick { destination, rewrite, reason, lease: Held::InFlight(in_flight) };
                self.exchange.answer(pending, Ok(pick))
            }
            Way::Past { picker } => {
                let span = std::mem::replace(&mut self.span, RequestSpan::none());
                let served = Served { in_flight, span };
                let (pool, id) = (self.exchange.pool(), self.exchange.request_id());
                let ticket = self.shared.reports.keep(served, pool, id, clock());
                let pick = Pick { destination, rewrite, reason: None, lease: Held::Elsewhere };
                let mut answers = self.exchange.answer(pending, Ok(pick));
                let picker = picker.map(|address| address.to_string());
                Naming { ticket, picker, decision: reason }.apply(&mut answers);
                answers
            }
        }
    }

    /// The time by which more of the request must have come, and the fault otherwise.
    fn deadline(&self) -> (Instant, RequestFault) {
        let Timeouts { idle, total } = self.shared.limits.timeouts;
        let (stalled, too_slow) = (self.heard + idle, self.opened + total);
        if stalled < too_slow {
            (stalled, RequestFault::Stalled { idle })
        } else {
            (too_slow, RequestFault::TooSlow { limit: total })
        }
    }

    /// The prompts' token ids, if the decision needs them.
    async fn tokens(&self, needs_pick: &NeedsPick) -> PromptTokens {
        let Shared { tokenizer, limits, .. } = &*self.shared;
        let director = self.shared.director();
        let NeedsPick { request, pending: Pending::Body { body, .. } } = needs_pick else {
            return PromptTokens::Unasked;
        };
        let Some(source) = director.needs_tokens(request) else { return PromptTokens::Unasked };
        let TokenSource { endpoint, api, target_model } = source;
        // Reserves memory for the ids and for the request to a pod that does not render.
        let n_bytes: usize = body.pieces().iter().map(Bytes::len).sum();
        let mut held = limits.budget.reserve();
        if held.try_grow(n_bytes.saturating_mul(2)).is_err() {
            return PromptTokens::Unknown("no memory is left for the ids".to_owned());
        }
        let started = clock();
        let outcome = tokenizer.prompts(api, (body.pieces(), target_model.as_deref()), &endpoint).await;
        director.metrics().tokenize_seconds.observe(started.elapsed().as_secs_f64());
        match outcome {
            Ok(prompts) => PromptTokens::Known(prompts),
            Err(error) => {
                let error = format!("{error:#}");
                director.metrics().tokenize_failures.inc();
                debug!(endpoint = %endpoint.destination, error, "Cannot tokenize");
                PromptTokens::Unknown(error)
            }
        }
    }

    fn decide(&self, request: PickRequest, tokens: PromptTokens) -> Result<Pick<InFlightRequest>, Refusal> {
        let director = self.shared.director();
        let now = now();
        let (picked, record) = director.decide_on_record(request, tokens, now);
        let elapsed = now.instant.elapsed();
        director.metrics().decision_seconds.observe(elapsed.as_secs_f64());
        self.span.note_decision(&record, now.wall, now.wall + elapsed);
        picked
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        self.read_rest();
        if let Some((Held::InFlight(in_flight), report)) = self.exchange.end() {
            let span = std::mem::replace(&mut self.span, RequestSpan::none());
            Served { in_flight, span }.end(self.shared.director(), &report, clock());
        }
    }
}

impl OpenStream {
    fn new(gauge: Gauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn now() -> Now {
    Now { instant: clock(), wall: wall_clock() }
}

#[expect(clippy::disallowed_methods, reason = "the server is the edge that hands the time in")]
fn clock() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "the server is the edge that hands the time in")]
fn wall_clock() -> SystemTime {
    SystemTime::now()
}
