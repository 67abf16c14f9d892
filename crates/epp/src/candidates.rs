//! The endpoints as the picker sees them: identity, what they last reported, and what is in flight to them.
//!
//! A [`Roster`] belongs to one snapshot and is never changed; its [`Member`]s live as long as their endpoint does and
//! carry the counters that requests and scrapes write.

mod gauges;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use inference_api::object::ObjectKey;
use inference_api::pool::ModelServerRuntime;
use parking_lot::Mutex;
use pool_index::snapshot::{Endpoint, KvAddresses, ModelStatus, Pool, Slot, Snapshot};
use prefix_index::blocks::Expected;
use prefix_index::endpoint::EndpointId;
use prometheus_client::metrics::gauge::Gauge;
use scheduling::candidate::{AdapterState, Load};

pub use self::gauges::Moment;
use self::gauges::{Gauges, Outline, Reading};
use crate::cache_facts::{CacheFacts, Insertion};

/// What an endpoint's `/metrics` said.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub waiting: u32,
    pub running: u32,
    /// 0 to 1.
    pub kv_usage: f64,
    /// `process_start_time_seconds`, where the engine reports it: a new value is a new, empty cache.
    pub started: Option<f64>,
    /// Prompt tokens that the process has counted, where the engine reports them: fewer than before is a new process.
    pub prompt_tokens: Option<f64>,
    /// Size of the KV cache in tokens, where the engine reports it.
    pub kv_tokens: Option<u64>,
    pub taken: Instant,
    /// Where the engine serves LoRA adapters.
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
pub struct Member {
    pub slot: Slot,
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
    pub address: SocketAddr,
    /// `ip:port`, as the proxy is told.
    pub destination: Arc<str>,
    pub pod: Arc<str>,
    report: Mutex<Report>,
    runtime: Mutex<ModelServerRuntime>,
    /// Where its engine tells what its cache holds.
    pub kv: KvAddresses,
    /// Whether a pool goes by that.
    wants_events: AtomicBool,
    pub facts: CacheFacts,
}

/// What picks read ends where this begins.
const _: () = assert!(std::mem::offset_of!(Member, address) <= 64);

/// A request that was sent to a member and whose stream has not ended. Dropping it ends that.
#[derive(Debug)]
#[must_use]
pub struct Lease {
    member: Arc<Member>,
    /// Of the request's prompt, until the first token.
    uncached_bytes: u64,
    /// Of its prompts in the index, until the first token.
    insertions: Vec<Insertion>,
    /// The blocks that it will have stored, until its end.
    expected_blocks: Option<Expected>,
    /// Running requests of the model.
    running: Gauge,
}

/// A pool with its members.
#[derive(Debug)]
pub struct Roll {
    pub pool: Arc<Pool>,
    pub members: Vec<Arc<Member>>,
}

/// Every pool and every endpoint of one snapshot.
#[derive(Debug, Default)]
pub struct Roster {
    /// Version of the snapshot; 0 before the first.
    pub version: u64,
    pub rolls: BTreeMap<ObjectKey, Roll>,
    /// In the order of slots.
    pub members: Vec<Arc<Member>>,
    /// Every InferenceModel, served or not.
    pub models: Arc<BTreeMap<ObjectKey, ModelStatus>>,
}

/// Numbers the processes behind endpoints; no number is given twice, so a slot's owners are in order.
#[derive(Debug, Default)]
pub struct Incarnations(AtomicU32);

// === impl Sample ===

impl Sample {
    /// Whether `later` is another process's. What one of them does not tell says nothing.
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

// === impl Member ===

impl Member {
    fn new(endpoint: &Endpoint, incarnations: &Incarnations) -> Self {
        Self {
            slot: endpoint.slot,
            address: endpoint.address,
            destination: endpoint.address.to_string().into(),
            pod: endpoint.key.name.as_str().into(),
            incarnation: AtomicU32::new(incarnations.next()),
            in_flight: AtomicU32::new(0),
            uncached_bytes: AtomicU64::new(0),
            report: Mutex::new(Report::Pending),
            gauges: Gauges::default(),
            doubts: AtomicU32::new(0),
            settled_doubts: AtomicU32::new(0),
            runtime: Mutex::default(),
            kv: endpoint.kv,
            wants_events: AtomicBool::new(false),
            facts: CacheFacts::default(),
        }
    }

    /// The process that serves now, in the prefix index.
    #[inline]
    #[must_use]
    pub fn id(&self) -> EndpointId {
        EndpointId::new(self.slot.idx, self.incarnation.load(Ordering::Acquire))
    }

    /// The process that served until now is gone: returns its identity.
    pub fn reincarnate(&self, incarnations: &Incarnations) -> EndpointId {
        let old = self.incarnation.swap(incarnations.next(), Ordering::AcqRel);
        self.facts.reset();
        EndpointId::new(self.slot.idx, old)
    }

