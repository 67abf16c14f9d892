//! The one thread that owns a pod's engine and its virtual clock. It takes requests and aborts from a channel, lets
//! steps last as long as the latency model says, and sends tokens out when they are due.
//!
//! ```text
//! submit ──c_pre──► Enter ──► engine: step ─ step ─ step ──c_post──► Deliver ──► the request's channel
//! ```
//! Deadlines are absolute, so that a late wake-up delays one event and not the events after it.

pub mod backlog;
pub mod inspect;
pub mod pause;

mod arrivals;
mod commands;
mod diary;
mod live;

use crate::cache_log::CacheLog;
use crate::clock::{Clock, SimTime};
use crate::kv_events::publisher::KvEventPublisher;
use crate::metrics::requests::SampleGroup;
use crate::metrics::{Metrics, StepRecord};
use crate::send_schedule::SendSchedule;
use backlog::{Backlog, QueueLimits, QueuePlace, SubmitError};
use commands::{Commands, EngineWork, Inbox, ReportDone, WakeUp};
use hashbrown::HashMap;
use inspect::{EngineView, Inspection};
use live::{Live, Stage};
use parking_lot::Mutex;
use pause::{PauseMode, Scheduling};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use vllm_engine::engine::Engine;
use vllm_engine::event::KvEvent;
use vllm_engine::latency::LatencyModel;
use vllm_engine::request::{AddError, EngineRequest, FinishReason, RequestId};
use vllm_engine::step::{Origin, OutputToken, StepOutput};

/// Time from the last token to the end of the stream: the part of the API server's time that no token waits for.
const END_OF_STREAM: Duration = Duration::from_millis(2);

/// Id that no request gets.
const NO_REQUEST: RequestId = RequestId(u64::MAX);

#[derive(Debug)]
pub struct DriverConfig {
    pub engine: Engine,
    pub latency: LatencyModel,
    /// Relative standard deviation of each step and of `c_pre`; 0 for none.
    pub jitter: f64,
    pub seed: u64,
    /// Publisher of the engine's KV events, once per step.
    pub kv_events: Option<KvEventPublisher>,
    /// Log of the prefix cache; needs `EngineConfig::kv_events`.
    pub cache_log: Option<CacheLog>,
    /// Outboxes in which streams wait for their time: then handles get their tokens at the end of the step, ahead of
    /// time. `None`: handles get them when they are due.
    pub send_schedule: Option<Arc<SendSchedule>>,
    pub queue_limits: QueueLimits,
}

/// Handle that submits to a driver; the thread ends when the last handle is gone.
#[derive(Clone, Debug)]
pub struct DriverHandle {
    commands: Commands,
    clock: Clock,
    next_id: Arc<AtomicU64>,
    backlog: Arc<Backlog>,
}

/// A request that the driver has. Dropping this before the end aborts the request.
#[derive(Debug)]
#[must_use]
pub struct RequestHandle {
    id: RequestId,
    commands: Commands,
    admission: oneshot::Receiver<Admission>,
    /// At most one message per output token and one for the end.
    deliveries: UnboundedReceiver<Delivery>,
    ended: bool,
}

/// A request to run; the driver chooses its id.
#[derive(Debug)]
pub struct Submission {
    pub request: EngineRequest,
    /// Name outside the engine, as in the request log.
    pub request_id: Arc<str>,
    pub arrival: SimTime,
    /// Most tokens that it may generate, for the metrics.
    pub max_tokens: u32,
    /// Samples of the same request; `None` if it is the only one.
    pub group: Option<Arc<SampleGroup>>,
}

/// First scheduling of a request: from then on it is known what the prefix cache had for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    pub at: SimTime,
    pub cached_tokens: u32,
}

