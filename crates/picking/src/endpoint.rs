//! An endpoint as picks see it: the process that serves there, its last report, and the requests in flight to it.

pub mod health;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prefix_index::endpoint::EndpointId;
use scheduling::candidate::{AdapterState, Load};

use self::health::Doubts;
use crate::awaited::{Awaited, PromptWork, QueuePlace};
use crate::cache_facts::CacheFacts;
use crate::gauges::{Gauges, Outline, Reading};
use crate::moment::Moment;

/// The metrics that a scrape found on an endpoint's `/metrics`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Requests in the queue, summed over the engines of the process.
    pub waiting: u32,
    /// Requests in the batch, summed over the engines of the process.
    pub running: u32,
    /// Share of the KV cache that is in use, in 0..=1, of the fullest engine.
    pub kv_usage: f64,
    /// Start of the process in seconds, if the engine reports it. A new value means a new process with an empty cache.
    pub started: Option<f64>,
    /// Prompt tokens that the process has counted, if the engine reports them. A lower value means a new process.
    pub prompt_tokens: Option<f64>,
    /// First tokens that the process has counted, summed over the engines, if they report it.
    pub first_tokens: Option<u64>,
    /// Size of the KV cache in tokens, summed over the engines, if they report it.
    pub kv_tokens: Option<u64>,
    /// The LoRA adapters, if the engine serves any.
    pub adapters: Option<Adapters>,
}

/// The LoRA adapters of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adapters {
    /// Adapters that are loaded, and those that requests wait for.
    pub names: Vec<String>,
    /// Most adapters that can be loaded at a time.
    pub max: usize,
    /// Names of models that are served without an adapter.
    pub base_models: Vec<String>,
}

/// The result of scraping an endpoint.
#[derive(Clone, Debug, PartialEq)]
enum Report {
    /// No scrape has ended yet.
    Pending,
    /// The last successful scrape; later ones may have timed out.
    Sample(Sample),
    /// Nothing listens there.
    Down,
}

/// The last scrapes, as far as they found no request.
#[derive(Clone, Copy, Debug, Default)]
enum Quiet {
    /// The last one found requests, or there is none.
    #[default]
    No,
    /// The last one found none.
    Once { last: Moment },
    /// The last two found none.
    Twice { before: Moment, last: Moment },
}

/// Consequence of a scrape for the endpoint's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    Kept,
    /// The process ended or was replaced, and its cache with it.
    Lost,
}

/// An endpoint while it lives. The fields that every pick reads come first, in one line of the processor's cache.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct EndpointState {
    slot: u32,
    /// Number of the process behind the endpoint, which grows with each process.
    incarnation: AtomicU32,
    in_flight: AtomicU32,
    /// Bytes of prompts in flight that it still has to compute, as far as is known.
    uncached_bytes: AtomicU64,
    /// The numbers of the report, written together with it.
    gauges: Gauges,
    /// Number of times that something went wrong, after which the last scrape may be out of date.
    doubts: AtomicU32,
    /// Value of `doubts` when the last successful scrape began.
    settled_doubts: AtomicU32,
    report: Mutex<Report>,
    quiet: Mutex<Quiet>,
    queue: Mutex<Awaited>,
    pub facts: CacheFacts,
}

/// The fields that picks read end before this one.
const _: () = assert!(std::mem::offset_of!(EndpointState, report) <= 64);

/// Numbers the processes behind endpoints. No number is used twice, so the owners of a slot are in order.
#[derive(Debug, Default)]
pub struct Incarnations(AtomicU32);

// === impl Sample ===

impl Sample {
    /// Returns true if `later` is from another process. A value that one of them does not report is ignored.
    fn is_outlived_by(&self, later: &Self) -> bool {
        let differs = |(before, after): (f64, f64)| before.to_bits() != after.to_bits();
        let has_restarted = self.started.zip(later.started).is_some_and(differs);
        let has_counted_more = |(before, after): (f64, f64)| after < before;
        has_restarted || self.prompt_tokens.zip(later.prompt_tokens).is_some_and(has_counted_more)
    }

    /// This sample, completed with the values of `earlier` that describe the process and that this one does not report.
    fn after(self, earlier: &Self) -> Self {
        let started = self.started.or(earlier.started);
        Self { started, prompt_tokens: self.prompt_tokens.or(earlier.prompt_tokens), ..self }
    }
}

// === impl Quiet ===

impl Quiet {
    /// Notes a scrape that found `n_requests`.
    fn note(&mut self, n_requests: u32, taken: Moment) {
        *self = match *self {
            _ if n_requests > 0 => Self::No,
            Self::No => Self::Once { last: taken },
            Self::Once { last } | Self::Twice { before: _, last } => {
                Self::Twice { before: last, last: taken }
            }
        };
    }
}

// === impl EndpointState ===

impl EndpointState {
    /// The endpoint that owns `slot` of the prefix index, not scraped yet.
    #[must_use]
    pub fn new(slot: u32, incarnations: &Incarnations) -> Self {
        Self {
            slot,
            incarnation: AtomicU32::new(incarnations.next()),
            in_flight: AtomicU32::new(0),
            uncached_bytes: AtomicU64::new(0),
            gauges: Gauges::default(),
            doubts: AtomicU32::new(0),
            settled_doubts: AtomicU32::new(0),
            report: Mutex::new(Report::Pending),
            quiet: Mutex::default(),
            queue: Mutex::default(),
            facts: CacheFacts::default(),
        }
    }

    /// Id in the prefix index of the process that serves now.
    #[inline]
    #[must_use]
    pub fn id(&self) -> EndpointId {
        EndpointId::new(self.slot, self.incarnation.load(Ordering::Acquire))
    }