    /// Counts a request as in flight from now on, and as much of its prompt as to be computed.
    pub fn lease(
        self: &Arc<Self>,
        uncached_bytes: u64,
        (insertions, expected): (Vec<Insertion>, Option<Expected>),
        running: Gauge,
    ) -> Lease {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.uncached_bytes.fetch_add(uncached_bytes, Ordering::Relaxed);
        running.inc();
        Lease { member: Arc::clone(self), uncached_bytes, insertions, expected_blocks: expected, running }
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
    pub fn report(&self, sample: Sample, doubts: Doubts) -> Cache {
        let mut report = self.report.lock();
        let (restarted, sample) = match &*report {
            Report::Pending | Report::Down => (false, sample),
            Report::Sample(last) => match last.is_outlived_by(&sample) {
                true => (true, sample),
                false => (false, sample.after(last)),
            },
        };
        self.facts.note_kv_tokens(sample.kv_tokens);
        let Sample { waiting, running, kv_usage, taken, .. } = sample;
        let reading = Reading { waiting, running, kv_usage, age: Duration::ZERO };
        self.gauges.note(reading, taken.into(), sample.adapters.is_some());
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
    pub fn report_down(&self) -> Cache {
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

    /// Whether a pool wants to know what its engine says it holds.
    #[must_use]
    pub fn wants_events(&self) -> bool {
        self.wants_events.load(Ordering::Relaxed)
    }

    /// The engine, as the pool's annotation names it.
    #[must_use]
    pub fn runtime(&self) -> ModelServerRuntime {
        *self.runtime.lock()
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

// === impl Lease ===

impl Lease {
    #[must_use]
    pub fn member(&self) -> &Arc<Member> {
        &self.member
    }

    /// Another member serves the request after all.
    pub fn move_to(&mut self, member: &Arc<Member>, insertions: Vec<Insertion>) {
        self.insertions = insertions;
        self.expected_blocks = None;
        member.in_flight.fetch_add(1, Ordering::Relaxed);
        member.uncached_bytes.fetch_add(self.uncached_bytes, Ordering::Relaxed);
        self.member.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.member.uncached_bytes.fetch_sub(self.uncached_bytes, Ordering::Relaxed);
        self.member = Arc::clone(member);
    }

    /// The prompt is computed: it is in the cache, and no work ahead of others any more.
    pub fn note_first_token(&mut self) {
        for insertion in self.insertions.drain(..) {
            self.member.facts.note_computed(insertion);
        }
        self.drop_work();
    }

    fn drop_work(&mut self) {
        let computed = std::mem::take(&mut self.uncached_bytes);
        self.member.uncached_bytes.fetch_sub(computed, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.drop_work();
        self.member.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.running.dec();
    }
}

// === impl Roster ===

impl Roster {
    /// The roster of `snapshot`; endpoints that live on keep their member.
    #[must_use]
    pub fn follow(&self, snapshot: &Snapshot, incarnations: &Incarnations) -> Self {
        let known: HashMap<Slot, &Arc<Member>> =
            self.members.iter().map(|member| (member.slot, member)).collect();
        let members: Vec<Arc<Member>> = snapshot
            .endpoints
            .iter()
            .map(|endpoint| match known.get(&endpoint.slot) {
                Some(member) => Arc::clone(member),
                None => Arc::new(Member::new(endpoint, incarnations)),
            })
            .collect();
        let by_slot: HashMap<Slot, &Arc<Member>> =
            members.iter().map(|member| (member.slot, member)).collect();
        let roll = |pool: &Arc<Pool>| Roll {
            pool: Arc::clone(pool),
            members: pool
                .endpoints
                .iter()
                .filter_map(|endpoint| by_slot.get(&endpoint.slot).map(|member| Arc::clone(member)))
                .collect(),
        };
        let rolls: BTreeMap<ObjectKey, Roll> =
            snapshot.pools.iter().map(|(key, pool)| (key.clone(), roll(pool))).collect();
        // Of several pools that select an endpoint, the first by name says what it runs.
        for Roll { pool, members } in rolls.values().rev() {
            members.iter().for_each(|member| *member.runtime.lock() = pool.runtime);
        }
        for member in &members {
            let wants = |roll: &Roll| {
                roll.pool.goes_by_events() && roll.members.iter().any(|own| own.slot == member.slot)
            };
            member.wants_events.store(rolls.values().any(wants), Ordering::Relaxed);
        }
        Self { version: snapshot.version, rolls, members, models: Arc::clone(&snapshot.models) }
    }

    /// Members of `earlier` that are no longer there.
    pub fn removed_since<'a>(&'a self, earlier: &'a Self) -> impl Iterator<Item = &'a Arc<Member>> {
        let lives =
            |member: &&Arc<Member>| self.members.binary_search_by_key(&member.slot, |own| own.slot).is_ok();
        earlier.members.iter().filter(move |member| !lives(member))
    }
}

// === impl Incarnations ===

impl Incarnations {
    fn next(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}