/// Message to a request, in order: tokens, then the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    Token {
        token: u32,
        at: SimTime,
        cached_tokens: u32,
        queue_time: Duration,
        finish: Option<FinishReason>,
    },
    /// The operator has aborted it; the end follows.
    Aborted {
        at: SimTime,
    },
    End {
        at: SimTime,
    },
    Rejected(AddError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine is dead")]
pub struct EngineDead;

enum Command {
    Submit(Box<Submission>, Outlets),
    Abort(RequestId),
    WithEngine(EngineWork),
    Inspect(Inspection),
    Pause(PauseMode, oneshot::Sender<()>),
    Resume,
    AbortRequests(Option<Vec<String>>),
}

/// The driver's ends of a handle's channels.
#[derive(Debug)]
struct Outlets {
    /// Place in the queue, until the engine admits the request.
    queue_place: Option<QueuePlace>,
    admission: Option<oneshot::Sender<Admission>>,
    deliveries: UnboundedSender<Delivery>,
}

/// A planned event, ordered by time, then by the order of planning.
#[derive(Debug)]
struct Planned {
    at: SimTime,
    seq: u64,
    event: Event,
}

#[derive(Debug)]
enum Event {
    Enter(RequestId),
    StepEnd,
    /// Tokens of one step, which are due then.
    Deliver(Vec<OutputToken>),
    /// Bytes in the outboxes that are due by that time.
    Send(SimTime),
    EndStream(RequestId),
}

struct Driver {
    engine: Engine,
    latency: LatencyModel,
    jitter: f64,
    rng: ChaCha8Rng,
    clock: Clock,
    metrics: Arc<Mutex<Metrics>>,
    kv_events: Option<KvEventPublisher>,
    cache_log: Option<CacheLog>,
    /// Events that are in the cache log, but not yet published.
    logged_events: Vec<KvEvent>,
    agenda: BinaryHeap<Reverse<Planned>>,
    next_seq: u64,
    live: HashMap<RequestId, Live>,
    /// Aborts that arrived during a step; they are applied at its end.
    aborts: Vec<RequestId>,
    step_runs: bool,
    scheduling: Scheduling,
    /// Requests that arrived while the scheduler was paused, in order.
    held: Vec<(Box<Submission>, Outlets)>,
    /// Time of the last event, which never goes back.
    now: SimTime,
    send_schedule: Option<Arc<SendSchedule>>,
    output: StepOutput,
    inbox: Inbox,
}

/// Starts the thread of one pod.
///
/// # Errors
/// Fails if the operating system has no thread left.
pub fn start(
    config: DriverConfig,
    clock: Clock,
    metrics: Arc<Mutex<Metrics>>,
) -> std::io::Result<DriverHandle> {
    let DriverConfig { engine, latency, jitter, seed, kv_events, cache_log, send_schedule, queue_limits } =
        config;
    let (commands, inbox) = commands::channel(&clock);
    let driver = Driver {
        engine,
        latency,
        jitter,
        rng: ChaCha8Rng::seed_from_u64(seed),
        clock: clock.clone(),
        metrics,
        kv_events,
        cache_log,
        logged_events: Vec::new(),
        agenda: BinaryHeap::new(),
        next_seq: 0,
        live: HashMap::new(),
        aborts: Vec::new(),
        step_runs: false,
        scheduling: Scheduling::default(),
        held: Vec::new(),
        now: SimTime::default(),
        send_schedule,
        output: StepOutput::default(),
        inbox,
    };
    std::thread::Builder::new().name("engine".to_owned()).spawn(move || driver.run())?;
    let backlog = Arc::new(Backlog::new(queue_limits));
    Ok(DriverHandle { commands, clock, next_id: Arc::default(), backlog })
}

// === impl DriverHandle ===

impl DriverHandle {
    /// Submits a request.
    ///
    /// # Errors
    /// Fails if the queue is full, or if the driver's thread is gone.
    pub fn submit(&self, mut submission: Submission) -> Result<RequestHandle, SubmitError> {
        let queue_place = Some(self.backlog.enter(submission.request.prompt.len())?);
        let id = RequestId(self.next_id.fetch_add(1, Ordering::Relaxed));
        submission.request.id = id;
        let (tx, deliveries) = unbounded_channel();
        let (admission_tx, admission) = oneshot::channel();
        let outlets = Outlets { queue_place, admission: Some(admission_tx), deliveries: tx };
        self.commands.send(Command::Submit(Box::new(submission), outlets))?;
        let commands = self.commands.clone();
        Ok(RequestHandle { id, commands, admission, deliveries, ended: false })
    }

    /// Runs `work` on the engine's own thread, at once, and returns its result. A step may be running.
    ///
    /// # Errors
    /// Fails if the driver's thread is gone.
    pub async fn with_engine<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine) -> T + Send + 'static,
    ) -> Result<T, EngineDead> {
        let (tx, result) = oneshot::channel();
        let work = move |engine: &mut Engine| -> ReportDone {
            let done = work(engine);
            Box::new(move || drop(tx.send(done)))
        };
        self.commands.send(Command::WithEngine(Box::new(work)))?;
        result.await.map_err(|_closed| EngineDead)
    }

    /// Returns false if the driver's thread is gone, which only a bug can cause.
    pub fn is_alive(&self) -> bool {
        self.commands.send(Command::Abort(NO_REQUEST)).is_ok()
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }
}

// === impl RequestHandle ===