    /// Replaces the process behind the endpoint, which is gone. Returns the old id.
    pub(crate) fn reincarnate(&self, incarnations: &Incarnations) -> EndpointId {
        let old = self.incarnation.swap(incarnations.next(), Ordering::AcqRel);
        self.facts.reset();
        self.compute(Awaited::clear);
        EndpointId::new(self.slot, old)
    }

    /// Counts a request as in flight.
    pub(crate) fn add_request(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts the prompts of a request as work, until it leaves the returned place or the engine has counted them.
    pub(crate) fn enter(&self, work: PromptWork) -> QueuePlace {
        let mut queue = self.queue.lock();
        self.uncached_bytes.fetch_add(work.uncached_bytes, Ordering::Relaxed);
        queue.push(work)
    }

    /// Counts the prompts of a request as work no longer: they are computed, or never will be. Returns them if they
    /// still counted.
    pub(crate) fn leave(&self, place: QueuePlace) -> Option<PromptWork> {
        let mut queue = self.queue.lock();
        let work = queue.remove(place)?;
        self.uncached_bytes.fetch_sub(work.uncached_bytes, Ordering::Relaxed);
        Some(work)
    }

    /// Counts the bytes that `computed` removes as work no longer.
    fn compute(&self, computed: impl FnOnce(&mut Awaited) -> u64) {
        let mut queue = self.queue.lock();
        let n_bytes = computed(&mut queue);
        self.uncached_bytes.fetch_sub(n_bytes, Ordering::Relaxed);
    }

    /// Counts a request as in flight no longer.
    pub(crate) fn remove_request(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Bytes of prompts in flight whose first token is not known to have come and that are not assumed to be cached.
    #[inline]
    #[must_use]
    pub fn uncached_bytes(&self) -> u64 {
        self.uncached_bytes.load(Ordering::Relaxed)
    }

    /// Notes the result of a scrape that began after `doubts`.
    #[must_use]
    pub(crate) fn report(&self, sample: Sample, doubts: Doubts, taken: Moment) -> Cache {
        let n_counted = sample.first_tokens;
        let mut report = self.report.lock();
        let (restarted, sample) = match &*report {
            Report::Pending | Report::Down => (false, sample),
            Report::Sample(last) => match last.is_outlived_by(&sample) {
                true => (true, sample),
                false => (false, sample.after(last)),
            },
        };
        self.facts.note_kv_tokens(sample.kv_tokens);
        let Sample { waiting, running, kv_usage, .. } = sample;
        self.quiet.lock().note(waiting.saturating_add(running), taken);
        if !restarted {
            self.compute(|queue| queue.count(n_counted, waiting.into()));
        }
        let reading = Reading { waiting, running, kv_usage, age: Duration::ZERO };
        self.gauges.note(reading, taken, sample.adapters.is_some());
        *report = Report::Sample(sample);
        self.settle(doubts);
        if restarted { Cache::Lost } else { Cache::Kept }
    }

    /// Start of the process, from its metrics.
    #[must_use]
    pub fn started(&self) -> Option<f64> {
        match &*self.report.lock() {
            Report::Sample(sample) => sample.started,
            Report::Pending | Report::Down => None,
        }
    }

    /// Returns true if two scrapes after `moment`, and all since, found no request.
    #[must_use]
    pub fn was_quiet_after(&self, moment: Moment) -> bool {
        match *self.quiet.lock() {
            Quiet::No | Quiet::Once { .. } => false,
            Quiet::Twice { before, last: _ } => before > moment,
        }
    }

    /// Returns true if no request is in flight to it, and it reports none either.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let has_none = |sample: &Sample| sample.waiting == 0 && sample.running == 0;
        self.in_flight() == 0 && matches!(&*self.report.lock(), Report::Sample(sample) if has_none(sample))
    }

    /// Load for the policy. Scraped numbers that are older than `max_age` are not fresh.
    #[inline]
    #[must_use]
    pub fn load(&self, now: Moment, max_age: Duration) -> Load {
        let (in_flight, uncached_bytes) = (self.in_flight(), self.uncached_bytes());
        let Some(Reading { waiting, running, kv_usage, age }) = self.gauges.reading(now) else {
            return Load { in_flight, uncached_bytes, ..Load::default() };
        };
        let age = (!self.is_distrusted()).then_some(age);
        let fresh = age.is_some_and(|age| age <= max_age);
        Load { waiting, running, kv_usage, in_flight, uncached_bytes, age, fresh }
    }

    /// State of `target_model` as an adapter on this endpoint; irrelevant if it is none.
    #[inline]
    #[must_use]
    pub fn adapter_state(&self, target_model: &str) -> AdapterState {
        match self.gauges.outline() {
            Outline::Adapters => self.reported_adapter_state(target_model),
            Outline::Pending | Outline::Plain | Outline::Down => AdapterState::Irrelevant,
        }
    }

    /// A separate function, so that its caller is short enough to be inlined.
    #[inline(never)]
    fn reported_adapter_state(&self, target_model: &str) -> AdapterState {
        match &*self.report.lock() {
            Report::Sample(Sample { adapters: Some(adapters), .. }) => adapters.state(target_model),
            Report::Sample(_) | Report::Pending | Report::Down => AdapterState::Irrelevant,
        }
    }
}

// === impl Adapters ===

impl Adapters {
    fn state(&self, target_model: &str) -> AdapterState {
        let Self { names, max, base_models } = self;
        if base_models.iter().any(|model| model == target_model) {
            return AdapterState::Irrelevant;
        }
        match names.iter().any(|name| name == target_model) {
            true => AdapterState::Loaded,
            false if names.len() < *max => AdapterState::Room,
            false => AdapterState::Full,
        }
    }
}

// === impl Incarnations ===

impl Incarnations {
    fn next(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}
