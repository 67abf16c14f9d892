//! One endpoint as picks see it: which process serves there, what it last reported, and what is in flight to it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prefix_index::endpoint::EndpointId;
use scheduling::candidate::{AdapterState, Load};

use crate::cache_facts::CacheFacts;
use crate::gauges::{Gauges, Outline, Reading};
use crate::moment::Moment;

/// What an endpoint's `/metrics` said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Requests in the queue, summed over the engines of the process.
    pub waiting: u32,
    /// Requests in the batch, summed likewise.
    pub running: u32,
    /// Share of the KV cache that is in use, 0 to 1; the fullest engine's.
    pub kv_usage: f64,
    /// When the process began, in seconds, if the engine reports it: a new value is a new, empty cache.
    pub started: Option<f64>,
    /// Prompt tokens that the process has counted, if the engine reports them: fewer than before is a new process.
    pub prompt_tokens: Option<f64>,
    /// Size of the KV cache in tokens, summed over the engines, if they report it.
    pub kv_tokens: Option<u64>,
    /// The LoRA adapters, if the engine serves any.
    pub adapters: Option<Adapters>,
}

/// The LoRA adapters of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adapters {
    /// Those that are loaded, and those that requests wait for.
    pub names: Vec<String>,
    /// How many can be loaded at once.
    pub max: usize,
    /// Names of models that are served without an adapter.
    pub base_models: Vec<String>,
}

/// What is known of an endpoint by scraping it.
#[derive(Clone, Debug, PartialEq)]
enum Report {
    /// No scrape has ended yet.
    Pending,
    /// The last scrape that succeeded; later ones may have timed out.
    Sample(Sample),
    /// Nothing listens there.
    Down,
}

/// How often an endpoint was doubted, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doubts(u32);

/// What a scrape means for the endpoint's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    Kept,
    /// The process ended or was replaced, and its cache with it.
    Lost,
}

/// One endpoint while it lives. What every pick reads of it comes first, in one line of the processor's cache.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Endpoint {
    slot: u32,
    /// Grows with each process that serves under this endpoint.
    incarnation: AtomicU32,
    in_flight: AtomicU32,
    /// Bytes of prompts in flight that it has still to compute, as far as is known.
    uncached_bytes: AtomicU64,
    /// The report's numbers, written with it.
    gauges: Gauges,
    /// How often something went wrong, after which what was scraped before may be over.
    doubts: AtomicU32,
    /// How often it had when the last scrape that succeeded began.
    settled_doubts: AtomicU32,
    report: Mutex<Report>,
    pub facts: CacheFacts,
}

/// What picks read ends where this begins.
const _: () = assert!(std::mem::offset_of!(Endpoint, report) <= 64);

/// Numbers the processes behind endpoints; no number is given twice, so a slot's owners are in order.
#[derive(Debug, Default)]
pub struct Incarnations(AtomicU32);

// === impl Sample ===

impl Sample {
    /// Whether `later` is another process's. What one of them does not report says nothing.
    fn is_outlived_by(&self, later: &Self) -> bool {
        let differs = |(before, after): (f64, f64)| before.to_bits() != after.to_bits();
        let has_restarted = self.started.zip(later.started).is_some_and(differs);
        let has_counted_more = |(before, after): (f64, f64)| after < before;
        has_restarted || self.prompt_tokens.zip(later.prompt_tokens).is_some_and(has_counted_more)
    }