impl RequestHandle {
    /// Waits until the engine admits the request, which is before its first token. `None` if it never does; then `next`
    /// says why. It must be called only once.
    pub async fn admission(&mut self) -> Option<Admission> {
        (&mut self.admission).await.ok()
    }

    /// Returns the next delivery; `None` after the end, or if the driver died.
    pub async fn next(&mut self) -> Option<Delivery> {
        std::future::poll_fn(|ctx| self.poll_next(ctx)).await
    }

    pub fn poll_next(&mut self, ctx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        let delivery = ready!(self.deliveries.poll_recv(ctx));
        match &delivery {
            None | Some(Delivery::End { .. } | Delivery::Rejected(_)) => self.ended = true,
            Some(Delivery::Token { .. } | Delivery::Aborted { .. }) => {}
        }
        Poll::Ready(delivery)
    }
}

impl Drop for RequestHandle {
    fn drop(&mut self) {
        if !self.ended {
            let _driver_gone = self.commands.send(Command::Abort(self.id));
        }
    }
}

// === impl Driver ===

impl Driver {
    fn run(mut self) {
        while let Some(call) = self.inbox.wait(self.next_event()) {
            if let WakeUp::Command(command) = call {
                self.apply(command);
                while let Some(command) = self.inbox.try_next() {
                    self.apply(command);
                }
            }
            let now = self.clock.now();
            while self.next_event().is_some_and(|at| at <= now) {
                self.advance();
            }
        }
        self.log_stop();
    }

    fn next_event(&self) -> Option<SimTime> {
        self.agenda.peek().map(|Reverse(planned)| planned.at)
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::WithEngine(work) => self.with_engine(work),
            Command::Inspect(look) => look(EngineView::new(&self.engine, &self.live)),
            Command::Submit(submission, outlets) => self.receive(submission, outlets),
            Command::Pause(mode, paused) => self.pause(mode, paused),
            Command::Resume => self.resume(),
            Command::AbortRequests(ids) => {
                self.abort_requests(|id| ids.as_ref().is_none_or(|ids| ids.iter().any(|known| known == id)));
                self.settle_drain();
            }
            Command::Abort(id) => match self.live.get(&id).map(|live| &live.stage) {
                Some(Stage::InEngine) => {
                    self.forget_aborted(id);
                    self.aborts.push(id);
                    if !self.step_runs {
                        self.abort_between_steps();
                    }
                }
                Some(Stage::Arriving(_) | Stage::Leaving) => self.forget_aborted(id),
                None => self.forget_held(id),
            },
        }
    }

    /// Sends a request on its way to the engine.
    fn submit(&mut self, submission: Box<Submission>, outlets: Outlets) {
        let (id, arrival) = (submission.request.id, submission.arrival);
        self.log_arrival(&submission);
        let live = Live::new(*submission, outlets);
        if let Some(shift) = live.joins_adapter() {
            self.metrics.lock().shift_lora(&shift);
        }
        self.live.insert(id, live);
        self.arrive(id, arrival);
    }

    /// Runs everything that is planned for the next moment, then starts a step if none runs.
    fn advance(&mut self) {
        let Some(Reverse(Planned { at, .. })) = self.agenda.peek() else { return };
        let moment = (*at).max(self.now);
        self.now = moment;
        while let Some(Reverse(planned)) = self.agenda.peek()
            && planned.at <= moment
        {
            let Some(Reverse(Planned { at, event, .. })) = self.agenda.pop() else { return };
            match event {
                Event::Enter(id) => self.enter(id),
                Event::StepEnd => self.end_step(),
                Event::Deliver(tokens) => {
                    self.send_schedule.iter().for_each(|send_schedule| send_schedule.pass(at));
                    self.deliver(at, &tokens);
                }
                Event::Send(due) => self.send_due(due, at),
                Event::EndStream(id) => self.end_stream(id),
            }
        }
        if !self.step_runs {
            self.start_step();
        }
        self.settle_drain();
    }

    /// Runs `work`. Its changes go into the events and the gauges, and may let a waiting request in.
    fn with_engine(&mut self, work: EngineWork) {
        let answer = work(&mut self.engine);
        self.log_cache(Vec::new());
        answer();
        if self.step_runs {
            return;
        }
        self.publish_events();
        self.metrics.lock().set_gauges(&self.engine.stats());
        self.now = self.now.max(self.clock.now());
        self.start_step();
    }

    fn enter(&mut self, id: RequestId) {
        let Some(live) = self.live.get_mut(&id) else { return };
        live.entered = self.now;
        let Stage::Arriving(request) = std::mem::replace(&mut live.stage, Stage::InEngine) else { return };
        if let Err(error) = self.engine.add(*request) {
            live.deliver(Delivery::Rejected(error));
            self.forget_aborted(id);
        }
    }

    fn start_step(&mut self) {
        if matches!(self.scheduling, Scheduling::Paused) {
            return;
        }
        let Some(plan) = self.engine.schedule() else {
            // The gauges change even if no waiting request can be admitted.
            if self.engine.has_requests() {
                self.metrics.lock().set_gauges(&self.engine.stats());
            }
            return;
        };
        let step_time = self.latency.jittered_step_time(plan, self.jitter, &mut self.rng);
        for scheduled in &plan.scheduled {
            if let (Origin::New, Some(live)) = (scheduled.origin, self.live.get_mut(&scheduled.id)) {
                live.scheduled = self.now;
                live.outlets.queue_place = None;
                if let Some(admission) = live.outlets.admission.take() {
                    let cached_tokens = scheduled.n_computed_before;
                    let admitted = Admission { at: self.now, cached_tokens };
                    let _client_gone = admission.send(admitted);
                }
            }
        }
        for id in &plan.preempted {
            if let Some(live) = self.live.get_mut(id) {
                live.n_new_preemptions += 1;
            }
        }
        self.log_step();
        self.step_runs = true;
        self.plan(self.now + step_time, Event::StepEnd);
    }

    fn end_step(&mut self) {
        self.step_runs = false;
        let mut output = std::mem::take(&mut self.output);
        self.engine.complete(&mut output);
        let mut record = StepRecord::default();
        let observed = self.now + self.latency.c_post;
        for token in &output.tokens {
            // vLLM's API server ignores the token of a request whose client has left.
            if let Some(live) = self.live.get_mut(&token.id) {
                live.record_token(token, self.now, observed, &mut record);
            }
        }
        self.apply_aborts();
        self.publish_events();
        let unix_now = Clock::unix_now().as_secs_f64();
        self.metrics.lock().record_step(&record, &self.engine.stats(), unix_now);
        self.send_out(observed, &output.tokens);
        self.output = output;
    }

    /// Forgets a request whose client left. vLLM counts nothing of it, but its adapter has one request less.
    fn forget_aborted(&mut self, id: RequestId) {
        let Some(live) = self.live.remove(&id) else { return };
        if let Some(shift) = live.leaves_adapter() {
            self.metrics.lock().shift_lora(&shift);
        }
    }

    fn apply_aborts(&mut self) {
        for id in std::mem::take(&mut self.aborts) {
            self.engine.abort(id);
        }
    }

    /// Applies aborts while no step runs although the engine has requests, because none could be scheduled.
    fn abort_between_steps(&mut self) {
        self.apply_aborts();
        self.metrics.lock().set_gauges(&self.engine.stats());
        self.now = self.now.max(self.clock.now());
        self.start_step();
    }

    fn send_out(&mut self, due: SimTime, tokens: &[OutputToken]) {
        if tokens.is_empty() {
            return;
        }
        match &self.send_schedule {
            Some(send_schedule) if send_schedule.is_worth_holding(due.since(self.now)) => {
                let begin = send_schedule.plan(due, tokens.len()).max(self.now);
                self.plan(begin, Event::Send(due));
                self.deliver(due, tokens);
            }
            Some(_) | None => self.plan(due, Event::Deliver(tokens.to_vec())),
        }
    }

    fn send_due(&self, due: SimTime, planned: SimTime) {
        if let Some(send_schedule) = &self.send_schedule {
            send_schedule.sweep(due, planned);
        }
    }

    fn deliver(&mut self, due: SimTime, tokens: &[OutputToken]) {
        for token in tokens {
            let OutputToken { id, token, output_idx: _, cached_tokens, finished } = *token;
            let Some(live) = self.live.get(&id) else { continue };
            let queue_time = live.scheduled.since(live.entered);
            let delivery = Delivery::Token { token, at: due, cached_tokens, queue_time, finish: finished };
            live.deliver(delivery);
            if finished.is_some() {
                self.plan(due + END_OF_STREAM, Event::EndStream(id));
            }
        }
    }

    fn end_stream(&mut self, id: RequestId) {
        if let Some(live) = self.live.remove(&id) {
            live.deliver(Delivery::End { at: self.now });
        }
    }

    fn plan(&mut self, at: SimTime, event: Event) {
        self.agenda.push(Reverse(Planned { at, seq: self.next_seq, event }));
        self.next_seq += 1;
    }
}

// === impl Planned ===

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.seq == other.seq
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.seq).cmp(&(other.at, other.seq))
    }
}