    /// The same, with what `earlier` told of the process and this one does not.
    fn after(self, earlier: &Self) -> Self {
        let started = self.started.or(earlier.started);
        Self { started, prompt_tokens: self.prompt_tokens.or(earlier.prompt_tokens), ..self }
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// The endpoint that owns `slot` of the prefix index, not asked yet.
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
            facts: CacheFacts::default(),
        }
    }

    /// The process that serves now, in the prefix index.
    #[inline]
    #[must_use]
    pub fn id(&self) -> EndpointId {
        EndpointId::new(self.slot, self.incarnation.load(Ordering::Acquire))
    }

    /// The process that served until now is gone: returns its identity.
    pub(crate) fn reincarnate(&self, incarnations: &Incarnations) -> EndpointId {
        let old = self.incarnation.swap(incarnations.next(), Ordering::AcqRel);
        self.facts.reset();
        EndpointId::new(self.slot, old)
    }

    /// Counts a request as in flight, and as much of its prompt as to be computed.
    pub(crate) fn add_request(&self, uncached_bytes: u64) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.uncached_bytes.fetch_add(uncached_bytes, Ordering::Relaxed);
    }

    /// A part of a prompt in flight is computed, or will not be.
    pub(crate) fn remove_work(&self, uncached_bytes: u64) {
        self.uncached_bytes.fetch_sub(uncached_bytes, Ordering::Relaxed);
    }

    /// A request is in flight no longer.
    pub(crate) fn remove_request(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Bytes of prompts in flight whose first token has not come back and that are not believed to be cached.
    #[inline]
    #[must_use]
    pub fn uncached_bytes(&self) -> u64 {
        self.uncached_bytes.load(Ordering::Relaxed)
    }

    /// Notes what a scrape found that began after `doubts`.
    #[must_use]
    pub(crate) fn report(&self, sample: Sample, doubts: Doubts, taken: Moment) -> Cache {
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
        let reading = Reading { waiting, running, kv_usage, age: Duration::ZERO };
        self.gauges.note(reading, taken, sample.adapters.is_some());
        *report = Report::Sample(sample);
        let Doubts(settled) = doubts;
        self.settled_doubts.store(settled, Ordering::Relaxed);
        if restarted { Cache::Lost } else { Cache::Kept }
    }

    /// When the process began, as its metrics say.
    #[must_use]
    pub fn started(&self) -> Option<f64> {
        match &*self.report.lock() {
            Report::Sample(sample) => sample.started,
            Report::Pending | Report::Down => None,
        }
    }

    /// A scrape or a request failed: what was scraped before does not count until a scrape succeeds that begins later.
    pub fn distrust(&self) {
        self.doubts.fetch_add(1, Ordering::Relaxed);
    }

    /// The doubts so far, which a scrape that begins now settles if it succeeds.
    #[must_use]
    pub fn doubts(&self) -> Doubts {
        Doubts(self.doubts.load(Ordering::Relaxed))
    }

    #[inline]
    fn is_distrusted(&self) -> bool {
        self.doubts.load(Ordering::Relaxed) != self.settled_doubts.load(Ordering::Relaxed)
    }

    /// Notes that nothing listens at the address.
    #[must_use]
    pub(crate) fn report_down(&self) -> Cache {
        let mut report = self.report.lock();
        let was_up = matches!(*report, Report::Sample(_));
        *report = Report::Down;
        self.gauges.note_down();
        if was_up { Cache::Lost } else { Cache::Kept }
    }

    /// Whether a scrape has ended, well or not.
    #[must_use]
    pub fn was_asked(&self) -> bool {
        self.is_distrusted() || !matches!(*self.report.lock(), Report::Pending)
    }

    /// Whether nothing was sent to it that has not ended, and it reports no request either.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let has_none = |sample: &Sample| sample.waiting == 0 && sample.running == 0;
        self.in_flight() == 0 && matches!(&*self.report.lock(), Report::Sample(sample) if has_none(sample))
    }

    /// Whether the endpoint may be picked: all but those where nothing listens.
    #[inline]
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        self.gauges.outline() != Outline::Down
    }

    /// Load for the policy. Scraped numbers older than `max_age` are not fresh.
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

    /// What a request for `target_model` would find, if it is an adapter.
    #[inline]
    #[must_use]
    pub fn adapter_state(&self, target_model: &str) -> AdapterState {
        match self.gauges.outline() {
            Outline::Adapters => self.reported_adapter_state(target_model),
            Outline::Pending | Outline::Plain | Outline::Down => AdapterState::Irrelevant,
        }
    }

    /// Apart, so that the rest is short enough to be inlined.
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
